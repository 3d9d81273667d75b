"""The training loop."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from cnn_core.data.augment import Augmentation
from cnn_core.data.dataset import Files, Split
from cnn_core.data.draws import key_of
from cnn_core.data.pipeline import Batch, Preprocessing, batch_sizes, batches
from cnn_core.errors import NumericalError
from cnn_core.plugins import Observers
from cnn_core.tasks import SCORES, loss_of, metrics_of
from cnn_core.tasks.classification import Mean
from cnn_core.training.checkpoint import State
from cnn_core.training.device import autocast
from cnn_core.training.evaluation import measure
from cnn_core.training.optim import Optimizer, make_optimizer
from cnn_core.training.progress import Progress
from cnn_core.training.recipe import Recipe
from cnn_core.training.run import Run
from cnn_core.training.schedule import learning_rate

__all__ = ["Fit", "fit"]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What a training works on and reports to."""

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
    save: Callable[[State], None]


def fit(model: nn.Module, job: Fit, state: State | None) -> None:
    """Train `model` in place, epoch after epoch, from `state` or from the beginning.

    An epoch depends on nothing but the state before it and (seed, epoch): going on from any
    checkpoint gives, on the same machine's CPU, the same bits as never having stopped.
    """
    recipe = job.recipe
    optimizer = make_optimizer(model, recipe)
    scaler = torch.GradScaler(job.device.type, enabled=recipe.precision == "fp16")
    state = _restore(model, optimizer, scaler, state, job.device)
    criterion = loss_of(job.task, recipe)
    steps = len(batch_sizes(len(job.train), recipe.batch_size, training=True))
    job.progress.start(job.run, steps, state.epoch)
    job.observers.notify("fit_start", run=job.run, model=model, recipe=recipe)

    for epoch in range(state.epoch, recipe.epochs):
        began = time.perf_counter()
        running, losses = metrics_of(job.task, job.num_classes, recipe.topk), Mean()
        model.train()
        for step, batch in enumerate(_training_batches(job, epoch)):
            lr = learning_rate(recipe, epoch + step / steps)
            with autocast(job.device, recipe.precision):
                outputs = model(batch.images)
                loss = criterion(outputs, batch.targets, batch.mix)
            _stop_if_not_finite(loss, epoch, step, batch)
            scaler.scale(loss).backward()
            _clip(model, optimizer, scaler, recipe.clip_norm)
            scaler.step(cast(Any, optimizer), lr)
            scaler.update()
            model.zero_grad(set_to_none=True)

            losses.add(loss, len(batch.targets))
            logits = outputs if isinstance(outputs, Tensor) else outputs[0]
            for metric in running.values():
                metric.update(logits.detach(), batch.targets)
            job.progress.step(len(batch.targets), partial(_numbers, "", losses, running))
            job.observers.notify(
                "step_end", run=job.run, epoch=epoch + 1, step=step, loss=loss.detach()
            )
        seconds = time.perf_counter() - began
        line = {
            "epoch": epoch + 1,
            **_numbers("train/", losses, running),
            **_validate(model, job),
            "lr": learning_rate(recipe, epoch),
            "images_per_second": round(len(job.train) / seconds, 1),
            "seconds": round(time.perf_counter() - began, 3),
        }
        score = line.get(f"val/{SCORES[job.task]}")
        state = _after_epoch(model, optimizer, scaler, state, line, score)
        job.save(state)
        job.progress.epoch(epoch + 1, line)
        job.observers.notify("epoch_end", run=job.run, epoch=epoch + 1, metrics=line)
        job.observers.notify("checkpoint", run=job.run, epoch=epoch + 1)


def _training_batches(job: Fit, epoch: int) -> Iterator[Batch]:
    """Return the epoch's batches; seeds all that is random in it by (seed, epoch)."""
    recipe = job.recipe
    torch.manual_seed(key_of(recipe.seed, epoch) >> 1)  # dropout
    keys = [key.name for key in dataclasses.fields(Augmentation)]
    augmentation = Augmentation(**{key: getattr(recipe, key) for key in keys})
    return batches(
        job.train,
        job.preprocessing,
        recipe.batch_size,
        device=job.device,
        draws=augmentation.draws(recipe.seed, epoch),
        workers=job.workers,
    )


def _stop_if_not_finite(loss: Tensor, epoch: int, step: int, batch: Batch) -> None:
    """Raise before a loss that is not finite reaches the weights."""
    if math.isfinite(value := loss.item()):
        return
    raise NumericalError(
        f"the loss is {value} in epoch {epoch + 1}, step {step + 1} "
        f"(samples {batch.indices[:4].tolist()} …); the last epoch's state is kept",
        "try a lower --lr, or --set clip_norm=1",
    )


def _clip(model: nn.Module, optimizer: Optimizer, scaler: Any, limit: float) -> None:
    if limit > 0:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), limit)


def _numbers(prefix: str, losses: Mean, running: Mapping[str, Any]) -> dict[str, float]:
    numbers = {f"{prefix}{name}": metric.compute() for name, metric in running.items()}
    return {f"{prefix}loss": losses.compute(), **numbers}


def _validate(model: nn.Module, job: Fit) -> dict[str, float]:
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
    )
    return {f"val/{name}": value for name, value in measured.items()}


def _restore(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.GradScaler,
    state: State | None,
    device: torch.device,
) -> State:
    """Put a checkpoint's contents where they belong; a new run has an empty one."""
    if state is None:
        return State(
            model={}, optimizer={}, scaler={}, epoch=0, best=-1.0, best_epoch=0, metrics=[]
        )
    model.load_state_dict(dict(state.model))
    for name, tensor in state.optimizer.items():
        home = torch.device("cpu") if name.startswith("step.") else device
        optimizer.state[name] = tensor.to(home)
    if state.scaler:
        scaler.load_state_dict(dict(state.scaler))
    return state


def _after_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    scaler: torch.GradScaler,
    before: State,
    line: dict[str, float],
    score: float | None,
) -> State:
    """Return the state after an epoch; without validation the last epoch is the best."""
    epoch = int(line["epoch"])
    # Of equals the later one, trained longer at a lower rate; a NaN is never better.
    better = score is None or score >= before.best
    return State(
        model=model.state_dict(),
        optimizer=optimizer.state,
        scaler=scaler.state_dict(),
        epoch=epoch,
        best=(-1.0 if score is None else score) if better else before.best,
        best_epoch=epoch if better else before.best_epoch,
        metrics=[*before.metrics, line],
    )
