"""Train a model by name, or go on with a run."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cnn_core import registry
from cnn_core.create import build
from cnn_core.data.dataset import Dataset, load_dataset
from cnn_core.errors import CorruptError, NumericalError, RunError, UsageError, ZooError
from cnn_core.files import sweep
from cnn_core.plugins import Observers, plugins
from cnn_core.registry.recorded import open_run
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.training.allocator import keep_memory
from cnn_core.training.checkpoint import Checkpoint, Checkpoints
from cnn_core.training.device import choose_device, environment, numerical_environment
from cnn_core.training.distributed import World, joined, restarted
from cnn_core.training.evaluation import load_data, measure
from cnn_core.training.loop import Fit, fit
from cnn_core.training.progress import progress_for
from cnn_core.training.setup import Setup, find_recipe, score, set_up
from cnn_core.training.signals import stop_requests
from cnn_core.weights.native import Weights, read_weights, write_weights

__all__ = ["Session", "train"]

log: logging.Logger = logging.getLogger("cnn_core")


def train(
    model: str | None = None,
    data: str | None = None,
    *,
    recipe: str | None = None,
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
    """Train `model` on `data` and return the run; or go on with the run at `resume`.

    `recipe` is the name of one, or a TOML file; `settings` override its keys. `workers` are
    processes that decode files, where they are not all in memory; they change no result. A run
    that is resumed needs nothing else: it goes on from its last checkpoint, on a CPU bit for bit
    as if it had never stopped. With `auto_resume`, and in what torchrun or SLURM start again, a
    run of the same recipe that is in `out` is gone on with. With `fit_memory` batches are computed
    in as many pieces as they need to fit. `observers` are objects with methods named like the
    hooks that watch a training, as `cnnzoo_epoch_end(run, epoch, metrics)`.

    SIGTERM and SIGINT end the training after the step, with all of it saved. The caller's random
    state is left as it was.

    Raises:
        UsageError: an unknown name or key, or a value out of range.
        NumericalError: the loss is not finite.
    """
    folder = Path(data_dir) if data_dir is not None else None
    where = Path(out) if out is not None else None
    if resume is None and where is not None and (auto_resume or restarted()):
        chosen = find_recipe(model, data, recipe, dict(settings))
        resume = where if _is_run_of(where, chosen) else None
    world, name = joined(device)
    home = choose_device(name)
    watching = Observers(plugins(), observers) if world.first else Observers(None)
    session = Session(world, home, workers, progress and world.first, watching, fit_memory)
    with torch.random.fork_rng(devices=[home] if home.type == "cuda" else []):
        if resume is not None:
            return session.go_on(Path(resume), folder)
        chosen = find_recipe(model, data, recipe, settings)
        return session.begin(chosen, where, folder, download)


@dataclasses.dataclass(frozen=True)
class Session:
    """One call of `train`: the processes that take part, where they compute, who watches."""

    world: World
    device: torch.device
    workers: int = 0
    shown: bool = True
    observers: Observers = dataclasses.field(default_factory=partial(Observers, None))
    fit_memory: bool = False

    def begin(
        self, recipe: Recipe, out: Path | None, data_dir: Path | None, download: bool
    ) -> Run:
        """Start a new run. What can fail does so before anything is written."""
        restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
        if out is None and self.world.size > 1 and restarts != "0":
            raise UsageError("a training that may be started again needs a folder", "--out DIR")
        dataset = self._loaded(recipe, data_dir, download)
        fingerprint = dataset.fingerprint()
        setup = self._set_up(recipe, dataset)
        if self.fit_memory:
            setup = self._fitted(setup)
        run = None
        if self.world.first:
            facts = (data_dir, recipe.data, fingerprint, self._allocator())
            recorded = environment(self.device, *facts, self.world.size)
            run = Run.create(setup.recipe, {**recorded, "origins": _origins(recipe)}, out)
        run = self.world.broadcast(run)
        assert run is not None
        return self._train(run, setup, Checkpoint())

    def go_on(self, path: Path, data_dir: Path | None) -> Run:
        """Go on with a run; a finished one is left as it is."""
        run = open_run(path)
        state = self._last_state(run)
        dataset = load_data(run, data_dir)
        if run.finished and _sound(run):
            return run
        setup = self._set_up(run.recipe, dataset, begun=bool(state.model))
        self._allocator()
        self._warn_of_changes(run, state)
        return self._train(run, setup, state)

    def _set_up(self, recipe: Recipe, dataset: Dataset, *, begun: bool = False) -> Setup:
        return set_up(recipe, dataset, self.device, self.world, begun=begun, shown=self.shown)

    def _fitted(self, setup: Setup) -> Setup:
        """Return what is ready, with a recipe whose batches fit in every process's memory."""
        from cnn_core.training.finders import fitting_micro_batches

        micro_batches = int(
            self.world.most([fitting_micro_batches(setup, self.device)], self.device)[0]
        )
        return dataclasses.replace(
            setup, recipe=dataclasses.replace(setup.recipe, accumulate=micro_batches)
        )

    def _loaded(self, recipe: Recipe, data_dir: Path | None, download: bool) -> Dataset:
        """Load the dataset; what is downloaded, the first process downloads for all."""
        if download and not self.world.first:
            self.world.wait()
        dataset = load_dataset(
            recipe.data, data_dir=data_dir, download=download and self.world.first
        )
        if download and self.world.first:
            self.world.wait()
        return dataset

    def _allocator(self) -> str:
        return keep_memory() if self.device.type == "cpu" else "default"

    def _last_state(self, run: Run) -> Checkpoint:
        """Return where a run stands, the same in every process."""
        state = Checkpoint()
        if self.world.first:
            sweep(run.path)
            Checkpoints(run.state).sweep()
            state = _last_state(run)
        name = self.world.broadcast(state.name if state.model else "")
        if name and not self.world.first:
            return Checkpoints(run.state).read(name)
        return state

    def _warn_of_changes(self, run: Run, state: Checkpoint) -> None:
        """Say what differs from when the state was saved, and may change the last bits."""
        now, before = (
            numerical_environment(self.device, self.world.size),
            state.numerical_environment,
        )
        changed = [
            f"{key} {before[key]} then, {now.get(key)} now"
            for key in before
            if before[key] != now.get(key)
        ]
        if changed and self.world.first:
            log.warning("%s: %s: the last bits may differ", run.path, "; ".join(changed))

    def _train(self, run: Run, setup: Setup, state: Checkpoint) -> Run:
        """Do what remains of a run: the epochs, then the test split."""
        recipe, dataset = setup.recipe, setup.dataset
        now = numerical_environment(self.device, self.world.size)
        state = dataclasses.replace(state, numerical_environment=now)
        kept, held_out = dataset.divide(recipe.validation, recipe.seed)
        progress = progress_for(self.shown)
        job = Fit(
            run=run,
            recipe=recipe,
            task=dataset.spec.task,
            train=kept,
            validation=held_out,
            workers=self.workers,
            num_classes=len(dataset.spec.classes),
            preprocessing=setup.preprocessing,
            device=self.device,
            progress=progress,
            observers=self.observers,
            monitor=score(recipe, dataset),
            save=partial(_save, run, setup) if self.world.first else _nothing,
            world=self.world,
        )
        if self.world.first and state.model:
            _mend(run, setup, state)
        try:
            state = fit(setup.model, job, state)
            if not state.best_epoch:
                raise NumericalError(
                    f"{run.path}: {job.monitor[0]} was never a number: nothing is kept"
                )
            self._test(run, dataset)
        except BaseException as error:
            if not isinstance(error, ZooError):
                error.add_note(f"go on with: cnnzoo train --resume {run.path}")
            raise
        finally:
            progress.stop()
        return run

    def _test(self, run: Run, dataset: Dataset) -> None:
        """Measure the kept weights on the test split: the last line of metrics.jsonl."""
        self.world.wait()  # for the first process to have written them
        weights = read_weights(run.path)
        with stop_requests() as stop:
            measured = measure(
                build(weights).to(self.device),
                dataset.split("test"),
                weights.preprocessing,
                run.recipe,
                dataset.spec.task,
                weights.num_classes,
                self.device,
                self.workers,
                self.world,
                stop.obey if self.world.size == 1 else lambda: None,
                eval_only=True,
            )
        line = {"epoch": weights.epoch, **{f"test/{name}": v for name, v in measured.items()}}
        if self.world.first:
            run.write_metrics([*run.history(), line])
            self.observers.notify("fit_end", run=run, metrics=line)
        self.world.wait()


def _origins(recipe: Recipe) -> dict[str, Any]:
    """Return which distributions the model and the dataset are from."""
    return {
        "model": registry.origin(registry.models(), recipe.model),
        "data": registry.origin(registry.datasets(), recipe.data.partition(":")[0]),
    }


def _nothing(state: Checkpoint) -> None:
    """Save nothing: another process does."""


def _is_run_of(path: Path, recipe: Recipe) -> bool:
    """Whether a run of this recipe is in a folder.

    Raises:
        UsageError: there is one, of another recipe.
    """
    if not (path / "recipe.toml").is_file():
        return False
    found = open_run(path).recipe
    for key in dataclasses.fields(Recipe):
        wanted, there = getattr(recipe, key.name), getattr(found, key.name)
        if key.name == "weights":
            wanted = wanted and str(Path(wanted).absolute())
        left_open = key.name in ("precision", "memory_format", "mean", "std")
        if wanted != there and not (left_open and wanted in ("auto", ())):
            raise UsageError(
                f"{path}: a run with {key.name} = {there!r}, not {wanted!r}", "another --out"
            )
    return True


def _save(run: Run, setup: Setup, state: Checkpoint) -> None:
    """Write the state, then weights if they are the best so far, then what people read.

    Stopped in between, the next start does the rest: the state has all that it needs.
    """
    Checkpoints(run.state).save(state, setup.recipe.keep)
    if state.step == 0:
        if state.best_epoch == state.epoch:
            _keep(run, setup, state)
        run.write_metrics(state.metrics)


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


def _mend(run: Run, setup: Setup, state: Checkpoint) -> None:
    """Write again what a stop in the middle of saving, or a broken disk, left behind the state.

    Raises:
        RunError: the kept weights are gone, and no checkpoint has them.
    """
    if state.best_epoch == state.epoch and state.step == 0:
        _keep(run, setup, state)
    elif state.best_epoch and not _sound(run):
        best = Checkpoints(run.state).best(state.best_epoch)
        if best is None:
            raise _lost(run, run.weights)
        log.warning("%s: written again, from %s", run.weights, best.name)
        _keep(run, setup, best)
    run.write_metrics(state.metrics)


def _sound(run: Run) -> bool:
    """Whether the kept weights are there, and what was written."""
    try:
        read_weights(run.path)
    except (UsageError, CorruptError):
        return False
    return True


def _last_state(run: Run) -> Checkpoint:
    """Return where a run stands; an empty state if nothing was saved yet.

    Raises:
        CheckpointCorruptError: there are checkpoints, and none is sound.
        RunError: the state is gone, or weights that it cannot give back; nothing is changed.
    """
    checkpoints = Checkpoints(run.state)
    state = checkpoints.newest()
    if state is None:
        if run.weights.is_file() or run.history():
            raise _lost(run, run.state)
        return Checkpoint()
    return state


def _lost(run: Run, path: Path) -> RunError:
    return RunError(
        f"{run.path}: not a whole run: {path.relative_to(run.path)} is missing",
        "restore it from a copy, or train again into another directory",
    )
