"""Find a learning rate and a batch size, without changing anything that training starts from."""

from __future__ import annotations

import contextlib
import copy
import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, islice

import torch
from torch import nn

from cnn_core.data.augment import Augmentation
from cnn_core.data.batching import Batch, batches
from cnn_core.errors import ResourceError, UsageError, is_out_of_memory
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks import loss_of
from cnn_core.training.device import FORMATS, autocast
from cnn_core.training.setup import Setup
from cnn_core.training.train_state import TrainState

__all__ = ["LrTrial", "fitting_micro_batches", "lr_curve", "steepest"]

SMOOTH = 0.9  # of the running mean of the loss
DIVERGED = 4.0  # times the lowest loss so far: there is nothing to see after it


@dataclass(frozen=True)
class LrTrial:
    """One step of a range test: the rate, the step's loss, and their running mean."""

    lr: float
    loss: float
    smooth: float


def lr_curve(
    setup: Setup, device: torch.device, low: float, high: float, steps: int
) -> Iterator[LrTrial]:
    """Yield a step for each learning rate from `low` to `high`, evenly on a logarithmic scale.

    The range test of Smith (2017, arXiv:1506.01186), on a copy of the network; it ends where the
    loss is four times its lowest, or not finite.

    Raises:
        UsageError: no range, or too few steps to see anything.
    """
    if not (0 < low < high and steps >= 10):
        raise UsageError(f"rates from {low:g} to {high:g} in {steps} steps", "at least 10 steps")
    with _untouched(setup.model) as model:
        train_state = TrainState(model, setup.recipe, device)
        train_state.train()
        mean, lowest = 0.0, math.inf
        for number, batch in enumerate(islice(_endless(setup, device), steps)):
            lr = low * (high / low) ** (number / (steps - 1))
            loss = _one_step(train_state, setup, batch, device, lr, number)
            mean = SMOOTH * mean + (1 - SMOOTH) * loss
            smooth = mean / (1 - SMOOTH ** (number + 1))
            lowest = min(lowest, smooth)
            if not math.isfinite(loss) or smooth > DIVERGED * lowest:
                return
            yield LrTrial(lr, loss, smooth)


def steepest(curve: list[LrTrial]) -> float:
    """Return the rate at which the loss falls fastest; raises UsageError if it never falls.

    Falling is measured between points a twentieth of the curve apart, so that noise says little.
    """
    width = max(len(curve) // 20, 1)
    falls = [
        (after.smooth - before.smooth, point.lr)
        for before, point, after in zip(curve, curve[width:], curve[2 * width :], strict=False)
    ]
    fall, lr = min(falls, default=(0.0, 0.0))
    if fall >= 0:
        raise UsageError("the loss falls at no rate", "another range: --low 1e-7 --high 1")
    return lr


def fitting_micro_batches(
    setup: Setup, device: torch.device, told: Callable[[int, bool], object] = lambda n, ok: None
) -> int:
    """Return into how many pieces a batch has to be cut for a training step to fit in memory.

    Tries whole steps, forward, backward and the optimizer with its state, on pieces of a power of
    two images, and leaves a tenth of the memory free on a GPU. The batch stays what it is: its
    pieces' gradients are added up. `told` hears of each size that was tried, and whether it fits.

    Raises:
        ResourceError: not even a single image fits.
    """
    whole = setup.recipe.batch_size
    size = 1 << max(math.ceil(math.log2(whole)), 0)
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in setup.model.modules())
    while size >= (2 if normalised and whole > 1 else 1):  # of one image there is no variance
        fits = _fits(setup, device, min(size, whole))
        told(min(size, whole), fits)
        if fits:
            return math.ceil(whole / size)
        size //= 2
    raise ResourceError(
        f"{setup.recipe.model}: a step on the fewest images needs more memory than there is",
        "a smaller image_size, another model, or another device",
    )


def _fits(setup: Setup, device: torch.device, size: int) -> bool:
    """Whether two steps on `size` images, the second with the optimizer's state there, fit."""
    recipe = replace(setup.recipe, batch_size=size, accumulate=1)
    trial = replace(setup, recipe=recipe)
    try:
        with _untouched(setup.model) as model:
            train_state = TrainState(model, recipe, device)
            train_state.train()
            for number, batch in enumerate(islice(_endless(trial, device), 2)):
                _one_step(train_state, trial, batch, device, recipe.lr, number)
            if device.type == "cuda":
                room = torch.cuda.get_device_properties(device).total_memory
                return torch.cuda.max_memory_reserved(device) <= 0.9 * room
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    return True


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy to try things on; random numbers are as before afterwards."""
    home = next(model.parameters()).device
    with torch.random.fork_rng(devices=[home] if home.type == "cuda" else []):
        yield copy.deepcopy(model)


def _endless(setup: Setup, device: torch.device) -> Iterator[Batch]:
    """Yield training batches, epoch after epoch; small datasets are seen often."""
    recipe = setup.recipe
    kept, _ = setup.dataset.divide(recipe.validation, recipe.seed)
    what = Augmentation.of(recipe)
    epochs = (
        batches(
            kept,
            setup.preprocessing,
            recipe.batch_size,
            device=device,
            draws=what.draws(recipe.seed, epoch),
        )
        for epoch in count()
    )
    return chain.from_iterable(epochs)


def _one_step(
    train_state: TrainState,
    setup: Setup,
    batch: Batch,
    device: torch.device,
    lr: float,
    steps: int,
) -> float:
    """Take one training step; return its loss."""
    recipe: Recipe = setup.recipe
    images = batch.images.contiguous(memory_format=FORMATS[recipe.memory_format])
    with autocast(device, recipe.precision):
        loss = loss_of(setup.dataset.spec.task, recipe)(
            train_state.model(images), batch.targets, batch.mix
        )
    train_state.scaler.scale(loss).backward()
    value = loss.item()
    if math.isfinite(value):
        train_state.clip(train_state.gradient_norm())
        train_state.step(lr, steps)
    return value
