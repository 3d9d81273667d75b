"""Running statistics of batch normalisation: estimate them anew, and detect that they lag.

They are exponential averages over the steps of training. After few steps, or while weights change
quickly, they describe neither the images nor the weights, and evaluation uses them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnn_core.tasks import SCORES
from cnn_core.training.device import autocast

if TYPE_CHECKING:
    from cnn_core.data.batching import Batch
    from cnn_core.training.setup import Setup

__all__ = ["estimate_statistics", "lagging_statistics"]

BATCHES = 64  # for an estimate; more change little (Wu and Johnson 2021, section 3)
GAP = 0.5  # a score below this fraction of the training score is suspicious


@torch.no_grad()
def estimate_statistics(setup: Setup, batches: Iterable[Batch]) -> None:
    """Replace running statistics by the mean over up to 64 batches, with the weights fixed.

    Source: Wu and Johnson 2021, arXiv:2105.07576, section 3 ("PreciseBN"). Layers that training
    keeps fixed are not changed.
    """
    names = [name for name, m in setup.model.named_modules() if _adapts(m)]
    model = setup.train_state.eval_model
    layers = [_batchnorm(model, name) for name in names]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches, not an exponential average
        layer.train()
    for batch in islice(batches, BATCHES):
        with autocast(setup.device, setup.recipe.precision):
            model(batch.images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    if setup.world.size > 1:
        _average(setup, layers)


def _adapts(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.training and module.track_running_stats


def _batchnorm(model: nn.Module, name: str) -> _BatchNorm:
    layer = model.get_submodule(name)
    assert isinstance(layer, _BatchNorm)
    return layer


def _average(setup: Setup, layers: Iterable[_BatchNorm]) -> None:
    """Average the statistics of all processes, each of which saw its own images."""
    tensors = [
        tensor
        for layer in layers
        for tensor in (layer.running_mean, layer.running_var)
        if tensor is not None
    ]
    setup.world.sum(tensors)
    torch._foreach_div_(tensors, setup.world.size)


def lagging_statistics(setup: Setup, line: Mapping[str, float], batches: Iterable[Batch]) -> str:
    """Return a warning if running statistics lag behind the weights, else "".

    `line` are the metrics of the last epoch. If validation is much worse than training, the
    network is evaluated on a batch of training images in both modes: an overfitted network is good
    in both, but lagging statistics spoil eval mode.
    """
    name = SCORES[setup.spec.task]
    trained, validated = line.get(f"train/{name}"), line.get(f"val/{name}")
    layers = [m for m in setup.train_state.eval_model.modules() if isinstance(m, _BatchNorm)]
    if trained is None or validated is None or validated > GAP * trained or not layers:
        return ""
    batch = next(iter(batches))
    by_batch, by_average = (_score(setup, name, batch, layers, own) for own in (True, False))
    if by_average > GAP * by_batch:
        return ""
    return (
        f"val/{name} is {100 * validated:.0f} %, train/{name} {100 * trained:.0f} %: the running "
        "statistics of batch normalisation lag behind the weights\n"
        "train for more steps (a smaller --batch-size, more --epochs), or "
        "--set precise_batchnorm=true"
    )


@torch.no_grad()
def _score(setup: Setup, name: str, batch: Batch, layers: list[_BatchNorm], own: bool) -> float:
    """Return the score on a batch, normalised by its own statistics or by the running ones."""
    model, metrics = setup.train_state.eval_model.eval(), setup.metrics
    kept = [(layer, layer.running_mean, layer.running_var) for layer in layers]
    for layer in layers if own else ():
        # In eval mode, a layer without running statistics uses those of the batch.
        layer.running_mean = layer.running_var = None
    outputs = model(batch.images)
    for layer, mean, variance in kept:
        layer.running_mean, layer.running_var = mean, variance
    metrics.load({})
    metrics.add(0.0, outputs if isinstance(outputs, Tensor) else outputs[0], batch.targets)
    return metrics.compute().get(name, 0.0)
