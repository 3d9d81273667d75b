"""Train a model by name, or resume a run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cnn_core import registry
from cnn_core.create import build
from cnn_core.data.augment import IGNORED
from cnn_core.data.dataset import Dataset, load_dataset, object_name
from cnn_core.data.mask_image import hexadecimal
from cnn_core.data.splits import Files
from cnn_core.errors import (
    CorruptError,
    NumericalError,
    UsageError,
    WeightsMissingError,
    ZooError,
)
from cnn_core.files import expanded, sweep
from cnn_core.plugins import Observers, plugins
from cnn_core.registry.recorded import open_run
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.specs import DatasetSpec
from cnn_core.tasks import collapse_of, may_have_thresholds, thresholds_of
from cnn_core.text import printable
from cnn_core.training import resumption
from cnn_core.training.allocator import keep_memory
from cnn_core.training.checkpoint import Checkpoint, Checkpoints
from cnn_core.training.data_checks import checked
from cnn_core.training.device import choose_device, environment, numerical_environment
from cnn_core.training.distributed import World, is_restart, join_processes
from cnn_core.training.evaluation import evaluate_split, metrics_for, require_finite
from cnn_core.training.initial_weights import advice, fetch_initial, read_initial
from cnn_core.training.loop import Fit, fit
from cnn_core.training.progress import progress_for
from cnn_core.training.setup import Setup, find_recipe, free_keys, set_up
from cnn_core.training.signals import stop_requests
from cnn_core.training.trained import load_data
from cnn_core.training.validation import described
from cnn_core.weights.native import read_weights, write_weights

__all__ = ["Session", "train"]

log: logging.Logger = logging.getLogger("cnn_core")


def train(
    model: str | None = None,
    data: Any = None,
    *,
    recipe: str | Recipe | None = None,
    resume: str | os.PathLike[str] | None = None,
    auto_resume: bool = False,
    fit_memory: bool = False,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
    observers: Iterable[Any] = (),
    **settings: Any,
) -> Run:
    """Train `model` on `data` and return the run; or resume the run at `resume`.

    `data` is the name of a dataset, or an object that `load_dataset` accepts. A run does not
    record an object: give it again to resume or to evaluate the run.

    `recipe` is the name of a recipe or the path of a TOML file; `settings` override its keys. A
    complete `Recipe` is trained as it is. With `download`, a missing dataset and missing published
    weights are fetched. `workers` processes decode files when streaming; their number does not
    affect results.

    With `resume`, only `epochs`, `data_dir`, `device`, `workers`, `progress`, `observers` and an
    object as `data` apply; the recipe is the run's own. On the same CPU, a resumed run gives
    bit-identical results. A larger `epochs` is possible only if the schedule does not depend on
    the number of epochs. With `auto_resume`, or when torchrun or SLURM restarts the job, a run
    with the same recipe in `out` is resumed. With `fit_memory`, batches are split into
    micro-batches that fit in memory. `observers` are objects with methods named after the training
    hooks, for example `cnnzoo_epoch_end(run, epoch, metrics)`.

    SIGTERM and SIGINT stop the run after the current step and save a checkpoint. The caller's
    random state is restored.

    Raises:
        UsageError: a name, a key or a value is invalid, or model and dataset are incompatible.
        NumericalError: the loss or a gradient is not finite, or the monitored metric was NaN in
            every epoch.
    """
    name = None if data is None else object_name(data)
    new_recipe, epochs, free = None, None, frozenset[str]()
    if resume is None:
        new_recipe = _complete(model, name, recipe, settings)
        if not isinstance(recipe, Recipe):
            free = free_keys(model, name, recipe, settings)
    else:
        fixed = (model, isinstance(data, str), recipe, out)
        epochs = _epochs_alone(resume, fixed, settings)
    data_path, out_path = (None if path is None else expanded(path) for path in (data_dir, out))
    open_keys = free | {"accumulate"} if fit_memory else free
    # Decide before the processes synchronise: none can have created the run yet, so all agree.
    if new_recipe and out_path and (auto_resume or is_restart()):
        same = resumption.has_run_with(out_path, new_recipe, open_keys)
        resume = out_path if same else None
    options = {"workers": workers, "given": None if isinstance(data, str) else data}
    session = _session(device, observers, progress, fit_memory=fit_memory, **options)
    with torch.random.fork_rng(devices=[session.device] if session.device.type == "cuda" else []):
        if resume is not None:
            return session.resume(expanded(resume), data_path, epochs)
        assert new_recipe is not None
        return session.start(
            new_recipe, free=free, out=out_path, data_dir=data_path, download=download
        )


def _epochs_alone(
    resume: str | os.PathLike[str], fixed: Iterable[object], settings: Mapping[str, Any]
) -> int | None:
    """Return `epochs` of the settings; raise UsageError if they or `fixed` have anything else."""
    if any((*fixed, *(settings.keys() - {"epochs"}))):
        raise UsageError(
            f"resume = '{resume}': the run has a model, data and a recipe; only epochs apply"
        )
    return settings.get("epochs")


def _complete(
    model: str | None, data: str | None, recipe: str | Recipe | None, settings: Mapping[str, Any]
) -> Recipe:
    """Return the recipe to train; raise UsageError if a complete one is to be changed."""
    if not isinstance(recipe, Recipe):
        return find_recipe(model, data, recipe, settings)
    if model or data or settings:
        raise UsageError("a complete recipe is given, which has a model, data and settings")
    return recipe


def _session(device: str, observers: Iterable[Any], progress: bool, **options: Any) -> Session:
    """Join the other processes, if there are any, and return the session of this one."""
    world, device_name = join_processes(device)
    return Session(
        world=world,
        device=choose_device(device_name),
        show_progress=progress and world.is_first,
        # Observers write files and print, which only rank 0 may do.
        observers=Observers(plugins(), observers) if world.is_first else Observers(None),
        **options,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """The context of one `train` call: processes, device, data workers and observers."""

    world: World
    device: torch.device
    workers: int = 0
    show_progress: bool = True
    observers: Observers = dataclasses.field(default_factory=partial(Observers, None))
    fit_memory: bool = False
    given: Any = None

    def start(
        self,
        recipe: Recipe,
        *,
        free: Collection[str] = (),
        out: Path | None = None,
        data_dir: Path | None = None,
        download: bool = False,
    ) -> Run:
        """Start a new run; `set_up` chooses the recipe keys in `free`.

        Setup errors are raised before anything is written.
        """
        # torchrun restarts the same command. Without `out` each attempt would create a new run.
        restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
        if out is None and self.world.size > 1 and restarts != "0":
            raise UsageError(
                "torchrun with --max-restarts needs an explicit run directory", "--out DIR"
            )
        # Check this before anything is printed or loaded. Only the first process does: it will
        # create the directory.
        if out is not None and self.world.is_first:
            Run.require_free(out)
        dataset = self._load_dataset(recipe, data_dir, download)
        # Fingerprint the files before decoding, which may skip unreadable ones.
        fingerprint = dataset.fingerprint()
        if self.show_progress and (line := advice(recipe, dataset)):
            print(line, file=sys.stderr)
        setup = self._set_up(recipe, dataset, free=free)
        if self.fit_memory:
            setup = self._with_micro_batches(setup)
        run, allocator = None, self._allocator()
        if self.world.is_first:
            recorded = environment(
                self.device,
                data_dir=data_dir,
                data=recipe.data,
                fingerprint=fingerprint,
                allocator=allocator,
                world=self.world.size,
            )
            recorded |= {**_mask_values(dataset), "origins": _origins(recipe)}
            # Beside recipe.toml, to tell whether that was edited when the run is resumed.
            recorded["recipe"] = dataclasses.asdict(setup.recipe)
            recorded["validation"] = described(setup.recipe, setup.dataset, fingerprint)
            run = Run.create(setup.recipe, recorded, out)
        # The default directory name contains the time, so all ranks use that of rank 0.
        run = self.world.broadcast(run)
        assert run is not None
        return self._train(run, setup, Checkpoint())

    def resume(self, path: Path, data_dir: Path | None, epochs: int | None = None) -> Run:
        """Resume a run, until `epochs` are done if they are given.

        A finished run with intact weights is returned unchanged.
        """
        run = open_run(path)
        resumption.require_unedited(run)
        state = self._last_state(run)
        if epochs is not None:
            run = resumption.with_epochs(run, state, epochs)
        # Load the dataset even for a finished run: this raises if the data has changed.
        dataset = load_data(run, data_dir, self.given)
        # If the weights are damaged, `_train` restores them and evaluates them again.
        complete = resumption.is_complete(run.recipe, state)
        if complete and run.finished and resumption.weights_are_intact(run):
            if self.show_progress:
                print(resumption.finished_line(run, state), file=sys.stderr)
            return run
        setup = self._set_up(run.recipe, dataset, resuming=bool(state.model))
        self._warn_of_other_weights(run)
        self._warn_of_changes(run, state)
        if epochs is not None and self.world.is_first:
            run.write_recipe()
        return self._train(run, setup, state)

    def _load_dataset(self, recipe: Recipe, data_dir: Path | None, download: bool) -> Dataset:
        """Load the dataset; rank 0 downloads it and the initial weights if necessary."""
        # All ranks pass one barrier: rank 0 after its download, the others before they load.
        if download and not self.world.is_first:
            self.world.barrier()
        dataset = load_dataset(
            recipe.data if self.given is None else self.given,
            data_dir=data_dir,
            download=download and self.world.is_first,
        )
        if download and self.world.is_first:
            fetch_initial(recipe)
            self.world.barrier()
        return dataset

    def _set_up(
        self, recipe: Recipe, dataset: Dataset, *, resuming: bool = False, **options: Any
    ) -> Setup:
        self._allocator()  # first, because decoding gains from it, too
        setup = set_up(
            recipe,
            dataset,
            self.device,
            world=self.world,
            workers=self.workers,
            resuming=resuming,
            **options,
            show_progress=self.show_progress,
        )
        return setup if resuming else checked(setup, show=self.show_progress)

    def _with_micro_batches(self, setup: Setup) -> Setup:
        """Set `accumulate` to what the process with the least memory needs."""
        from cnn_core.training.finders import fitting_micro_batches

        [micro_batches] = self.world.max([fitting_micro_batches(setup)], self.device)
        recipe = dataclasses.replace(setup.recipe, accumulate=int(micro_batches))
        return dataclasses.replace(setup, recipe=recipe)

    def _allocator(self) -> str:
        return keep_memory() if self.device.type == "cpu" else "default"

    def _last_state(self, run: Run) -> Checkpoint:
        """Return the last checkpoint of a run, the same on every rank.

        Only rank 0 cleans up after killed processes and picks the checkpoint.
        """
        state = Checkpoint()
        if self.world.is_first:
            sweep(run.path)
            Checkpoints(run.state).sweep()
            state = resumption.last_state(run)
        # Broadcast only the name: checkpoints can be gigabytes, and all ranks can read the folder.
        name = self.world.broadcast(state.name if state.model else "")
        if name and not self.world.is_first:
            return Checkpoints(run.state).read(name)
        return state

    def _warn_of_changes(self, run: Run, state: Checkpoint) -> None:
        """Warn if the environment changed in ways that may change the last bits of the results."""
        previous = state.numerical_environment
        now = numerical_environment(self.device, self.world.size)
        changed = [
            f"{key} was {previous[key]}, now {now.get(key)}"
            for key in previous
            if previous[key] != now.get(key)
        ]
        if changed and self.world.is_first:
            log.warning(
                "%s: %s; the last bits of the results may differ", run.path, "; ".join(changed)
            )

    def _warn_of_other_weights(self, run: Run) -> None:
        """Warn if the weights that the run started from have changed; it no longer needs them."""
        # They may be gone, or belong to a package that is no longer installed.
        with contextlib.suppress(UsageError, WeightsMissingError):
            try:
                if run.recipe.weights and self.world.is_first:
                    read_initial(run.recipe)
            except CorruptError as error:
                log.warning("%s", error.message)

    def _train(self, run: Run, setup: Setup, state: Checkpoint) -> Run:
        """Train the remaining epochs, then evaluate the saved weights."""
        now = numerical_environment(self.device, self.world.size)
        # New checkpoints record the current environment, not that of the one resumed from.
        state = dataclasses.replace(state, numerical_environment=now)
        if self.world.is_first and state.model:
            resumption.repair(run, setup, state)
        progress = progress_for(self.show_progress)
        try:
            job = Fit(setup=setup, run=run, progress=progress, observers=self.observers)
            state = fit(job, state)
            if not state.best_epoch:
                raise NumericalError(
                    f"{run.path}: {setup.monitor[0]} was NaN in every epoch; no weights were "
                    "saved",
                    "try a lower --lr, --set clip_norm=1, or a smaller --batch-size",
                )
            if self.world.is_first:
                _warn_without_score(setup, state)
            self._choose_thresholds(run, setup)
            self._evaluate(run, setup)
        except BaseException as error:
            # A ZooError has its own hint, and resuming would not fix its cause.
            if not isinstance(error, ZooError):
                error.add_note(f"resume with: cnnzoo train --resume {run.path}")
            raise
        finally:
            progress.stop()
        return run

    def _choose_thresholds(self, run: Run, setup: Setup) -> None:
        """Choose thresholds on the validation images, if the task has any, for the saved weights.

        The weights are those of the best epoch, so this comes after the last one.
        """
        task, recipe = setup.dataset.spec.task, setup.recipe
        if not may_have_thresholds(task, recipe):
            return
        if len(setup.validation) == 0:
            log.warning("no validation images to choose thresholds on: each is 0.5")
            return
        self.world.barrier()  # wait until rank 0 has written the weights
        weights = read_weights(run.path)
        # Those of an evaluation, since for pixels the metrics of an epoch keep no scores.
        metrics = metrics_for(weights, task, recipe)
        scored = dataclasses.replace(setup, metrics=metrics)
        evaluate_split(build(weights).to(self.device), setup.validation, scored)
        thresholds = thresholds_of(task, metrics.sums(), recipe)
        if self.world.is_first:
            write_weights(run.weights, dataclasses.replace(weights, thresholds=thresholds))

    def _evaluate(self, run: Run, setup: Setup) -> None:
        """Evaluate the saved weights, usually on the test split; append to metrics.jsonl.

        The weights are reloaded, so that the metrics describe the file on disk.
        """
        self.world.barrier()  # wait until rank 0 has written the weights
        weights, spec, recipe = read_weights(run.path), setup.dataset.spec, setup.recipe
        # Use new metrics, which include the slow ones that are skipped during training.
        metrics = metrics_for(weights, spec.task, recipe)
        final_setup = dataclasses.replace(
            setup, metrics=metrics, preprocessing=weights.preprocessing
        )
        on_test = recipe.evaluate_on == "test"
        split = setup.dataset.split("test") if on_test else setup.validation
        model = build(weights).to(self.device)
        with stop_requests() as stop:
            # With several ranks, a single one must not stop: the others would wait for it forever.
            on_batch = stop.raise_if_requested if self.world.size == 1 else lambda: None
            results = evaluate_split(model, split, final_setup, on_batch)
        line = {
            "epoch": weights.epoch,
            **{f"{recipe.evaluate_on}/{name}": v for name, v in results.items()},
        }
        if self.world.is_first:
            collapsed = "" if metrics.not_finite else _collapse(spec, metrics.sums())
            if collapsed:
                log.warning("%s: %s", run.path, collapsed)
            run.write_metrics([*run.history(), line])
            self.observers.notify("fit_end", run=run, metrics=line)
        self.world.barrier()
        require_finite(results, recipe.evaluate_on, str(run.path))


def _warn_without_score(setup: Setup, state: Checkpoint) -> None:
    """Warn if the monitored metric was never defined, as the recall of a class without images."""
    name = setup.monitor[0]
    if len(setup.validation) and not any(name in line for line in state.metrics):
        log.warning("%s was not defined in any epoch: the last epoch was kept", printable(name))


def _collapse(spec: DatasetSpec, sums: Mapping[str, Tensor]) -> str:
    """Return a line if everything was predicted as one class, though the split has several.

    `sums` are those of all metrics of the task, over the test split.
    """
    only = collapse_of(spec.task, sums)
    if only is None:
        return ""
    pixels = spec.task == "segmentation"
    what = "pixels of the test images" if pixels else "test images"
    name = f"'{printable(spec.classes[only])}'" if only >= 0 else "no class"
    return (
        f"all {what} are predicted as {name}; try another lr, "
        f"more epochs, {'balance=true' if pixels else 'class_weights=balanced'}, or more images "
        "of the other classes"
    )


def _mask_values(dataset: Dataset) -> dict[str, Any]:
    """Return what the values of mask files mean, for the run to record; empty without such files.

    It is the class of each value, and null for values that are ignored.
    """
    train = dataset.split("train")
    if not isinstance(train, Files) or not train.values:
        return {}
    classes = dataset.spec.classes
    return {
        "mask_values": {
            hexadecimal(value) if train.in_colour else str(value): (
                None if number == IGNORED else classes[number]
            )
            for value, number in sorted(train.values.items())
        }
    }


def _origins(recipe: Recipe) -> dict[str, Any]:
    """Return the Python packages that provide the model and the dataset."""
    return {
        "model": registry.origin(registry.models(), recipe.model),
        "data": registry.origin(registry.datasets(), recipe.data.partition(":")[0]),
    }
