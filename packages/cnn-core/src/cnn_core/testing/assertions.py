"""Assertions for the checks."""

from __future__ import annotations

from torch import Tensor

__all__ = ["require", "require_close"]


def require(holds: object, message: str) -> None:
    """Raise AssertionError unless `holds` is true; unlike `assert`, also under `python -O`."""
    if not holds:
        raise AssertionError(message)


def require_close(found: Tensor, expected: Tensor, name: str, tolerance: float = 1e-4) -> None:
    """Raise AssertionError unless two tensors agree.

    `tolerance` is relative to the largest expected value, since logits of different networks
    differ by orders of magnitude.
    """
    scale = max(expected.abs().max().item(), 1e-12)
    error = (found - expected).abs().max().item() / scale
    require(error <= tolerance, f"{name} differs by {error:.2g} of its largest value")
