"""Run a network without side effects: restore its training flags and the random state."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

__all__ = ["eval_mode", "inspection_mode", "preserved_random_state"]


@contextlib.contextmanager
def eval_mode(model: nn.Module, except_for: Collection[nn.Module] = ()) -> Iterator[None]:
    """Set a model to eval mode, but modules in `except_for` to training mode; restore on exit.

    Each flag is saved and restored separately: `Module.train()` would overwrite the flags of
    submodules that were deliberately frozen.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = any(module is exception for exception in except_for)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def preserved_random_state(images: Tensor) -> contextlib.AbstractContextManager[None]:
    """Restore the random state on exit: some networks draw random numbers even in eval mode."""
    return torch.random.fork_rng([images.device] if images.is_cuda else [])


@contextlib.contextmanager
def inspection_mode(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Set a model to eval mode and disable autograd; restore all state on exit.

    The caller may enable autograd inside. This also works inside `inference_mode`, which is left
    for the duration, and inside `autocast`, whose weight cache is not used: weights cached without
    gradients would break a later training step.
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
