"""What to do about numbers that are not finite: notice before the step, and say where from."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnn_core.data.batching import Batch
from cnn_core.errors import NumericalError
from cnn_core.training.device import autocast

__all__ = ["gradient_norm", "not_finite"]

SHOWN = 8  # samples that an error names


def gradient_norm(parameters: list[nn.Parameter]) -> float:
    """Return the norm of all gradients together; not finite if any of them is not."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    if gradients[0].device.type == "cpu":  # nothing to wait for: numbers cost less than tensors
        return math.hypot(*[norm.item() for norm in norms])
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def not_finite(
    model: nn.Module,
    batch: Batch,
    loss: float,
    norm: float,
    epoch: int,
    step: int,
    micro_batch_size: int = 0,
    precision: str = "fp32",
) -> NumericalError:
    """Return an error that names the step, its samples, and where the first such number is.

    Runs the network once more, `micro_batch_size` samples at a time and in the precision of the
    training. The batch is already in the running statistics of batch normalisation, so nothing
    more is lost by it.
    """
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    samples = ", ".join(map(str, batch.indices[:SHOWN].tolist()))
    more = ", …" if len(batch.indices) > SHOWN else ""
    size = micro_batch_size or len(batch.indices)
    return NumericalError(
        f"{what} in epoch {epoch + 1}, step {step + 1} (samples {samples}{more}); "
        f"first in {_origin(model, batch, loss, size, precision)}",
        "the last checkpoint is sound: try a lower --lr, or --set clip_norm=1",
    )


@torch.no_grad()
def _origin(
    model: nn.Module, batch: Batch, loss: float, micro_batch_size: int, precision: str
) -> str:
    """Return where the first number that is not finite is: input, parameter, stage, gradient."""
    if not batch.images.isfinite().all():
        places = (~batch.images.flatten(1).isfinite().all(1)).nonzero().flatten()
        return f"the images (sample {int(batch.indices[places[0]])})"
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the parameter {name}"
    for part in batch.micro_batches(micro_batch_size):
        with autocast(batch.images.device, precision):
            if stage := _first_output(model, part.images):
                return f"the output of {stage}"
    if not math.isfinite(loss):
        return "the loss"
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"the gradient of {name}"
    return "the sum of all gradients' squares"


def _first_output(model: nn.Module, images: Tensor) -> str:
    """Return the first module whose output is not finite, or ""."""
    found: list[str] = []
    leaves = [(name, m) for name, m in model.named_modules() if name and not any(m.children())]
    handles = [
        module.register_forward_hook(partial(_note, found, name)) for name, module in leaves
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def _note(found: list[str], name: str, module: nn.Module, _: Any, output: Any) -> None:
    if isinstance(output, Tensor) and not output.isfinite().all():
        found.append(name)
