"""Train a model by name, or resume a run."""

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
from cnn_core.errors import NumericalError, UsageError, ZooError
from cnn_core.files import sweep
from cnn_core.plugins import Observers, plugins
from cnn_core.registry.recorded import open_run
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run
from cnn_core.training import resumption
from cnn_core.training.allocator import keep_memory
from cnn_core.training.checkpoint import Checkpoint, Checkpoints
from cnn_core.training.device import choose_device, environment, numerical_environment
from cnn_core.training.distributed import World, joined, restarted
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.evaluation import measure
from cnn_core.training.loop import Fit, fit
from cnn_core.training.progress import progress_for
from cnn_core.training.setup import Setup, find_recipe, set_up
from cnn_core.training.signals import stop_requests
from cnn_core.training.trained import load_data
from cnn_core.weights.native import read_weights

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
    """Train `model` on `data` and return the run; or resume the run at `resume`.

    `recipe` is a name or a TOML file; `settings` override its keys. `workers` processes decode
    files that are not in memory; they change no result. A run is resumed from its last
    checkpoint, without other arguments; on a CPU it ends bit for bit as if it had never stopped.
    With `auto_resume`, and where torchrun or SLURM start again, a run of the same recipe in `out`
    is resumed. With `fit_memory` batches are computed in micro-batches that fit. `observers`
    have methods named like the hooks of a training: `cnnzoo_epoch_end(run, epoch, metrics)`.

    SIGTERM and SIGINT end the training after the step, all saved. The caller's random state stays.

    Raises:
        UsageError: an unknown name or key, or a value out of range.
        NumericalError: the loss is not finite.
    """
    folder, where = (None if path is None else Path(path) for path in (data_dir, out))
    chosen = None if resume is not None else find_recipe(model, data, recipe, settings)
    # Before the processes meet: none can have made the run yet, so all decide alike.
    if chosen and where and (auto_resume or restarted()):
        resume = where if resumption.holds_run_of(where, chosen) else None
    world, name = joined(device)
    session = Session(
        world=world,
        device=choose_device(name),
        workers=workers,
        shown=progress and world.first,
        # Observers write files and print, which only the first process may do.
        observers=Observers(plugins(), observers) if world.first else Observers(None),
        fit_memory=fit_memory,
    )
    with torch.random.fork_rng(devices=[session.device] if session.device.type == "cuda" else []):
        if resume is not None:
            return session.resume(Path(resume), folder)
        assert chosen is not None
        return session.begin(chosen, out=where, data_dir=folder, download=download)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """One call of `train`: the processes that take part, where they compute, who watches."""

    world: World
    device: torch.device
    workers: int = 0
    shown: bool = True
    observers: Observers = dataclasses.field(default_factory=partial(Observers, None))
    fit_memory: bool = False

    def begin(
        self,
        recipe: Recipe,
        *,
        out: Path | None = None,
        data_dir: Path | None = None,
        download: bool = False,
    ) -> Run:
        """Start a new run. Whatever can fail fails before anything is written."""
        # torchrun restarts the same command. Without a folder each attempt would begin a new run.
        restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
        if out is None and self.world.size > 1 and restarts != "0":
            raise UsageError("a training that may be started again needs a folder", "--out DIR")
        dataset = self._load(recipe, data_dir, download)
        # The fingerprint is of the files as they were found: decoding may leave some out.
        fingerprint = dataset.fingerprint()
        setup = self._set_up(recipe, dataset)
        if self.fit_memory:
            setup = self._fitted(setup)
        run, allocator = None, self._allocator()
        if self.world.first:
            recorded = environment(
                self.device,
                data_dir=data_dir,
                data=recipe.data,
                fingerprint=fingerprint,
                allocator=allocator,
                world=self.world.size,
            )
            run = Run.create(setup.recipe, {**recorded, "origins": _origins(recipe)}, out)
        # The default folder's name contains the time, so all take the first process's.
        run = self.world.broadcast(run)
        assert run is not None
        return self._train(run, setup, Checkpoint())

    def resume(self, path: Path, data_dir: Path | None) -> Run:
        """Resume a run; a finished one is left as it is."""
        run = open_run(path)
        state = self._last_state(run)
        # Also for a finished run: it raises if the data has changed since.
        dataset = load_data(run, data_dir)
        # A finished run with damaged weights goes on: `_train` restores them and measures them
        # again.
        if run.finished and resumption.weights_are_sound(run):
            return run
        setup = self._set_up(run.recipe, dataset, begun=bool(state.model))
        self._allocator()
        self._warn_of_changes(run, state)
        return self._train(run, setup, state)

    def _load(self, recipe: Recipe, data_dir: Path | None, download: bool) -> Dataset:
        """Load the dataset; the first process downloads for all."""
        # The others wait before they look for the files, the first process after it has them.
        if download and not self.world.first:
            self.world.wait()
        dataset = load_dataset(
            recipe.data, data_dir=data_dir, download=download and self.world.first
        )
        if download and self.world.first:
            self.world.wait()
        return dataset

    def _set_up(self, recipe: Recipe, dataset: Dataset, *, begun: bool = False) -> Setup:
        return set_up(
            recipe,
            dataset,
            self.device,
            world=self.world,
            workers=self.workers,
            begun=begun,
            shown=self.shown,
        )

    def _fitted(self, setup: Setup) -> Setup:
        """Return the setup with as many micro-batches as the process with least memory needs."""
        from cnn_core.training.finders import fitting_micro_batches

        [most] = self.world.most([fitting_micro_batches(setup)], self.device)
        recipe = dataclasses.replace(setup.recipe, accumulate=int(most))
        return dataclasses.replace(setup, recipe=recipe)

    def _allocator(self) -> str:
        return keep_memory() if self.device.type == "cpu" else "default"

    def _last_state(self, run: Run) -> Checkpoint:
        """Return the last checkpoint of a run, the same in every process.

        The first process alone removes what a killed one left behind, and chooses.
        """
        state = Checkpoint()
        if self.world.first:
            sweep(run.path)
            Checkpoints(run.state).sweep()
            state = resumption.last_state(run)
        # By name, because a checkpoint can be gigabytes: the others read the same folder.
        name = self.world.broadcast(state.name if state.model else "")
        if name and not self.world.first:
            return Checkpoints(run.state).read(name)
        return state

    def _warn_of_changes(self, run: Run, state: Checkpoint) -> None:
        """Warn of differences from where the state was saved that may change the last bits."""
        before = state.numerical_environment
        now = numerical_environment(self.device, self.world.size)
        changed = [
            f"{key} {before[key]} then, {now.get(key)} now"
            for key in before
            if before[key] != now.get(key)
        ]
        if changed and self.world.first:
            log.warning("%s: %s: the last bits may differ", run.path, "; ".join(changed))

    def _train(self, run: Run, setup: Setup, state: Checkpoint) -> Run:
        """Do what remains of a run: the epochs, then the test split."""
        now = numerical_environment(self.device, self.world.size)
        # The next checkpoints are computed here, whatever computed this one.
        state = dataclasses.replace(state, numerical_environment=now)
        if self.world.first and state.model:
            resumption.repair(run, setup, state)
        progress = progress_for(self.shown)
        try:
            job = Fit(setup=setup, run=run, progress=progress, observers=self.observers)
            state = fit(job, state)
            if not state.best_epoch:
                raise NumericalError(
                    f"{run.path}: {setup.monitor[0]} was never a number: nothing is kept"
                )
            self._test(run, setup)
        except BaseException as error:
            # A ZooError has its own hint; resuming alone would not remove its cause.
            if not isinstance(error, ZooError):
                error.add_note(f"go on with: cnnzoo train --resume {run.path}")
            raise
        finally:
            progress.stop()
        return run

    def _test(self, run: Run, setup: Setup) -> None:
        """Measure the kept weights on the test split: the last line of metrics.jsonl.

        They are read back from the file, so that the numbers are those of what is on the disk.
        """
        self.world.wait()  # for the first process to have written them
        weights, spec, recipe = read_weights(run.path), setup.dataset.spec, setup.recipe
        # Metrics once more: some take too long for every epoch, and are for the test split only.
        metrics = EpochMetrics(spec.task, weights.num_classes, recipe.topk, evaluated=recipe.data)
        testing = dataclasses.replace(setup, metrics=metrics, preprocessing=weights.preprocessing)
        model, split = build(weights).to(self.device), setup.dataset.split("test")
        with stop_requests() as stop:
            # One of several processes must not leave alone: the others would wait for it.
            on_batch = stop.obey if self.world.size == 1 else lambda: None
            measured = measure(model, split, testing, on_batch)
        line = {"epoch": weights.epoch, **{f"test/{name}": v for name, v in measured.items()}}
        if self.world.first:
            run.write_metrics([*run.history(), line])
            self.observers.notify("fit_end", run=run, metrics=line)
        self.world.wait()


def _origins(recipe: Recipe) -> dict[str, Any]:
    """Return the distributions that the model and the dataset come from."""
    return {
        "model": registry.origin(registry.models(), recipe.model),
        "data": registry.origin(registry.datasets(), recipe.data.partition(":")[0]),
    }
