"""Save a run's files during training, and find and repair them when training resumes.

A run may be killed between any two writes. The checkpoint is written first and contains everything
needed to rewrite the other files, so a resumed run brings them up to date.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path

from cnn_core.errors import CorruptError, RunError, UsageError
from cnn_core.registry.recorded import open_run
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.text import printable
from cnn_core.training.checkpoint import Checkpoint, Checkpoints
from cnn_core.training.initial_weights import recorded_source
from cnn_core.training.schedule import OPEN_ENDED
from cnn_core.training.setup import Setup
from cnn_core.weights.native import Weights, read_weights, write_weights

__all__ = [
    "finished_line",
    "has_run_with",
    "is_complete",
    "last_state",
    "repair",
    "require_unedited",
    "save",
    "weights_are_intact",
    "with_epochs",
]

RESOLVED = {
    *("precision", "memory_format", "mean", "std", "weights_digest"),
    *("image_size", "fit", "resize", "interpolation", "value_range", "alpha_background"),
    *("split_seed", "fold", "pipeline"),
}
UNSET = ("auto", (), "", 0, -1)
log: logging.Logger = logging.getLogger("cnn_core")


def has_run_with(path: Path, recipe: Recipe, free: Collection[str] = ()) -> bool:
    """Whether the folder `path` contains a run with this recipe.

    The keys in `free`, which the run chose itself, may differ.

    Raises:
        UsageError: it contains a run with another recipe; the message names a key that differs.
    """
    if not (path / "recipe.toml").is_file():
        return False
    existing = open_run(path).recipe
    for key in dataclasses.fields(Recipe):
        wanted, recorded = getattr(recipe, key.name), getattr(existing, key.name)
        if key.name == "weights":
            wanted = recorded_source(recipe)
        # For these keys the run records the value that was chosen for "auto" or "not set".
        resolved = key.name in RESOLVED and wanted in UNSET
        chosen = resolved or key.name in free
        # Options that the initial weights need are recorded beside those of the recipe.
        if key.name == "options" and recipe.weights:
            chosen = wanted.items() <= recorded.items()
        if wanted != recorded and not chosen:
            longer = f", or cnnzoo train --resume {path} --epochs {wanted}"
            raise UsageError(
                f"{path}: contains a run with {key.name} = {recorded!r}, not {wanted!r}",
                "use another --out" + (longer if key.name == "epochs" else ""),
            )
    return True


def require_unedited(run: Run) -> None:
    """Raise UsageError if recipe.toml is not the recipe that the run began with.

    Other `epochs` are allowed where they change nothing in the epochs that were trained.
    """
    recorded = run.environment().get("recipe")
    if not isinstance(recorded, dict):  # a run from before it was recorded
        return
    # Not `run.recipe`, in which the names of model and dataset may have been updated.
    began, now = Recipe.from_settings(recorded), Run.open(run.path).recipe
    edited = [
        f"{key.name} = {value!r}, was {getattr(began, key.name)!r}"
        for key in dataclasses.fields(Recipe)
        if (value := getattr(now, key.name)) != getattr(began, key.name)
        and not (key.name == "epochs" and now.schedule in OPEN_ENDED)
    ]
    if edited:
        raise UsageError(
            f"{run.path / 'recipe.toml'}: was edited after training began: {'; '.join(edited)}",
            f"undo this; to continue with other settings: {_from_weights(run)}",
        )


def with_epochs(run: Run, state: Checkpoint, epochs: int) -> Run:
    """Return the run with another number of epochs; the result is as if begun with this number.

    Raises:
        UsageError: the run has trained more, has stopped by `patience`, or has a schedule that
            depends on the number of epochs.
    """
    recipe = run.recipe
    if epochs == recipe.epochs:
        return run
    if epochs <= state.epoch:
        raise UsageError(f"{run.path}: has trained {state.epoch} epochs already, not {epochs}")
    reason = f"schedule = '{recipe.schedule}' ends with epoch {recipe.epochs}"
    if recipe.schedule in OPEN_ENDED:
        reason = f"stopped after {recipe.patience} epochs without improvement"
    if recipe.schedule not in OPEN_ENDED or out_of_patience(recipe, state):
        hint = f"to train longer: {_from_weights(run)} --epochs N"
        raise UsageError(f"{run.path}: {reason}", hint)
    return dataclasses.replace(run, recipe=dataclasses.replace(recipe, epochs=epochs))


def finished_line(run: Run, state: Checkpoint) -> str:
    """Return what to tell the user of a run that is finished: how to train longer."""
    longer = f"cnnzoo train --resume {run.path} --epochs N"
    if run.recipe.schedule not in OPEN_ENDED or out_of_patience(run.recipe, state):
        longer = f"{_from_weights(run)} --epochs N"
    done = f"{state.epoch} of {run.recipe.epochs} epochs"
    return printable(f"{run.path}: is finished, {done}; to train longer: {longer}")


def _from_weights(run: Run) -> str:
    """Return the command that starts a new run from the weights of a run."""
    return f"cnnzoo train {run.recipe.model} --data {run.recipe.data} --weights {run.path}"


def is_complete(recipe: Recipe, state: Checkpoint) -> bool:
    """Whether all epochs are done, or the monitored metric has not improved for `patience`."""
    return state.epoch >= recipe.epochs or out_of_patience(recipe, state)


def out_of_patience(recipe: Recipe, state: Checkpoint) -> bool:
    """Whether the monitored metric has not improved for `recipe.patience` epochs."""
    return 0 < recipe.patience <= state.epoch - state.best_epoch


def last_state(run: Run) -> Checkpoint:
    """Return the newest intact checkpoint of a run, or an empty one if nothing was saved yet.

    Raises:
        CheckpointCorruptError: there are checkpoints, but all are corrupt.
        RunError: an epoch was finished, but there are no checkpoints.
    """
    state = Checkpoints(run.state).newest()
    if state is not None:
        return state
    # A finished epoch without a checkpoint means that the checkpoints are lost. Starting from
    # scratch would overwrite the results.
    if run.weights.is_file() or run.history():
        raise _incomplete_run(run, run.state)
    return Checkpoint()


def save(run: Run, setup: Setup, state: Checkpoint) -> None:
    """Write the checkpoint; after an epoch also the metrics, and the weights if it is the best."""
    Checkpoints(run.state).save(state, setup.recipe.keep)
    # Within an epoch there are no metrics of it yet, so the best epoch cannot change.
    if state.step == 0:
        if state.best_epoch == state.epoch:
            _write_weights(run, setup, state)
        run.write_metrics(state.metrics)


def repair(run: Run, setup: Setup, state: Checkpoint) -> None:
    """Rewrite weights and metrics that are outdated or damaged.

    This happens if the process was killed during `save`, or a file was damaged later.

    Raises:
        RunError: the saved weights are missing or damaged, and no checkpoint contains them.
    """
    # Even intact weights may be outdated, if the process was killed right after the checkpoint.
    if state.best_epoch == state.epoch and state.step == 0:
        _write_weights(run, setup, state)
    elif state.best_epoch and not weights_are_intact(run):
        best = Checkpoints(run.state).best(state.best_epoch)
        if best is None:
            raise _incomplete_run(run, run.weights)
        log.warning("%s: restored from checkpoint %s", run.weights, best.name)
        _write_weights(run, setup, best)
    run.write_metrics(state.metrics)


def weights_are_intact(run: Run) -> bool:
    """Whether the saved weights exist and have not changed since they were written."""
    try:
        read_weights(run.path)
    except (UsageError, CorruptError):
        return False
    return True


def _write_weights(run: Run, setup: Setup, state: Checkpoint) -> None:
    """Write weights.safetensors from a checkpoint."""
    spec = setup.dataset.spec
    weights = Weights(
        tensors=state.eval_weights,
        model=run.recipe.model,
        num_classes=len(spec.classes),
        in_channels=spec.image[0],
        options=run.recipe.options,
        classes=spec.classes,
        preprocessing=setup.preprocessing,
        epoch=state.epoch,
        mask_values=spec.mask_values,
        colours=spec.colours,
        background=spec.background,
        task=spec.task,
    )
    write_weights(run.weights, weights)


def _incomplete_run(run: Run, path: Path) -> RunError:
    return RunError(
        f"{run.path}: incomplete run: {path.relative_to(run.path)} is missing or damaged",
        "restore it from a backup, or train again with another --out",
    )
