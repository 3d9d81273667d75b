"""Look at a network without leaving a trace: modes and the random state are as before."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

__all__ = ["eval_mode", "preserved_random_state", "inspection_mode"]


@contextlib.contextmanager
def eval_mode(model: nn.Module, but: Collection[nn.Module] = ()) -> Iterator[None]:
    """Put a model into eval mode, `but` those into training mode; afterwards as each was."""
    before = {module: module.training for module in model.modules()}
    for module in before:
        module.training = any(module is one for one in but)
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def preserved_random_state(images: Tensor) -> contextlib.AbstractContextManager[None]:
    """Give the random state back as it was, also if the network draws in eval mode."""
    return torch.random.fork_rng([images.device] if images.is_cuda else [])


@contextlib.contextmanager
def inspection_mode(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Run a model in eval mode, without a graph unless one is asked for, and leave no trace.

    Works inside `inference_mode` and `autocast`, whose cache of weights nothing is added to.
    """
    device = images.device.type
    with contextlib.ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        stack.enter_context(preserved_random_state(images))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if torch.is_autocast_enabled(device):
            precision = torch.get_autocast_dtype(device)
            stack.enter_context(torch.autocast(device, precision, cache_enabled=False))
        yield
