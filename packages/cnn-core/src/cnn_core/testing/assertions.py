"""Assertions for the conformance checks."""

from __future__ import annotations

from torch import Tensor

__all__ = ["require", "require_close"]


def require(condition: object, message: str) -> None:
    """Raise AssertionError unless `condition` is true, even under `python -O`."""
    if not condition:
        raise AssertionError(message)


def require_close(found: Tensor, expected: Tensor, name: str, tolerance: float = 1e-4) -> None:
    """Raise AssertionError if two tensors differ by more than `tolerance`.

    `tolerance` is relative to the largest absolute expected value, since the logits of different
    networks differ by orders of magnitude.
    """
    scale = max(expected.abs().max().item(), 1e-12)
    error = (found - expected).abs().max().item() / scale
    require(error <= tolerance, f"{name} differs by {error:.2g} of its largest value")
