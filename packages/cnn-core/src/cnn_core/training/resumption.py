"""The files of a run while it is trained: save them, find where training stands, repair them.

A stop may come between any two writes. The checkpoint is written first and has all that the other
files are made from, so the next start writes again what is missing behind it.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from cnn_core.errors import CorruptError, RunError, UsageError
from cnn_core.registry.recorded import open_run
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.training.checkpoint import Checkpoint, Checkpoints
from cnn_core.training.setup import Setup
from cnn_core.weights.native import Weights, read_weights, write_weights

__all__ = ["holds_run_of", "last_state", "repair", "save", "weights_are_sound"]

log: logging.Logger = logging.getLogger("cnn_core")


def holds_run_of(path: Path, recipe: Recipe) -> bool:
    """Whether a run of this recipe is in a folder.

    Raises:
        UsageError: there is one, of another recipe; names the first key that differs.
    """
    if not (path / "recipe.toml").is_file():
        return False
    found = open_run(path).recipe
    for key in dataclasses.fields(Recipe):
        wanted, there = getattr(recipe, key.name), getattr(found, key.name)
        # A run records the absolute path, so that it can be resumed from another directory.
        if key.name == "weights":
            wanted = wanted and str(Path(wanted).absolute())
        # The run has recorded a choice that the recipe left to the machine or to the weights.
        left_open = key.name in ("precision", "memory_format", "mean", "std")
        if wanted != there and not (left_open and wanted in ("auto", ())):
            raise UsageError(
                f"{path}: a run with {key.name} = {there!r}, not {wanted!r}", "another --out"
            )
    return True


def last_state(run: Run) -> Checkpoint:
    """Return the newest sound checkpoint of a run; an empty one if nothing was saved yet.

    Raises:
        CheckpointCorruptError: there are checkpoints, and none is sound.
        RunError: epochs have ended, and no checkpoint is there; nothing is changed.
    """
    state = Checkpoints(run.state).newest()
    if state is not None:
        return state
    # Epochs have ended, so the checkpoints are lost. Starting again would overwrite the results.
    if run.weights.is_file() or run.history():
        raise _lost(run, run.state)
    return Checkpoint()


def save(run: Run, setup: Setup, state: Checkpoint) -> None:
    """Write the checkpoint, then weights if they are the best so far, then the metrics."""
    Checkpoints(run.state).save(state, setup.recipe.keep)
    # Within an epoch there is no line of metrics yet, and no score to choose weights by.
    if state.step == 0:
        if state.best_epoch == state.epoch:
            _keep(run, setup, state)
        run.write_metrics(state.metrics)


def repair(run: Run, setup: Setup, state: Checkpoint) -> None:
    """Write again what a stop in the middle of `save`, or a broken disk, left out of date.

    Raises:
        RunError: the kept weights are gone, and no checkpoint has them.
    """
    # The weights may be intact but out of date: a stop may have come right after the checkpoint.
    if state.best_epoch == state.epoch and state.step == 0:
        _keep(run, setup, state)
    elif state.best_epoch and not weights_are_sound(run):
        best = Checkpoints(run.state).best(state.best_epoch)
        if best is None:
            raise _lost(run, run.weights)
        log.warning("%s: written again, from %s", run.weights, best.name)
        _keep(run, setup, best)
    run.write_metrics(state.metrics)


def weights_are_sound(run: Run) -> bool:
    """Whether the kept weights are there, and unchanged since they were written."""
    try:
        read_weights(run.path)
    except (UsageError, CorruptError):
        return False
    return True


def _keep(run: Run, setup: Setup, state: Checkpoint) -> None:
    """Write weights.safetensors."""
    spec = setup.dataset.spec
    weights = Weights(
        tensors=state.kept,
        model=run.recipe.model,
        num_classes=len(spec.classes),
        in_channels=spec.image[0],
        options=run.recipe.options,
        classes=spec.classes,
        preprocessing=setup.preprocessing,
        epoch=state.epoch,
    )
    write_weights(run.weights, weights)


def _lost(run: Run, path: Path) -> RunError:
    return RunError(
        f"{run.path}: not a whole run: {path.relative_to(run.path)} is missing",
        "restore it from a copy, or train again into another directory",
    )
