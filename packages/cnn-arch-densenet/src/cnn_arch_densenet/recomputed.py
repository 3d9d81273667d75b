"""Recompute maps in the backward pass instead of keeping them: less memory, more time.

G. Pleiss, D. Chen, G. Huang, T. Li, L. van der Maaten, K. Q. Weinberger, "Memory-efficient
implementation of DenseNets", 2017, arXiv:1707.06990. A dense block keeps the concatenated input
of each layer, so its memory grows with the square of its depth; recomputing makes that linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["recomputed"]

Context = AbstractContextManager[None]


def recomputed(function: Callable[..., Tensor], norm: nn.BatchNorm2d, *maps: Tensor) -> Tensor:
    """Return function(*maps); run it again in the backward pass. `function` must apply `norm`."""
    return checkpoint(function, *maps, use_reentrant=False, context_fn=lambda: contexts(norm))


def contexts(norm: nn.BatchNorm2d) -> tuple[Context, Context]:
    """Return the context of the forward pass and that of its repetition."""
    return nullcontext(), frozen_statistics(norm)


@contextmanager
def frozen_statistics(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Keep the running averages fixed: the forward pass has counted this batch already."""
    momentum, count = norm.momentum, norm.num_batches_tracked
    norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        norm.momentum, norm.num_batches_tracked = momentum, count
