"""Training in less memory and more time, to the same numbers.

G. Pleiss and others, "Memory-efficient implementation of DenseNets", arXiv 1707.06990.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]

Context = AbstractContextManager[None]


def recomputed(function: Callable[..., Tensor], norm: nn.BatchNorm2d, *maps: Tensor) -> Tensor:
    """Apply `function`, which runs `norm`, and again in the backward pass: nothing is kept."""
    return checkpoint(function, *maps, use_reentrant=False, context_fn=lambda: both_times(norm))


def both_times(norm: nn.BatchNorm2d) -> tuple[Context, Context]:
    """Return what surrounds the forward pass, and what its repetition in the backward."""
    return nullcontext(), frozen(norm)


@contextmanager
def frozen(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Leave the running averages alone: they have seen these maps already."""
    momentum, count = norm.momentum, norm.num_batches_tracked
    norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        norm.momentum, norm.num_batches_tracked = momentum, count
