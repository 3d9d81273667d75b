"""Find a learning rate or a micro-batch size, without changing the network or its optimizer."""

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

__all__ = ["LrTrial", "fitting_micro_batches", "lr_curve", "suggested_lr"]

SMOOTHING = 0.9  # decay of the running mean of the loss
DIVERGENCE_FACTOR = 4.0  # stop when the smoothed loss exceeds its minimum by this factor


@dataclass(frozen=True)
class LrTrial:
    """One step of a range test: learning rate, loss, and smoothed loss."""

    lr: float
    loss: float
    smooth: float


def lr_curve(setup: Setup, *, low: float, high: float, steps: int) -> Iterator[LrTrial]:
    """Run a learning-rate range test (Smith 2017, arXiv:1506.01186) on a copy of the network.

    Yield one training step for each learning rate from `low` to `high`, evenly spaced on a
    logarithmic scale. Stop when the smoothed loss exceeds four times its minimum, or the loss is
    not finite.

    Raises:
        UsageError: `low` and `high` are not in the order 0 < low < high, or `steps` is below 10.
    """
    if not (0 < low < high and steps >= 10):
        raise UsageError(
            f"learning rates from {low:g} to {high:g} in {steps} steps",
            "expected 0 < low < high, and at least 10 steps",
        )
    with _trial_state(setup) as train_state:
        mean, lowest = 0.0, math.inf
        for number, batch in enumerate(islice(_endless_batches(setup), steps)):
            lr = low * (high / low) ** (number / (steps - 1))
            loss = _one_step(train_state, setup, batch, lr, number)
            mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
            # Correct the bias of a running mean that starts at 0.
            smooth = mean / (1 - SMOOTHING ** (number + 1))
            lowest = min(lowest, smooth)
            if not math.isfinite(loss) or smooth > DIVERGENCE_FACTOR * lowest:
                return
            yield LrTrial(lr, loss, smooth)


def suggested_lr(curve: list[LrTrial]) -> float:
    """Return a tenth of the rate with the lowest smoothed loss, rounded to a rate of the curve.

    Above the rate with the lowest loss, steps are too long (fastai's rule "minimum"; Howard and
    Gugger 2020, arXiv:2002.04688). The rate at which the loss falls fastest says less: if the
    initial outputs are too large, the loss falls just because they shrink, and a rate that is
    enough for this may be too low to learn anything else.

    Raises:
        UsageError: the loss never falls.
    """
    lowest = min(curve, key=lambda trial: trial.smooth, default=None)
    if lowest is None or lowest is curve[0]:
        raise UsageError(
            "the loss never falls at these learning rates",
            "try another range: --low 1e-7 --high 1",
        )
    target = lowest.lr / 10
    return min((trial.lr for trial in curve), key=lambda lr: abs(math.log(lr / target)))


def fitting_micro_batches(
    setup: Setup, on_trial: Callable[[int, bool], object] = lambda size, fits: None
) -> int:
    """Return the number of micro-batches per batch with which a training step fits in memory.

    Run training steps on the whole batch, then on powers of two, until one fits. A step includes
    forward, backward, and the optimizer with its state. On CUDA a tenth of the memory must stay
    free. Call `on_trial` with each size that was tried, and whether it fits.

    Raises:
        ResourceError: not even the smallest micro-batch fits.
    """
    batch_size = setup.recipe.batch_size
    # Start at the smallest power of two that is at least the batch size.
    size = 1 << max(math.ceil(math.log2(batch_size)), 0)
    has_batchnorm = any(isinstance(module, nn.BatchNorm2d) for module in setup.model.modules())
    # Batch normalisation needs two images: the variance of a single one is 0.
    while size >= (2 if has_batchnorm and batch_size > 1 else 1):
        fits = _fits(setup, min(size, batch_size))
        on_trial(min(size, batch_size), fits)
        if fits:
            return math.ceil(batch_size / size)
        size //= 2
    raise ResourceError(
        f"{setup.recipe.model}: not even the smallest micro-batch fits in memory",
        "use a smaller image_size, another model or another device",
    )


def _fits(setup: Setup, size: int) -> bool:
    """Whether two steps on `size` images fit: the first one creates the optimizer's state."""
    device = setup.device
    setup = replace(setup, recipe=replace(setup.recipe, batch_size=size, accumulate=1))
    try:
        with _trial_state(setup) as train_state:
            for number, batch in enumerate(islice(_endless_batches(setup), 2)):
                _one_step(train_state, setup, batch, setup.recipe.lr, number)
            if device.type == "cuda":
                # Reserved memory includes fragmentation, allocated memory does not.
                total = torch.cuda.get_device_properties(device).total_memory
                return torch.cuda.max_memory_reserved(device) <= 0.9 * total
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        # Free tensors in reference cycles, which would reduce the memory for the next trial.
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
    return True


@contextlib.contextmanager
def _trial_state(setup: Setup) -> Iterator[TrainState]:
    """Yield a copy of the network in train mode, with a new optimizer.

    The setup's own network does not change, and the random state is restored afterwards.
    """
    device = setup.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        train_state = TrainState(copy.deepcopy(setup.model), setup.recipe, device)
        # Train all parameters, even if the recipe has head epochs: these need less memory, and
        # have a learning rate of their own.
        train_state.train()
        yield train_state


def _endless_batches(setup: Setup) -> Iterator[Batch]:
    """Yield training batches forever, one epoch after another."""
    recipe, augmentation = setup.recipe, Augmentation.of(setup.recipe)
    epochs = (
        batches(
            setup.drawn(epoch),
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
        loss = setup.criterion(train_state.model(images), batch.targets, batch.mix, batch.weights)
    train_state.scaler.scale(loss).backward()
    value = loss.item()
    # Skip the update if the loss is not finite; `lr_curve` then stops.
    if math.isfinite(value):
        train_state.clip(train_state.gradient_norm())
        train_state.step(lr, steps)
    return value
