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
from cnn_core.training.device import FORMATS, autocast
from cnn_core.training.setup import Setup
from cnn_core.training.train_state import TrainState

__all__ = ["LrTrial", "fitting_micro_batches", "lr_curve", "steepest"]

SMOOTH = 0.9  # of the running mean of the loss
DIVERGED = 4.0  # times the lowest loss so far: the curve ends there


@dataclass(frozen=True)
class LrTrial:
    """One step of a range test: the rate, the step's loss, and their running mean."""

    lr: float
    loss: float
    smooth: float


def lr_curve(setup: Setup, *, low: float, high: float, steps: int) -> Iterator[LrTrial]:
    """Yield a step for each learning rate from `low` to `high`, evenly on a logarithmic scale.

    The range test of Smith (2017, arXiv:1506.01186), on a copy of the network; it ends where the
    loss is four times its lowest, or not finite.

    Raises:
        UsageError: the range is empty, or has fewer than 10 steps.
    """
    if not (0 < low < high and steps >= 10):
        raise UsageError(f"rates from {low:g} to {high:g} in {steps} steps", "at least 10 steps")
    with _trial(setup) as train_state:
        mean, lowest = 0.0, math.inf
        for number, batch in enumerate(islice(_endless(setup), steps)):
            lr = low * (high / low) ** (number / (steps - 1))
            loss = _one_step(train_state, setup, batch, lr, number)
            mean = SMOOTH * mean + (1 - SMOOTH) * loss
            # A running mean that starts at 0 is too low at first, by this factor.
            smooth = mean / (1 - SMOOTH ** (number + 1))
            lowest = min(lowest, smooth)
            if not math.isfinite(loss) or smooth > DIVERGED * lowest:
                return
            yield LrTrial(lr, loss, smooth)


def steepest(curve: list[LrTrial]) -> float:
    """Return the rate at which the loss falls fastest; raises UsageError if it never falls.

    The fall is measured between points a twentieth of the curve apart: between neighbours it
    would be mostly noise.
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
    setup: Setup, on_trial: Callable[[int, bool], object] = lambda size, fits: None
) -> int:
    """Return into how many micro-batches a batch must be cut for a step to fit in memory.

    Tries whole steps, forward, backward and the optimizer with its state, on a power of two
    images, and leaves a tenth of the memory free on a GPU. The batch stays as it is: the
    gradients of its micro-batches are added up. `on_trial` is called with each size that was
    tried, and whether it fits.

    Raises:
        ResourceError: not even a single image fits.
    """
    whole = setup.recipe.batch_size
    # The smallest power of two that holds the whole batch: halving it gives the rest.
    size = 1 << max(math.ceil(math.log2(whole)), 0)
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in setup.model.modules())
    # Batch normalisation needs two images: the variance of one is 0.
    while size >= (2 if normalised and whole > 1 else 1):
        fits = _fits(setup, min(size, whole))
        on_trial(min(size, whole), fits)
        if fits:
            return math.ceil(whole / size)
        size //= 2
    raise ResourceError(
        f"{setup.recipe.model}: a step on the fewest images needs more memory than there is",
        "a smaller image_size, another model, or another device",
    )


def _fits(setup: Setup, size: int) -> bool:
    """Whether two steps on `size` images fit: only the second has the optimizer's state."""
    device = setup.device
    setup = replace(setup, recipe=replace(setup.recipe, batch_size=size, accumulate=1))
    try:
        with _trial(setup) as train_state:
            for number, batch in enumerate(islice(_endless(setup), 2)):
                _one_step(train_state, setup, batch, setup.recipe.lr, number)
            if device.type == "cuda":
                # Memory reserved, not allocated: gaps between tensors count, too.
                room = torch.cuda.get_device_properties(device).total_memory
                return torch.cuda.max_memory_reserved(device) <= 0.9 * room
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        # Tensors in reference cycles would leave less room for the next trial.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    return True


@contextlib.contextmanager
def _trial(setup: Setup) -> Iterator[TrainState]:
    """Yield a copy of the network, with an optimizer of its own, in train mode.

    The setup's own is not touched, and random numbers are as before afterwards.
    """
    device = setup.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        train_state = TrainState(copy.deepcopy(setup.model), setup.recipe, device)
        train_state.train()
        yield train_state


def _endless(setup: Setup) -> Iterator[Batch]:
    """Yield training batches, epoch after epoch; a small dataset is seen many times."""
    recipe, augmentation = setup.recipe, Augmentation.of(setup.recipe)
    epochs = (
        batches(
            setup.train,
            setup.preprocessing,
            recipe.batch_size,
            device=setup.device,
            draws=augmentation.draws(recipe.seed, epoch),
        )
        for epoch in count()
    )
    return chain.from_iterable(epochs)


def _one_step(train_state: TrainState, setup: Setup, batch: Batch, lr: float, steps: int) -> float:
    """Take one training step; return its loss."""
    recipe = setup.recipe
    images = batch.images.contiguous(memory_format=FORMATS[recipe.memory_format])
    with autocast(setup.device, recipe.precision):
        loss = setup.criterion(train_state.model(images), batch.targets, batch.mix)
    train_state.scaler.scale(loss).backward()
    value = loss.item()
    # A loss that is not finite ends `lr_curve`: there is nothing to learn from it.
    if math.isfinite(value):
        train_state.clip(train_state.gradient_norm())
        train_state.step(lr, steps)
    return value
