"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cnn_core.data.augment import Augmentation
from cnn_core.data.batching import Batch, batches
from cnn_core.data.counter_rng import key_of
from cnn_core.errors import DatasetCorruptError
from cnn_core.plugins import Observers
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.training import resumption
from cnn_core.training.batchnorm import estimate_statistics, lagging_statistics
from cnn_core.training.checkpoint import Checkpoint
from cnn_core.training.device import FORMATS, autocast
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.evaluation import evaluate_split
from cnn_core.training.numerics import Step, non_finite_error
from cnn_core.training.progress import Progress
from cnn_core.training.schedule import learning_rate
from cnn_core.training.selection import is_better
from cnn_core.training.setup import Setup
from cnn_core.training.signals import Stop, stop_requests
from cnn_core.training.train_state import TrainState

__all__ = ["Fit", "fit"]

log: logging.Logger = logging.getLogger("cnn_core")


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A training run in progress: its setup, run directory, progress display and observers."""

    setup: Setup
    run: Run
    progress: Progress
    observers: Observers

    def save(self, state: Checkpoint) -> None:
        """Save a checkpoint; only rank 0 writes."""
        if self.setup.world.is_first:
            resumption.save(self.run, self.setup, state)

    def stop_on(self, signum: float) -> None:
        """Raise the error for signal `signum`, after rank 0 has saved; do nothing if it is 0."""
        if signum:
            self.setup.world.barrier()
            raise Stop.error(int(signum))


def fit(job: Fit, state: Checkpoint) -> Checkpoint:
    """Train from `state` to the last epoch, or until patience runs out; return the final state.

    A step depends only on the previous state and on (seed, epoch, step). On the same CPU,
    resuming from any checkpoint is therefore bit-identical to training without a stop.

    Raises:
        NumericalError: the loss or a gradient is not finite. Raised before the optimizer step;
            nothing is saved.
        KeyboardInterrupt, Terminated: a signal asked to stop. Raised once a checkpoint has
            been saved, after the current step or, during validation, batch.
    """
    setup, recipe = job.setup, job.setup.recipe
    setup.train_state.load(state)
    network, steps = None, setup.steps
    job.progress.start(job.run, steps, state.epoch * steps + state.step)
    job.observers.notify("fit_start", run=job.run, model=setup.model, recipe=recipe)
    with stop_requests() as stop:
        while not resumption.is_complete(recipe, state):
            # Count the time that an interrupted epoch took before it was resumed.
            began = time.perf_counter() - state.seconds
            # DistributedDataParallel ignores parameters that did not require gradients when it
            # was created, so it is created again after the head epochs.
            if setup.train_state.start_epoch(state.epoch) or network is None:
                network = setup.world.wrap(setup.model, setup.device)
            _train_epoch(job, network, state, began=began, stop=stop)
            state = _finish_epoch(job, state, began=began, stop=stop)
        if state.metrics and setup.world.is_first:
            batches = _batches(setup, max(state.epoch - 1, 0), 0)
            if line := lagging_statistics(setup, state.metrics[-1], batches):
                log.warning("%s", line)
    return state


def _train_epoch(
    job: Fit, network: nn.Module, state: Checkpoint, *, began: float, stop: Stop
) -> None:
    """Take the remaining steps of one epoch, starting at `state.step`."""
    setup, recipe, train_state = job.setup, job.setup.recipe, job.setup.train_state
    steps = setup.steps
    # Saved sums cover all processes, so only rank 0 continues from them: they must count once.
    setup.metrics.load(state.epoch_metrics if setup.world.is_first else {}, training=True)
    loader = _saving_on_bad_files(job, state, _batches(setup, state.epoch, state.step), began)
    for step, batch in enumerate(loader, state.step):
        lr = learning_rate(recipe, state.epoch + step / steps)

        # The gradients of the micro-batches add up in .grad, so one step covers the whole batch
        # but needs only the memory of a micro-batch.
        step_loss = 0.0
        for micro_batch, sync_context in _micro_batches(batch, setup.micro_batch_size, network):
            with sync_context:
                with autocast(setup.device, recipe.precision):
                    outputs = network(micro_batch.images)
                    loss = setup.criterion(
                        outputs, micro_batch.targets, micro_batch.mix, micro_batch.weights
                    )
                # In fp16 small gradients would round to 0, so scale the loss before backward.
                train_state.scaler.scale(loss * micro_batch.loss_weight).backward()
            step_loss += _add_to_metrics(setup.metrics, loss, outputs, micro_batch)

        # Check before the step: afterwards a NaN would be in the weights and in the checkpoint.
        norm = train_state.gradient_norm()
        now = Step(epoch=state.epoch, step=step, batch=batch, loss=step_loss, norm=norm)
        signum = _agree_to_stop(job, stop, now)
        train_state.clip(norm)
        train_state.step(lr, state.epoch * steps + step)

        job.progress.step(len(batch.indices) * setup.world.size, setup.metrics.compute)
        if job.observers.wants("step_end"):
            job.observers.notify(
                "step_end", run=job.run, epoch=state.epoch + 1, step=step, loss=loss.detach()
            )
        if signum or _save_due(recipe, step + 1, steps):
            sums = setup.metrics.total(setup.world, setup.device)
            seconds = time.perf_counter() - began
            job.save(train_state.state(state, step=step + 1, seconds=seconds, epoch_metrics=sums))
            job.stop_on(signum)


def _saving_on_bad_files(
    job: Fit, state: Checkpoint, loader: Iterator[Batch], began: float
) -> Iterator[Batch]:
    """Yield the batches; if a file cannot be decoded, save a checkpoint before raising the error.

    A stream finds broken files only when it reads them, which may be hours after the start.
    """
    setup, step = job.setup, state.step
    try:
        for batch in loader:
            yield batch
            step += 1
    except DatasetCorruptError as error:
        # With several processes, only this one would wait for the sum of all metrics.
        if setup.world.size > 1:
            raise
        sums = setup.metrics.total(setup.world, setup.device)
        seconds = time.perf_counter() - began
        job.save(setup.train_state.state(state, step=step, seconds=seconds, epoch_metrics=sums))
        raise DatasetCorruptError(
            error.message,
            f"put a sound file in its place, then: cnnzoo train --resume {job.run.path}",
        ) from error


def _batches(setup: Setup, epoch: int, first: int) -> Iterator[Batch]:
    """Yield the epoch's batches, starting at step `first`.

    All randomness depends only on (seed, epoch, step) and, for dropout, on the rank.
    """
    recipe, world, device = setup.recipe, setup.world, setup.device
    # With a sampler, `indices` number the draws: an image that is drawn twice is augmented twice.
    order = setup.order(epoch)
    loader = batches(
        setup.drawn(epoch),
        setup.preprocessing,
        recipe.batch_size,
        device=device,
        draws=Augmentation.of(recipe).draws(recipe.seed, epoch),
        rank=world.rank,
        world=world.size,
        workers=setup.workers,
        first=first,
    )
    memory_format = FORMATS[recipe.memory_format]
    key = key_of(recipe.seed, epoch, f"rank {world.rank}") >> 2
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    for step, batch in enumerate(loader, first):
        # Dropout uses torch's generators. They are reseeded at each step, so checkpoints need no
        # random state.
        for generator in generators:
            generator.manual_seed(key + step)
        images = batch.images.contiguous(memory_format=memory_format)
        indices = batch.indices if order is None else order[batch.indices]
        changed = images is not batch.images or order is not None
        yield replace(batch, images=images, indices=indices) if changed else batch


def _micro_batches(
    batch: Batch, size: int, network: nn.Module
) -> Iterator[tuple[Batch, AbstractContextManager[Any]]]:
    """Yield each micro-batch with a context manager for its forward and backward pass.

    Gradients are all-reduced once, in the last micro-batch, when .grad holds the sum over all
    micro-batches.
    """
    micro_batches = list(batch.micro_batches(size))
    for number, micro_batch in enumerate(micro_batches, 1):
        if number < len(micro_batches) and isinstance(network, DistributedDataParallel):
            yield micro_batch, network.no_sync()
        else:
            yield micro_batch, nullcontext()


def _add_to_metrics(
    metrics: EpochMetrics, loss: Tensor, outputs: Any, micro_batch: Batch
) -> float:
    """Add a micro-batch to the metrics; return its weighted share of the step's loss.

    A micro-batch with loss weight 0 is skipped: it repeats samples so that every process takes the
    same number of steps. If there are several outputs, the first holds the main logits and the
    others come from auxiliary heads.
    """
    value = loss.item()
    if micro_batch.loss_weight:
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        metrics.add(value, logits, micro_batch.targets)
    return value * micro_batch.loss_weight


def _agree_to_stop(job: Fit, stop: Stop, step: Step) -> int:
    """Return the signal that asked any process to stop, or 0; the same in all processes.

    Raises:
        NumericalError: the loss or a gradient is not finite in some process. Overflow caused by
            loss scaling is not an error: the scaler skips that step.
    """
    setup, train_state = job.setup, job.setup.train_state
    finite = math.isfinite(step.loss) and (math.isfinite(step.norm) or train_state.may_overflow)
    signum, bad = setup.world.max([stop.signum, not finite], setup.device)
    if bad:
        raise non_finite_error(
            setup.model,
            step,
            micro_batch_size=setup.micro_batch_size,
            precision=setup.recipe.precision,
        )
    return int(signum)


def _save_due(recipe: Recipe, done: int, steps: int) -> bool:
    """Whether to save after `done` of `steps`; the last step is saved with the epoch."""
    return recipe.save_steps > 0 and done % recipe.save_steps == 0 and done < steps


def _finish_epoch(job: Fit, state: Checkpoint, *, began: float, stop: Stop) -> Checkpoint:
    """Validate, save, and notify observers; return the state for the next epoch."""
    setup, train_state, epoch = job.setup, job.setup.train_state, state.epoch + 1
    sums = setup.metrics.total(setup.world, setup.device)
    train_seconds = time.perf_counter() - began

    def on_batch() -> None:
        # Save with all steps done, so that a resumed run repeats only the validation.
        if stop.signum and setup.world.size == 1:
            job.save(
                train_state.state(
                    state, step=setup.steps, seconds=train_seconds, epoch_metrics=sums
                )
            )
            job.stop_on(stop.signum)

    if setup.recipe.precise_batchnorm:
        estimate_statistics(setup, _batches(setup, state.epoch, 0))
    # Compute the training metrics first: validation reuses the same metrics object.
    setup.metrics.load(sums, training=True)
    line = {
        "epoch": epoch,
        **setup.metrics.compute("train/"),
        **_validate(setup, on_batch),
        "lr": learning_rate(setup.recipe, state.epoch),
        "images_per_second": round(len(setup.train) / train_seconds, 1),
        "seconds": round(time.perf_counter() - began, 3),
    }
    # Outputs that are not finite give no score. Record NaN: without an entry, it would look as if
    # there were no validation.
    line = {setup.monitor[0]: math.nan, **line} if "val/not_finite" in line else line
    state = _after_epoch(train_state, state, line, setup.monitor)
    # Save before notifying, so that a failing observer does not lose the epoch.
    job.save(state)
    job.progress.epoch(epoch, line)
    job.observers.notify("epoch_end", run=job.run, epoch=epoch, metrics=line)
    job.observers.notify("checkpoint", run=job.run, epoch=epoch)
    job.stop_on(setup.world.max([stop.signum], setup.device)[0])
    return state


def _validate(setup: Setup, on_batch: Callable[[], None]) -> dict[str, float]:
    """Evaluate the network on the validation images; return {} if there are none."""
    if len(setup.validation) == 0:
        return {}
    metrics = evaluate_split(setup.train_state.eval_model, setup.validation, setup, on_batch)
    return {f"val/{name}": value for name, value in metrics.items()}


def _after_epoch(
    train_state: TrainState,
    previous: Checkpoint,
    line: dict[str, float],
    monitor: tuple[str, bool],
) -> Checkpoint:
    """Return the state after an epoch; without a monitored metric the last epoch is the best."""
    epoch, (name, higher_is_better) = int(line["epoch"]), monitor
    score = line.get(name)
    improved = score is None or is_better(score, previous.best, higher_is_better)
    return train_state.state(
        previous,
        epoch=epoch,
        step=0,
        seconds=0.0,
        epoch_metrics={},
        best=score if improved else previous.best,
        best_epoch=epoch if improved else previous.best_epoch,
        metrics=[*previous.metrics, line],
    )
