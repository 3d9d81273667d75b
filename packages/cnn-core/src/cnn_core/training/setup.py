"""What a training needs: its recipe found and settled, its network built, its data decoded."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnn_core import registry
from cnn_core.create import create_model
from cnn_core.data.dataset import Dataset, Split
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import UsageError
from cnn_core.registry.names import canonical_name, default_recipe, resolved_name
from cnn_core.runs.recipe import Recipe, read_recipe
from cnn_core.specs import ModelSpec
from cnn_core.tasks import loss_of, metrics_of, score_of
from cnn_core.tasks.tiles import tile_margin
from cnn_core.text import printable
from cnn_core.training.device import FORMATS, choose_memory_format, choose_precision
from cnn_core.training.distributed import ALONE, World, synchronised
from cnn_core.training.optim import make_optimizer
from cnn_core.training.progress import counting
from cnn_core.training.train_state import frozen
from cnn_core.weights.native import is_ours, read_weights

__all__ = ["Setup", "find_recipe", "score", "set_up"]

TILES = 2  # images a batch where pixels are classified and no recipe says how many


@dataclass(frozen=True)
class Setup:
    """What a training needs beside a run: nothing in it is left to choose."""

    recipe: Recipe
    spec: ModelSpec
    model: nn.Module
    dataset: Dataset
    preprocessing: Preprocessing


def find_recipe(
    model: str | None, data: str | None, name: str | None, settings: dict[str, Any]
) -> Recipe:
    """Return the recipe: the one named, else the default one of the pair, with `settings`."""
    given = {}
    if model is not None:
        given["model"] = canonical_name(registry.models(), model)
    if data is not None:
        given["data"] = canonical_name(registry.datasets(), data)
    found = _settings_of(name, given)
    base = {**(found or {}), **given}
    for key in ("model", "data"):
        if key not in base:
            raise UsageError(f"no {key} is given", "cnnzoo train MODEL --data DATASET")
    if found is None and registry.models().get(base["model"]).task == "segmentation":
        base["batch_size"] = TILES  # 128 large images are more than most memories hold
    tables = {
        key: {**base.pop(key, {}), **settings.pop(key, {})} for key in ("options", "stage_lr")
    }
    return Recipe.from_settings({**base, **settings, **tables})


def _settings_of(name: str | None, given: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what the named or the default recipe says; its model and data unless `given`."""
    if name is not None and name.endswith(".toml"):
        if not Path(name).is_file():
            raise UsageError(f"{name}: no such recipe file", "cnnzoo list-recipes")
        said = dict(read_recipe(Path(name)).settings)
        if "model" not in given:
            said["model"] = canonical_name(registry.models(), said["model"])
        if "data" not in given:
            said["data"] = canonical_name(registry.datasets(), said["data"])
        return said
    if name is not None:
        recipe = registry.recipes().entry(name)
    elif len(given) == 2 and (default := default_recipe(**given)) is not None:
        recipe = default
    else:
        return None
    own = {key: resolved_name(recipe, key) for key in ("model", "data") if key not in given}
    return {**recipe.spec.settings, **own}


def set_up(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    world: World = ALONE,
    *,
    begun: bool = False,
    shown: bool = True,
) -> Setup:
    """Build the network and decode the data; settle what the recipe leaves open.

    Weights to begin with are read only where training has not `begun`.
    """
    spec = registry.models().get(recipe.model)
    _check(recipe, dataset, spec)
    recipe, model = _build(recipe, dataset, begun)
    make_optimizer(model, recipe)  # raises where stages are not there, or all are frozen
    recipe = dataclasses.replace(
        recipe,
        precision=choose_precision(recipe.precision, device),
        memory_format=choose_memory_format(recipe.memory_format, model),
    )
    if recipe.sync_batchnorm and world.size > 1:
        model = synchronised(model, device)
    model = frozen(model, recipe.freeze).to(device)
    model = model.to(memory_format=FORMATS[recipe.memory_format])
    if recipe.compile:
        model.compile()
    geometry = _geometry(recipe, spec, dataset, model)
    dataset = _load_data(recipe, dataset, geometry, shown)
    if recipe.balance or recipe.border_weight:
        dataset = _weighed(recipe, dataset, geometry, shown)
    return Setup(recipe, spec, model, dataset, _normalised(recipe, dataset, geometry))


def score(recipe: Recipe, dataset: Dataset) -> tuple[str, bool]:
    """Return the number that chooses the weights to keep, and whether more of it is better."""
    topk = f"top{recipe.topk or min(5, len(dataset.spec.classes))}"
    return score_of(dataset.spec.task, recipe.monitor, topk)


def _check(recipe: Recipe, dataset: Dataset, spec: ModelSpec) -> None:
    """Find what cannot work before anything is written."""
    if spec.task != dataset.spec.task:
        raise UsageError(
            f"model '{recipe.model}' does {spec.task}, dataset '{recipe.data}' is for "
            f"{dataset.spec.task}",
            "cnnzoo list-models --task TASK",
        )
    metrics_of(spec.task, len(dataset.spec.classes), recipe.topk)
    loss_of(spec.task, recipe)
    score(recipe, dataset)
    for key in ("mean", "std"):
        channels, given = dataset.spec.image[0], len(getattr(recipe, key))
        if given not in (0, channels):
            raise UsageError(f"{key} has {given} numbers, the images {channels} channels")
    key = "tile" if recipe.tile else "image_size"
    if (recipe.tile or recipe.image_size or min(spec.input[1:])) < spec.min_size:
        raise UsageError(
            f"{key} = {getattr(recipe, key)}: {recipe.model} needs at least {spec.min_size}"
        )


def _build(recipe: Recipe, dataset: Dataset, begun: bool) -> tuple[Recipe, nn.Module]:
    """Return the recipe's network, initialised by its seed or with its weights.

    Images are normalised as they were for those weights, where they and the recipe say so.
    """
    torch.manual_seed(recipe.seed)
    weights = recipe.weights if recipe.weights and not begun else None
    model = create_model(
        recipe.model,
        num_classes=len(dataset.spec.classes),
        in_channels=dataset.spec.image[0],
        weights=weights,
        new_head=True,
        **recipe.options,
    )
    if weights is None:
        return recipe, model
    path = Path(weights).absolute()
    if (path.is_dir() or is_ours(path)) and not recipe.mean:
        known = read_weights(path).preprocessing
        if len(known.mean) == dataset.spec.image[0]:
            recipe = dataclasses.replace(recipe, mean=known.mean, std=known.std)
    return dataclasses.replace(recipe, weights=str(path)), model


def _load_data(recipe: Recipe, dataset: Dataset, geometry: Preprocessing, shown: bool) -> Dataset:
    """Decode files into memory, or see that they can be decoded, before the first epoch."""
    if recipe.pipeline != "streaming" and all(
        isinstance(split, Split) for split in dataset.splits.values()
    ):
        return dataset
    from cnn_core.data.streaming import BadSamples, load_splits

    bad = BadSamples(recipe.bad_samples())
    with counting("reading files", shown) as progress:
        placed = load_splits(
            dataset,
            geometry,
            pipeline=recipe.pipeline,
            threads=torch.get_num_threads(),
            bad=bad,
            progress=progress,
        )
    if bad.found:
        shown_ones = "; ".join(map(printable, bad.found[:5]))
        print(f"left out {len(bad.found)} samples: {shown_ones}", file=sys.stderr)
    return placed


def _weighed(recipe: Recipe, dataset: Dataset, geometry: Preprocessing, shown: bool) -> Dataset:
    """Add how much each pixel of the training images counts."""
    from cnn_core.tasks.pixel_weights import pixel_weights

    train = dataset.split("train")
    if not isinstance(train, Split):
        raise UsageError(
            "balance and border_weight are of images in memory", "--set pipeline=memory"
        )
    masks, classes = geometry.resized_masks(train.targets), len(dataset.spec.classes)
    with counting("weighing pixels", shown) as progress:
        weights = pixel_weights(recipe, masks, classes, progress)
    weighed = dataclasses.replace(train, weights=weights)
    return Dataset(dataset.spec, {**dataset.splits, "train": weighed})


def _geometry(
    recipe: Recipe, spec: ModelSpec, dataset: Dataset, model: nn.Module
) -> Preprocessing:
    """Return what happens to an image's shape; `_normalised` adds what happens to its values."""
    side = recipe.tile or recipe.image_size
    size = (side, side) if side else spec.input[1:]
    picture = dataset.spec.image[1:]
    if recipe.tile:
        device = next(model.parameters()).device
        margin = tile_margin(model, side, dataset.spec.image[0], device)
        return Preprocessing(
            size=size, image_size=picture, fit="tile", mean=(), std=(), margin=margin
        )
    return Preprocessing(size=size, image_size=picture, fit=dataset.spec.fit, mean=(), std=())


def _normalised(recipe: Recipe, dataset: Dataset, geometry: Preprocessing) -> Preprocessing:
    """Add the recipe's mean and deviation, else the dataset's, else those of its images."""
    mean, std = recipe.mean or dataset.spec.mean, recipe.std or dataset.spec.std
    if not mean or not std:
        from cnn_core.data.streaming import statistics

        found = statistics(dataset.split("train"))
        mean, std = mean or found[0], std or found[1]
    return dataclasses.replace(geometry, mean=mean, std=std)
