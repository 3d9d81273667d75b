"""The training loop."""

from __future__ import annotations

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
from cnn_core.data.batching import Batch, batch_sizes, batches
from cnn_core.data.counter_rng import key_of
from cnn_core.data.dataset import Files, Split
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.plugins import Observers
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.tasks import loss_of
from cnn_core.training.checkpoint import Checkpoint
from cnn_core.training.device import FORMATS, autocast
from cnn_core.training.distributed import ALONE, World
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.evaluation import measure
from cnn_core.training.numerics import not_finite
from cnn_core.training.progress import Progress
from cnn_core.training.schedule import learning_rate
from cnn_core.training.selection import better
from cnn_core.training.signals import Stop, stop_requests
from cnn_core.training.train_state import TrainState

__all__ = ["Fit", "fit"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a training works on and reports to.

    `monitor` is the number of an epoch that chooses the weights, and whether more of it is better;
    `save` writes a state.
    """

    run: Run
    recipe: Recipe
    task: str
    train: Split | Files
    validation: Split | Files
    workers: int
    num_classes: int
    preprocessing: Preprocessing
    device: torch.device
    progress: Progress
    observers: Observers
    monitor: tuple[str, bool]
    save: Callable[[Checkpoint], None]
    world: World = ALONE

    @property
    def micro_batch_size(self) -> int:
        """Samples that a process computes at once."""
        return -(-self.recipe.batch_size // (self.world.size * self.recipe.accumulate))

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return len(batch_sizes(len(self.train), self.recipe.batch_size, training=True))


def fit(model: nn.Module, job: Fit, state: Checkpoint) -> Checkpoint:
    """Train `model` in place, epoch after epoch, from `state`; return the state at the end.

    A step depends on nothing but the state before it and (seed, epoch, step): going on from any
    checkpoint gives, on the same machine's CPU, the same bits as never having stopped.

    Raises:
        NumericalError: loss or gradient are not finite; before the step, and nothing is saved.
        KeyboardInterrupt, Terminated: a signal asked to stop; after the step, and all is saved.
    """
    recipe, steps = job.recipe, job.steps
    train_state = TrainState(model, recipe, job.device)
    train_state.load(state)
    network = job.world.wrapped(model, job.device)
    criterion = loss_of(job.task, recipe)
    job.progress.start(job.run, steps, state.epoch * steps + state.step)
    job.observers.notify("fit_start", run=job.run, model=model, recipe=recipe)

    with stop_requests() as stop:
        while state.epoch < recipe.epochs and not _exhausted(recipe, state):
            epoch, began = state.epoch, time.perf_counter() - state.seconds
            epoch_metrics = _resumed_metrics(job, state)
            train_state.train()
            for step, batch in enumerate(_training_batches(job, epoch, state.step), state.step):
                lr = learning_rate(recipe, epoch + step / steps)
                value = 0.0
                for micro_batch, context in _micro_batches(batch, job.micro_batch_size, network):
                    with context:
                        with autocast(job.device, recipe.precision):
                            outputs = network(micro_batch.images)
                            loss = criterion(
                                outputs, micro_batch.targets, micro_batch.mix, micro_batch.weights
                            )
                        train_state.scaler.scale(_shared(loss, micro_batch.loss_weight)).backward()
                    value += _note(epoch_metrics, loss, outputs, micro_batch)
                norm = train_state.gradient_norm()
                asked = _agreed(job, stop, train_state, batch, value, norm, epoch, step)
                train_state.clip(norm)
                train_state.step(lr, epoch * steps + step)

                job.progress.step(len(batch.indices) * job.world.size, epoch_metrics.compute)
                if job.observers.wants("step_end"):
                    facts = {"epoch": epoch + 1, "step": step, "loss": loss.detach()}
                    job.observers.notify("step_end", run=job.run, **facts)
                if asked or _due(recipe, step + 1, steps):
                    sums = _sums(job, epoch_metrics)
                    where = {"epoch": epoch, "step": step + 1, "epoch_metrics": sums}
                    job.save(
                        train_state.state(state, seconds=time.perf_counter() - began, **where)
                    )
                    _end(job, asked)
            state = _finish_epoch(job, train_state, state, epoch_metrics, began, stop)
    return state


def _resumed_metrics(job: Fit, state: Checkpoint) -> EpochMetrics:
    """Return the epoch's loss and metrics so far; what all processes saw is with the first."""
    epoch_metrics = EpochMetrics(job.task, job.num_classes, job.recipe.topk)
    epoch_metrics.load(state.epoch_metrics if job.world.first else {})
    return epoch_metrics


def _sums(job: Fit, epoch_metrics: EpochMetrics) -> dict[str, Tensor]:
    """Return the sums of all processes' losses and metrics; each goes on with its own."""
    sums = {name: tensor.clone().to(job.device) for name, tensor in epoch_metrics.sums().items()}
    job.world.sum(sums.values())
    return sums


def _training_batches(job: Fit, epoch: int, first: int) -> Iterator[Batch]:
    """Yield the epoch's batches from `first` on; what is random depends on (seed, epoch, step)."""
    recipe = job.recipe
    found = batches(
        job.train,
        job.preprocessing,
        recipe.batch_size,
        device=job.device,
        draws=Augmentation.of(recipe).draws(recipe.seed, epoch),
        rank=job.world.rank,
        world=job.world.size,
        workers=job.workers,
        first=first,
    )
    memory_format = FORMATS[recipe.memory_format]
    key = key_of(recipe.seed, epoch, f"rank {job.world.rank}") >> 2
    generators = [torch.default_generator]
    if job.device.type == "cuda":
        generators.append(torch.cuda.default_generators[job.device.index or 0])
    for step, batch in enumerate(found, first):
        for generator in generators:  # dropout
            generator.manual_seed(key + step)
        images = batch.images.contiguous(memory_format=memory_format)
        yield batch if images is batch.images else replace(batch, images=images)


def _micro_batches(
    batch: Batch, size: int, network: nn.Module
) -> Iterator[tuple[Batch, AbstractContextManager[Any]]]:
    """Yield the batch's pieces; processes exchange gradients at the last one only."""
    micro_batches = list(batch.micro_batches(size))
    for number, micro_batch in enumerate(micro_batches, 1):
        if number < len(micro_batches) and isinstance(network, DistributedDataParallel):
            yield micro_batch, network.no_sync()
        else:
            yield micro_batch, nullcontext()


def _shared(loss: Tensor, loss_weight: float) -> Tensor:
    return loss if loss_weight == 1 else loss * loss_weight


def _note(epoch_metrics: EpochMetrics, loss: Tensor, outputs: Any, micro_batch: Batch) -> float:
    """Count a piece in; return its part of the step's loss."""
    value = loss.item()
    if micro_batch.loss_weight:
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        epoch_metrics.add(value, logits, micro_batch.targets)
    return value * micro_batch.loss_weight


def _agreed(
    job: Fit,
    stop: Stop,
    train_state: TrainState,
    batch: Batch,
    loss: float,
    norm: float,
    epoch: int,
    step: int,
) -> int:
    """Return the signal that asks any process to stop, or 0, before the step is taken.

    Raises:
        NumericalError: loss or gradient are not finite, in any process. With a scaled loss
            gradients may overflow: that step is left out.
    """
    finite = math.isfinite(loss) and (math.isfinite(norm) or train_state.may_overflow)
    asked, bad = job.world.most([stop.signum, not finite], job.device)
    if bad:
        how = (job.micro_batch_size, job.recipe.precision)
        raise not_finite(train_state.model, batch, loss, norm, epoch, step, *how)
    return int(asked)


def _due(recipe: Recipe, done: int, steps: int) -> bool:
    return recipe.save_steps > 0 and done % recipe.save_steps == 0 and done < steps


def _end(job: Fit, signum: float) -> None:
    """End the training if a signal asked for it, when the first process has saved all."""
    if signum:
        job.world.wait()
        raise Stop.error(int(signum))


def _finish_epoch(
    job: Fit,
    train_state: TrainState,
    state: Checkpoint,
    epoch_metrics: EpochMetrics,
    began: float,
    stop: Stop,
) -> Checkpoint:
    """Measure, save and tell; return the state that the next epoch begins with."""
    epoch = state.epoch
    sums = _sums(job, epoch_metrics)
    trained = time.perf_counter() - began

    def on_batch() -> None:
        """End in the middle of measuring: all steps are taken, and will be measured again."""
        if stop.signum and job.world.size == 1:
            job.save(
                train_state.state(
                    state, epoch=epoch, step=job.steps, epoch_metrics=sums, seconds=trained
                )
            )
            _end(job, stop.signum)

    measured = _validate(job, train_state.best_guess, on_batch)
    epoch_metrics.load(sums)
    line = {
        "epoch": epoch + 1,
        **epoch_metrics.compute("train/"),
        **measured,
        "lr": learning_rate(job.recipe, epoch),
        "images_per_second": round(len(job.train) / trained, 1),
        "seconds": round(time.perf_counter() - began, 3),
    }
    state = _after_epoch(train_state, state, line, job.monitor)
    job.save(state)
    job.progress.epoch(epoch + 1, line)
    job.observers.notify("epoch_end", run=job.run, epoch=epoch + 1, metrics=line)
    job.observers.notify("checkpoint", run=job.run, epoch=epoch + 1)
    _end(job, job.world.most([stop.signum], job.device)[0])
    return state


def _validate(job: Fit, model: nn.Module, on_batch: Callable[[], None]) -> dict[str, float]:
    """Measure the model on what was held out, if anything was."""
    if len(job.validation) == 0:
        return {}
    measured = measure(
        model,
        job.validation,
        job.preprocessing,
        job.recipe,
        job.task,
        job.num_classes,
        job.device,
        job.workers,
        job.world,
        on_batch,
    )
    return {f"val/{name}": value for name, value in measured.items()}


def _after_epoch(
    train_state: TrainState, before: Checkpoint, line: dict[str, float], monitor: tuple[str, bool]
) -> Checkpoint:
    """Return the state after an epoch; without validation the last epoch is the best."""
    epoch, (name, more) = int(line["epoch"]), monitor
    score = line.get(name)
    improved = score is None or better(score, before.best, more)
    return train_state.state(
        before,
        epoch=epoch,
        step=0,
        seconds=0.0,
        epoch_metrics={},
        best=score if improved else before.best,
        best_epoch=epoch if improved else before.best_epoch,
        metrics=[*before.metrics, line],
    )


def _exhausted(recipe: Recipe, state: Checkpoint) -> bool:
    """Whether the score has not become better for as many epochs as the recipe waits."""
    return 0 < recipe.patience <= state.epoch - state.best_epoch
