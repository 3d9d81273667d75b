"""Recompute maps in the backward pass instead of storing them: less memory, more time.

G. Pleiss, D. Chen, G. Huang, T. Li, L. van der Maaten, K. Q. Weinberger, "Memory-efficient
implementation of DenseNets", 2017, arXiv:1707.06990. A dense block stores the concatenated input
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
    """Return function(*maps) without storing intermediate maps; backward recomputes them.

    `norm` is the batch normalisation that `function` applies.
    """
    return checkpoint(function, *maps, use_reentrant=False, context_fn=lambda: contexts(norm))


def contexts(norm: nn.BatchNorm2d) -> tuple[Context, Context]:
    """Return the context managers of the forward pass and of its recomputation."""
    return nullcontext(), frozen_statistics(norm)


@contextmanager
def frozen_statistics(norm: nn.BatchNorm2d) -> Iterator[None]:
    """Leave the running statistics unchanged: the forward pass has already updated them."""
    momentum, count = norm.momentum, norm.num_batches_tracked
    norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        norm.momentum, norm.num_batches_tracked = momentum, count
