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
from cnn_core.data.batching import Batch, batches
from cnn_core.data.counter_rng import key_of
from cnn_core.plugins import Observers
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.training import resumption
from cnn_core.training.checkpoint import Checkpoint
from cnn_core.training.device import FORMATS, autocast
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.evaluation import measure
from cnn_core.training.numerics import Step, not_finite
from cnn_core.training.progress import Progress
from cnn_core.training.schedule import learning_rate
from cnn_core.training.selection import better
from cnn_core.training.setup import Setup
from cnn_core.training.signals import Stop, stop_requests
from cnn_core.training.train_state import TrainState

__all__ = ["Fit", "fit"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A training in progress: its setup, the run it writes, and who is told about it."""

    setup: Setup
    run: Run
    progress: Progress
    observers: Observers

    def save(self, state: Checkpoint) -> None:
        """Save the state; of several processes only the first writes."""
        if self.setup.world.first:
            resumption.save(self.run, self.setup, state)

    def end(self, signum: float) -> None:
        """End the training if a signal asked for it, once the first process has saved all."""
        if signum:
            self.setup.world.wait()
            raise Stop.error(int(signum))


def fit(job: Fit, state: Checkpoint) -> Checkpoint:
    """Train in place, epoch after epoch, from `state`; return the state at the end.

    A step depends on nothing but the state before it and (seed, epoch, step): on the same
    machine's CPU, resuming from any checkpoint gives the same bits as never having stopped.

    Raises:
        NumericalError: loss or gradient are not finite; before the step, and nothing is saved.
        KeyboardInterrupt, Terminated: a signal asked to stop; after the step, and all is saved.
    """
    setup, recipe = job.setup, job.setup.recipe
    setup.train_state.load(state)
    network = setup.world.wrapped(setup.model, setup.device)
    steps = setup.steps
    job.progress.start(job.run, steps, state.epoch * steps + state.step)
    job.observers.notify("fit_start", run=job.run, model=setup.model, recipe=recipe)
    with stop_requests() as stop:
        while state.epoch < recipe.epochs and not _exhausted(recipe, state):
            # An epoch that was interrupted has already taken some seconds.
            began = time.perf_counter() - state.seconds
            _train_epoch(job, network, state, began=began, stop=stop)
            state = _finish_epoch(job, state, began=began, stop=stop)
    return state


def _train_epoch(
    job: Fit, network: nn.Module, state: Checkpoint, *, began: float, stop: Stop
) -> None:
    """Take the steps of one epoch, from where `state` stands."""
    setup, recipe, train_state = job.setup, job.setup.recipe, job.setup.train_state
    steps = setup.steps
    # A saved sum is that of all processes: only one continues from it, or it would count twice.
    setup.metrics.load(state.epoch_metrics if setup.world.first else {})
    train_state.train()
    for step, batch in enumerate(_batches(setup, state.epoch, state.step), state.step):
        lr = learning_rate(recipe, state.epoch + step / steps)

        # Gradients of the micro-batches add up in .grad: the step is the whole batch's, with
        # the memory of a part.
        step_loss = 0.0
        for micro_batch, exchange in _micro_batches(batch, setup.micro_batch_size, network):
            with exchange:
                with autocast(setup.device, recipe.precision):
                    outputs = network(micro_batch.images)
                    loss = setup.criterion(
                        outputs, micro_batch.targets, micro_batch.mix, micro_batch.weights
                    )
                # In fp16 small gradients would round to 0, so backward starts from a scaled loss.
                train_state.scaler.scale(loss * micro_batch.loss_weight).backward()
            step_loss += _count(setup.metrics, loss, outputs, micro_batch)

        # Look before the step: after it a NaN would be in every weight, and in the checkpoint.
        norm = train_state.gradient_norm()
        now = Step(epoch=state.epoch, step=step, batch=batch, loss=step_loss, norm=norm)
        signum = _agreed(job, stop, now)
        train_state.clip(norm)
        train_state.step(lr, state.epoch * steps + step)

        job.progress.step(len(batch.indices) * setup.world.size, setup.metrics.compute)
        if job.observers.hear("step_end"):
            facts = {"epoch": state.epoch + 1, "step": step, "loss": loss.detach()}
            job.observers.notify("step_end", run=job.run, **facts)
        if signum or _due(recipe, step + 1, steps):
            sums = setup.metrics.total(setup.world, setup.device)
            where = {"step": step + 1, "epoch_metrics": sums}
            job.save(train_state.state(state, seconds=time.perf_counter() - began, **where))
            job.end(signum)


def _batches(setup: Setup, epoch: int, first: int) -> Iterator[Batch]:
    """Yield the epoch's batches from `first` on; randomness depends on (seed, epoch, step)."""
    recipe, world, device = setup.recipe, setup.world, setup.device
    found = batches(
        setup.train,
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
    for step, batch in enumerate(found, first):
        # Dropout draws from torch's generators: seeded anew, it needs no saved random state.
        for generator in generators:
            generator.manual_seed(key + step)
        images = batch.images.contiguous(memory_format=memory_format)
        yield batch if images is batch.images else replace(batch, images=images)


def _micro_batches(
    batch: Batch, size: int, network: nn.Module
) -> Iterator[tuple[Batch, AbstractContextManager[Any]]]:
    """Yield the batch's micro-batches, each with the context to compute it in.

    Processes exchange gradients at the last one only: by then .grad holds the sum, and an
    exchange costs the same whether it is of a part or of the whole.
    """
    micro_batches = list(batch.micro_batches(size))
    for number, micro_batch in enumerate(micro_batches, 1):
        if number < len(micro_batches) and isinstance(network, DistributedDataParallel):
            yield micro_batch, network.no_sync()
        else:
            yield micro_batch, nullcontext()


def _count(metrics: EpochMetrics, loss: Tensor, outputs: Any, micro_batch: Batch) -> float:
    """Add a micro-batch to the metrics; return its part of the step's loss.

    A repeated sample, which only keeps this process in step with the others, has no weight and
    is not counted. Of several outputs the first is the network's own, the others' are auxiliary.
    """
    value = loss.item()
    if micro_batch.loss_weight:
        logits = outputs if isinstance(outputs, Tensor) else outputs[0]
        metrics.add(value, logits, micro_batch.targets)
    return value * micro_batch.loss_weight


def _agreed(job: Fit, stop: Stop, step: Step) -> int:
    """Return the signal that asks any process to stop, or 0; all processes return the same.

    Raises:
        NumericalError: loss or gradient are not finite, in any process. A scaled loss may
            overflow the gradients: the scaler then skips that step, and it is no error.
    """
    setup, train_state = job.setup, job.setup.train_state
    finite = math.isfinite(step.loss) and (math.isfinite(step.norm) or train_state.may_overflow)
    asked, bad = setup.world.most([stop.signum, not finite], setup.device)
    if bad:
        raise not_finite(
            setup.model,
            step,
            micro_batch_size=setup.micro_batch_size,
            precision=setup.recipe.precision,
        )
    return int(asked)


def _due(recipe: Recipe, done: int, steps: int) -> bool:
    """Whether to save after `done` steps of an epoch; after its last the epoch is saved."""
    return recipe.save_steps > 0 and done % recipe.save_steps == 0 and done < steps


def _finish_epoch(job: Fit, state: Checkpoint, *, began: float, stop: Stop) -> Checkpoint:
    """Validate, save and tell; return the state that the next epoch begins with."""
    setup, train_state, epoch = job.setup, job.setup.train_state, state.epoch + 1
    sums = setup.metrics.total(setup.world, setup.device)
    trained = time.perf_counter() - began

    def on_batch() -> None:
        # All steps are taken: saved as such, the validation alone is done again.
        if stop.signum and setup.world.size == 1:
            where = {"step": setup.steps, "epoch_metrics": sums}
            job.save(train_state.state(state, seconds=trained, **where))
            job.end(stop.signum)

    # The numbers of training come first: the validation uses the same metrics.
    setup.metrics.load(sums)
    line = {
        "epoch": epoch,
        **setup.metrics.compute("train/"),
        **_validate(setup, on_batch),
        "lr": learning_rate(setup.recipe, state.epoch),
        "images_per_second": round(len(setup.train) / trained, 1),
        "seconds": round(time.perf_counter() - began, 3),
    }
    state = _after_epoch(train_state, state, line, setup.monitor)
    # Saved before anybody is told: an observer that fails costs no epoch.
    job.save(state)
    job.progress.epoch(epoch, line)
    job.observers.notify("epoch_end", run=job.run, epoch=epoch, metrics=line)
    job.observers.notify("checkpoint", run=job.run, epoch=epoch)
    job.end(setup.world.most([stop.signum], setup.device)[0])
    return state


def _validate(setup: Setup, on_batch: Callable[[], None]) -> dict[str, float]:
    """Measure the network on the images that were held out, if any were."""
    if len(setup.validation) == 0:
        return {}
    measured = measure(setup.train_state.eval_model, setup.validation, setup, on_batch)
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
    """Whether the score has not improved for as many epochs as the recipe waits."""
    return 0 < recipe.patience <= state.epoch - state.best_epoch
