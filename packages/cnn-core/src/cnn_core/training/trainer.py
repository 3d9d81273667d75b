"""Train a model by name, or go on with a run."""

from __future__ import annotations

import dataclasses
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnn_core import registry
from cnn_core.create import create_model
from cnn_core.data.dataset import Dataset, Split, load_dataset
from cnn_core.data.pipeline import Preprocessing
from cnn_core.errors import RunError, UsageError, ZooError
from cnn_core.plugins import Observers, plugins
from cnn_core.specs import ModelSpec, RecipeSpec
from cnn_core.tasks import loss_of, metrics_of
from cnn_core.text import printable
from cnn_core.training.checkpoint import (
    State,
    Weights,
    read_state,
    read_weights,
    write_state,
    write_weights,
)
from cnn_core.training.device import choose_device, environment
from cnn_core.training.evaluation import load_data, measure
from cnn_core.training.loop import Fit, fit
from cnn_core.training.progress import counting, progress_for
from cnn_core.training.recipe import Recipe, read_recipe
from cnn_core.training.run import Run

__all__ = ["find_recipe", "train"]

TILES = 2  # images a batch where pixels are classified and no recipe says how many


def train(
    model: str | None = None,
    data: str | None = None,
    *,
    recipe: str | None = None,
    resume: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Train `model` on `data` and return the run; or go on with the run at `resume`.

    `recipe` is the name of one, or a TOML file; `settings` override its keys. `workers` are
    processes that decode files, where they are not all in memory; they change no result. A run
    that is resumed needs nothing else: it goes on from its last whole epoch, on a CPU bit for bit
    as if it had never stopped. The caller's random state is left as it was.

    Raises:
        UsageError: an unknown name or key, or a value out of range.
        NumericalError: the loss is not finite.
    """
    folder = Path(data_dir) if data_dir is not None else None
    where = choose_device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        if resume is not None:
            run = Run.open(resume)
            _last_state(run)  # raises if the run is not whole
            chosen, dataset = run.recipe, load_data(run, folder)
            if run.finished and run.weights.is_file():
                return run
        else:  # what can fail does so before anything is written
            chosen = find_recipe(model, data, recipe, settings)
            registry.models().get(chosen.model)
            dataset = load_dataset(chosen.data, data_dir=folder, download=download)
            _check(chosen, dataset)
        network = _build(chosen, dataset)
        fingerprint = dataset.fingerprint()
        geometry = _geometry(chosen, registry.models().get(chosen.model), dataset)
        dataset = _placed(chosen, dataset, geometry, progress)
        preprocessing = _normalised(chosen, dataset, geometry)
        if resume is None:
            surroundings = environment(where, folder, chosen.data, fingerprint)
            run = Run.create(chosen, surroundings, Path(out) if out is not None else None)
        _train(run, network.to(where), dataset, preprocessing, where, workers, progress)
    return run


def find_recipe(
    model: str | None, data: str | None, name: str | None, settings: dict[str, Any]
) -> Recipe:
    """Return the recipe: the one named, else the default one of the pair, with `settings`."""
    spec = _recipe_spec(model, data, name)
    base = dict(spec.settings) if spec is not None else {}
    if model is not None:
        base["model"] = model
    if data is not None:
        base["data"] = data
    for key in ("model", "data"):
        if key not in base:
            raise UsageError(f"no {key} is given", "cnnzoo train MODEL --data DATASET")
    if spec is None and registry.models().get(base["model"]).task == "segmentation":
        base["batch_size"] = TILES  # 128 large images are more than most memories hold
    options = {**base.pop("options", {}), **settings.pop("options", {})}
    return Recipe.from_settings({**base, **settings, "options": options})


def _recipe_spec(model: str | None, data: str | None, name: str | None) -> RecipeSpec | None:
    if name is not None and name.endswith(".toml"):
        if not Path(name).is_file():
            raise UsageError(f"{name}: no such recipe file", "cnnzoo list-recipes")
        return read_recipe(Path(name))
    if name is not None:
        return registry.recipes().get(name)
    pair = [
        entry.spec
        for _, entry in registry.recipes()
        if (entry.spec.model, entry.spec.dataset) == (model, data)
    ]
    return next((spec for spec in pair if spec.default), None)


def _check(recipe: Recipe, dataset: Dataset) -> None:
    """Find what cannot work before anything is written."""
    spec = registry.models().get(recipe.model)
    if spec.task != dataset.spec.task:
        raise UsageError(
            f"model '{recipe.model}' does {spec.task}, data set '{recipe.data}' is for "
            f"{dataset.spec.task}",
            "cnnzoo list-models --task TASK",
        )
    metrics_of(spec.task, len(dataset.spec.classes), recipe.topk)
    loss_of(spec.task, recipe)
    for key in ("mean", "std"):
        channels, given = dataset.spec.image[0], len(getattr(recipe, key))
        if given not in (0, channels):
            raise UsageError(f"{key} has {given} numbers, the images {channels} channels")
    if (recipe.image_size or min(spec.input[1:])) < spec.min_size:
        raise UsageError(
            f"image_size = {recipe.image_size}: {recipe.model} needs at least {spec.min_size}"
        )


def _build(recipe: Recipe, dataset: Dataset) -> nn.Module:
    """Return the recipe's network for the data set, initialised by the recipe's seed."""
    torch.manual_seed(recipe.seed)
    return create_model(
        recipe.model,
        num_classes=len(dataset.spec.classes),
        in_channels=dataset.spec.image[0],
        **recipe.options,
    )


def _train(
    run: Run,
    model: nn.Module,
    dataset: Dataset,
    preprocessing: Preprocessing,
    device: torch.device,
    workers: int,
    shown: bool,
) -> None:
    """Do what remains of a run: the epochs, then the test split."""
    recipe = run.recipe
    save = partial(_save, run, dataset, preprocessing)
    state = _last_state(run)
    if state is not None:
        save(state)  # finishes what a stop in the middle of saving may have left
    kept, held_out = dataset.divide(recipe.validation, recipe.seed)
    progress = progress_for(shown)
    observers = Observers(plugins())
    job = Fit(
        run=run,
        recipe=recipe,
        task=dataset.spec.task,
        train=kept,
        validation=held_out,
        workers=workers,
        num_classes=len(dataset.spec.classes),
        preprocessing=preprocessing,
        device=device,
        progress=progress,
        observers=observers,
        save=save,
    )
    try:
        fit(model, job, state)
    except BaseException as error:
        if not isinstance(error, ZooError):
            error.add_note(f"go on with: cnnzoo train --resume {run.path}")
        raise
    finally:
        progress.stop()
    _test(run, dataset, device, workers, observers)


def _save(run: Run, dataset: Dataset, preprocessing: Preprocessing, state: State) -> None:
    """Write the state, then weights if they are the best so far, then what people read.

    Stopped in between, the next start does the rest: the state has all that it needs.
    """
    write_state(run.state, state)
    if state.best_epoch == state.epoch:
        weights = Weights(
            tensors=state.model,
            model=run.recipe.model,
            num_classes=len(dataset.spec.classes),
            in_channels=dataset.spec.image[0],
            options=run.recipe.options,
            classes=dataset.spec.classes,
            preprocessing=preprocessing,
            epoch=state.epoch,
        )
        write_weights(run.weights, weights)
    run.write_metrics(state.metrics)


def _last_state(run: Run) -> State | None:
    """Return where a run stands; None if none of its epochs has ended yet.

    Raises:
        RunError: the state is gone, or weights that it cannot give back; nothing is changed.
    """
    if run.state.is_file():
        state = read_state(run.state)
        if run.weights.is_file() or state.best_epoch == state.epoch:
            return state
    elif not run.weights.is_file() and not run.history():
        return None
    lost = run.weights if run.state.is_file() else run.state
    raise RunError(
        f"{run.path}: not a whole run: {lost.relative_to(run.path)} is missing",
        "restore it from a copy, or train again into another directory",
    )


def _test(
    run: Run, dataset: Dataset, device: torch.device, workers: int, observers: Observers
) -> None:
    """Measure the kept weights on the test split: the last line of metrics.jsonl."""
    weights = read_weights(run.path)
    measured = measure(
        weights.build().to(device),
        dataset.split("test"),
        weights.preprocessing,
        run.recipe,
        dataset.spec.task,
        weights.num_classes,
        device,
        workers,
    )
    line = {"epoch": weights.epoch, **{f"test/{name}": v for name, v in measured.items()}}
    run.write_metrics([*run.history(), line])
    observers.notify("fit_end", run=run, metrics=line)


def _placed(recipe: Recipe, dataset: Dataset, geometry: Preprocessing, shown: bool) -> Dataset:
    """Decode files into memory, or see that they can be decoded, before the first epoch."""
    if recipe.pipeline != "streaming" and all(
        isinstance(split, Split) for split in dataset.splits.values()
    ):
        return dataset
    from cnn_core.data.streaming import BadSamples, place

    bad = BadSamples(recipe.bad_samples())
    with counting("reading files", shown) as progress:
        placed = place(dataset, geometry, recipe.pipeline, torch.get_num_threads(), bad, progress)
    if bad.found:
        shown_ones = "; ".join(map(printable, bad.found[:5]))
        print(f"left out {len(bad.found)} samples: {shown_ones}", file=sys.stderr)
    return placed


def _geometry(recipe: Recipe, model: ModelSpec, dataset: Dataset) -> Preprocessing:
    """Return what happens to a picture's shape; `_normalised` adds what happens to its values."""
    size = (recipe.image_size, recipe.image_size) if recipe.image_size else model.input[1:]
    picture = dataset.spec.image[1:]
    return Preprocessing(size=size, picture=picture, fit=dataset.spec.fit, mean=(), std=())


def _normalised(recipe: Recipe, dataset: Dataset, geometry: Preprocessing) -> Preprocessing:
    """Add the recipe's mean and deviation, else the data set's, else those of its pictures."""
    mean, std = recipe.mean or dataset.spec.mean, recipe.std or dataset.spec.std
    if not mean or not std:
        from cnn_core.data.streaming import statistics

        found = statistics(dataset.split("train"))
        mean, std = mean or found[0], std or found[1]
    return dataclasses.replace(geometry, mean=mean, std=std)
