"""Run a network without side effects: restore training flags and the random state."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

__all__ = ["eval_mode", "inspection_mode", "preserved_random_state"]


@contextlib.contextmanager
def eval_mode(model: nn.Module, except_for: Collection[nn.Module] = ()) -> Iterator[None]:
    """Switch to eval mode, modules in `except_for` to training mode; restore each flag afterwards.

    `Module.train` would overwrite the flags of submodules that were deliberately frozen.
    """
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = any(module is excluded for excluded in except_for)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def preserved_random_state(images: Tensor) -> contextlib.AbstractContextManager[None]:
    """Restore the random state afterwards: some networks draw random numbers in eval mode."""
    return torch.random.fork_rng([images.device] if images.is_cuda else [])


@contextlib.contextmanager
def inspection_mode(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Run a model in eval mode, with autograd off until enabled, and restore everything.

    Works inside `inference_mode`, which would forbid gradients, and inside `autocast`, whose
    weight cache is left alone: weights cached without gradients would break a later training step.
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
