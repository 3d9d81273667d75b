"""Detect NaN and infinity before the optimizer step, and locate where they first appear."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnn_core.data.batching import Batch
from cnn_core.errors import NumericalError
from cnn_core.training.device import autocast

__all__ = ["Step", "all_finite", "blame_module", "gradient_norm", "non_finite_error"]

MAX_SAMPLES = 8  # number of sample indices in an error message


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step after backward, before the optimizer step.

    `epoch` and `step` count from 0. `loss` is the batch's mean loss, `norm` the gradient norm.
    """

    epoch: int
    step: int
    batch: Batch
    loss: float
    norm: float


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    """Return the L2 norm of all gradients together; not finite if any gradient is not finite."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    # On a CPU .item() needs no synchronisation, and Python floats are cheaper than tensors.
    if gradients[0].device.type == "cpu":
        return math.hypot(*[norm.item() for norm in norms])
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity."""
    # The sum is not finite if a value is not; it is cheaper than a mask, but may overflow.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def non_finite_error(
    model: nn.Module, step: Step, *, micro_batch_size: int = 0, precision: str = "fp32"
) -> NumericalError:
    """Return an error that names the step, its samples, and the first value that is not finite.

    Run the network again in `precision`, with `micro_batch_size` samples at a time (0: the whole
    batch). This also updates batch normalisation's running statistics, but they have already been
    updated with this batch, and they will not be saved.
    """
    loss_is_finite = math.isfinite(step.loss)
    symptom = f"the gradient norm is {step.norm}" if loss_is_finite else f"the loss is {step.loss}"
    indices = step.batch.indices
    samples = ", ".join(map(str, indices[:MAX_SAMPLES].tolist()))
    more = ", …" if len(indices) > MAX_SAMPLES else ""
    micro_batches = step.batch.micro_batches(micro_batch_size or len(indices))
    source = (
        _bad_input(model, step.batch)
        or next(filter(None, (_bad_output(model, b, precision) for b in micro_batches)), "")
        or ("the loss" if not loss_is_finite else _bad_gradient(model))
    )
    return NumericalError(
        f"{symptom} in epoch {step.epoch + 1}, step {step.step + 1} (samples {samples}{more}); "
        f"first in {source}",
        "the last checkpoint is intact: try a lower --lr, or --set clip_norm=1",
    )


def _bad_input(model: nn.Module, batch: Batch) -> str:
    """Name the first image or parameter that is not finite, or return an empty string."""
    if not batch.images.isfinite().all():
        bad_rows = (~batch.images.flatten(1).isfinite().all(1)).nonzero().flatten()
        return f"the images (sample {int(batch.indices[bad_rows[0]])})"
    parameters = model.named_parameters()
    return next((f"the parameter {name}" for name, p in parameters if not p.isfinite().all()), "")


def _bad_output(model: nn.Module, batch: Batch, precision: str) -> str:
    """Name the first module whose output is not finite, or return an empty string."""

    def forward() -> None:
        with autocast(batch.images.device, precision):
            model(batch.images)

    name = blame_module(model, forward)
    return f"the output of {name}" if name else ""


@torch.no_grad()
def blame_module(model: nn.Module, forward: Callable[[], object]) -> str:
    """Return the first module with an output that is not finite, or "".

    `forward` calls the network.
    """
    bad_modules: list[str] = []
    # Check leaf modules only, because a container's output comes from its children.
    leaves = [(name, m) for name, m in model.named_modules() if name and not any(m.children())]
    handles = [
        module.register_forward_hook(partial(_record_bad_output, bad_modules, name))
        for name, module in leaves
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return bad_modules[0] if bad_modules else ""


def _record_bad_output(
    bad_modules: list[str], name: str, module: nn.Module, _: Any, output: Any
) -> None:
    if isinstance(output, Tensor) and not output.isfinite().all():
        bad_modules.append(name)


def _bad_gradient(model: nn.Module) -> str:
    """Name the gradient that became non-finite first: backward starts at the last parameter."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the sum of the squared gradients"
