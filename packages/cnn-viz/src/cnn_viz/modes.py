"""Look at a network without leaving a trace: modes and the random state are as before."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

__all__ = ["evaluating", "same_random_state"]


@contextlib.contextmanager
def evaluating(model: nn.Module, but: Collection[nn.Module] = ()) -> Iterator[None]:
    """Put a model into eval mode, `but` those into training mode; afterwards as each was."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = any(module is one for one in but)
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def same_random_state(images: Tensor) -> contextlib.AbstractContextManager[None]:
    """Give the random state back as it was, also if the network draws in eval mode."""
    return torch.random.fork_rng([images.device] if images.is_cuda else [])
