"""Detect numbers that are not finite before the step, and locate their source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnn_core.data.batching import Batch
from cnn_core.errors import NumericalError
from cnn_core.training.device import autocast

__all__ = ["Step", "gradient_norm", "not_finite"]

SHOWN = 8  # samples that an error names


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step after the backward pass and before the optimizer's update.

    `epoch` and `step` count from 0. `loss` is the batch's mean, `norm` that of all gradients.
    """

    epoch: int
    step: int
    batch: Batch
    loss: float
    norm: float


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    """Return the norm of all gradients together; not finite if any of them is not."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    # On a CPU .item() waits for nothing, and Python's numbers are cheaper than tensors.
    if gradients[0].device.type == "cpu":
        return math.hypot(*[norm.item() for norm in norms])
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def not_finite(
    model: nn.Module, step: Step, *, micro_batch_size: int = 0, precision: str = "fp32"
) -> NumericalError:
    """Return an error that names the step, its samples, and the first place that is not finite.

    Runs the network once more, `micro_batch_size` samples at a time (0: the whole batch) and in
    the training's precision. Batch normalisation's running statistics have seen this batch
    already, so the second look spoils nothing further.
    """
    finite = math.isfinite(step.loss)
    what = f"the gradient's norm is {step.norm}" if finite else f"the loss is {step.loss}"
    indices = step.batch.indices
    samples = ", ".join(map(str, indices[:SHOWN].tolist()))
    more = ", …" if len(indices) > SHOWN else ""
    micro_batches = step.batch.micro_batches(micro_batch_size or len(indices))
    place = (
        _bad_input(model, step.batch)
        or next(filter(None, (_bad_output(model, b, precision) for b in micro_batches)), "")
        or ("the loss" if not finite else _bad_gradient(model))
    )
    return NumericalError(
        f"{what} in epoch {step.epoch + 1}, step {step.step + 1} (samples {samples}{more}); "
        f"first in {place}",
        "the last checkpoint is sound: try a lower --lr, or --set clip_norm=1",
    )


def _bad_input(model: nn.Module, batch: Batch) -> str:
    """Return which image or parameter is not finite, or an empty string."""
    if not batch.images.isfinite().all():
        places = (~batch.images.flatten(1).isfinite().all(1)).nonzero().flatten()
        return f"the images (sample {int(batch.indices[places[0]])})"
    named = model.named_parameters()
    return next((f"the parameter {name}" for name, p in named if not p.isfinite().all()), "")


@torch.no_grad()
def _bad_output(model: nn.Module, batch: Batch, precision: str) -> str:
    """Return the first module whose output is not finite, or an empty string."""
    found: list[str] = []
    # Only leaves: a container's output comes from one of its children, which is named first.
    leaves = [(name, m) for name, m in model.named_modules() if name and not any(m.children())]
    handles = [
        module.register_forward_hook(partial(_note, found, name)) for name, module in leaves
    ]
    try:
        with autocast(batch.images.device, precision):
            model(batch.images)
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {found[0]}" if found else ""


def _note(found: list[str], name: str, module: nn.Module, _: Any, output: Any) -> None:
    if isinstance(output, Tensor) and not output.isfinite().all():
        found.append(name)


def _bad_gradient(model: nn.Module) -> str:
    """Return the first gradient that is not finite: backward begins at the last parameter."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the sum of all gradients' squares"
