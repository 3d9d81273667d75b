"""Set up a training: find the recipe, build the network and its optimizer, decode the data."""

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
from cnn_core.data.batching import batch_sizes
from cnn_core.data.dataset import Dataset, Files, Split
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import UsageError
from cnn_core.registry.names import canonical_name, default_recipe, resolved_name
from cnn_core.runs.recipe import Recipe, read_recipe
from cnn_core.specs import ModelSpec
from cnn_core.tasks import loss_of, score_of
from cnn_core.tasks.tiles import tile_margin
from cnn_core.text import printable
from cnn_core.training.device import FORMATS, choose_memory_format, choose_precision
from cnn_core.training.distributed import ALONE, World, synchronised
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.evaluation import EvalSetup
from cnn_core.training.progress import counting
from cnn_core.training.train_state import TrainState
from cnn_core.weights.native import Weights, is_ours, read_weights

__all__ = ["Setup", "find_recipe", "set_up"]

TILES = 2  # a batch of segmentation without a recipe: 128 large images rarely fit in memory


@dataclass(frozen=True, kw_only=True)
class Setup(EvalSetup):
    """All that a training uses. `set_up` builds each part once, and the loop uses it.

    `train` and `validation` are the two parts of the training images. `monitor` is the number of
    an epoch that chooses the weights to keep, and whether more of it is better.
    """

    spec: ModelSpec
    dataset: Dataset
    train: Split | Files
    validation: Split | Files
    train_state: TrainState
    monitor: tuple[str, bool]

    @property
    def model(self) -> nn.Module:
        """The network that is trained."""
        return self.train_state.model

    @property
    def micro_batch_size(self) -> int:
        """The samples that a process computes at once."""
        # Rounded up: rounding down could give more micro-batches than the recipe asks for.
        return -(-self.recipe.batch_size // (self.world.size * self.recipe.accumulate))

    @property
    def steps(self) -> int:
        """The optimizer's steps in an epoch."""
        return len(batch_sizes(len(self.train), self.recipe.batch_size, training=True))


def find_recipe(
    model: str | None, data: str | None, name: str | None, settings: Mapping[str, Any]
) -> Recipe:
    """Return the recipe: the one named, else the default one of the pair, with `settings`.

    Raises:
        UsageError: no model or dataset, an unknown name or key, a value out of range.
    """
    given = {}
    if model is not None:
        given["model"] = canonical_name(registry.models(), model)
    if data is not None:
        given["data"] = canonical_name(registry.datasets(), data)
    # The names are canonical from here on: default recipes are looked up by them.
    found = _named_settings(name, given)
    base = {**(found or {}), **given}
    for key in ("model", "data"):
        if key not in base:
            raise UsageError(f"no {key} is given", "cnnzoo train MODEL --data DATASET")
    if found is None and registry.models().get(base["model"]).task == "segmentation":
        base["batch_size"] = TILES
    # Merge tables key by key: --set options.width=2 keeps the recipe's other options.
    tables = {
        key: {**base.get(key, {}), **settings.get(key, {})} for key in ("options", "stage_lr")
    }
    return Recipe.from_settings({**base, **settings, **tables})


def _named_settings(name: str | None, given: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the settings of the named or the default recipe; model and data unless `given`."""
    if name is not None and name.endswith(".toml"):
        if not Path(name).is_file():
            raise UsageError(f"{name}: no such recipe file", "cnnzoo list-recipes")
        settings = dict(read_recipe(Path(name)).settings)
        # A name that the caller replaces need not be installed.
        if "model" not in given:
            settings["model"] = canonical_name(registry.models(), settings["model"])
        if "data" not in given:
            settings["data"] = canonical_name(registry.datasets(), settings["data"])
        return settings
    if name is not None:
        recipe = registry.recipes().entry(name)
    # Defaults belong to pairs: with only a model or only a dataset there is none to choose.
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
    *,
    world: World = ALONE,
    workers: int = 0,
    begun: bool = False,
    shown: bool = True,
) -> Setup:
    """Build the network and all that trains it, decode the data, and fill in the recipe.

    Weights to begin with are read only where training has not `begun`. The cheap checks come
    first: decoding a dataset may take minutes.

    Raises:
        UsageError: recipe, model and dataset do not fit each other.
    """
    spec, classes = registry.models().get(recipe.model), dataset.spec.classes
    _require_fitting(recipe, dataset, spec)
    metrics = EpochMetrics(spec.task, len(classes), recipe.topk)
    criterion = loss_of(spec.task, recipe)
    top_k = f"top{recipe.topk or min(5, len(classes))}"
    monitor = score_of(spec.task, recipe.monitor, top_k)
    recipe, model = _build(recipe, dataset, begun)
    # Replace "auto" by the choice, so that the run records it and resumes with it.
    recipe = dataclasses.replace(
        recipe,
        precision=choose_precision(recipe.precision, device),
        memory_format=choose_memory_format(recipe.memory_format, model),
    )
    train_state = TrainState(_placed(model, recipe, device, world), recipe, device)
    geometry = _geometry(recipe, spec, dataset, model=train_state.model)
    dataset = _decoded(recipe, dataset, geometry, shown)
    train, validation = dataset.divide(recipe.validation, recipe.seed)
    return Setup(
        recipe=recipe,
        preprocessing=_normalised(recipe, dataset, geometry),
        criterion=criterion,
        metrics=metrics,
        device=device,
        world=world,
        workers=workers,
        spec=spec,
        dataset=dataset,
        train=train,
        validation=validation,
        train_state=train_state,
        monitor=monitor,
    )


def _require_fitting(recipe: Recipe, dataset: Dataset, spec: ModelSpec) -> None:
    """Raise UsageError where recipe, dataset and model do not fit each other."""
    if spec.task != dataset.spec.task:
        raise UsageError(
            f"model '{recipe.model}' does {spec.task}, dataset '{recipe.data}' is for "
            f"{dataset.spec.task}",
            "cnnzoo list-models --task TASK",
        )
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

    Images are then normalised as they were for those weights, unless the recipe says otherwise:
    the recipe that is returned has their mean and deviation.
    """
    # The seed alone decides the initial weights: other code may have drawn numbers before.
    torch.manual_seed(recipe.seed)
    weights = _starting_weights(recipe) if recipe.weights and not begun else None
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
    if isinstance(weights, Weights) and not recipe.mean:
        known = weights.preprocessing
        if len(known.mean) == dataset.spec.image[0]:
            recipe = dataclasses.replace(recipe, mean=known.mean, std=known.std)
    # A run may be resumed from another directory.
    return dataclasses.replace(recipe, weights=str(Path(recipe.weights).absolute())), model


def _starting_weights(recipe: Recipe) -> Weights | Path:
    """Return the weights to begin with: read if they are ours, else the path of a file."""
    path = Path(recipe.weights)
    return read_weights(path) if path.is_dir() or is_ours(path) else path


def _placed(model: nn.Module, recipe: Recipe, device: torch.device, world: World) -> nn.Module:
    """Return the model as it is trained: on the device, laid out, compiled, synchronised."""
    if recipe.sync_batchnorm and world.size > 1:
        model = synchronised(model, device)
    model = model.to(device).to(memory_format=FORMATS[recipe.memory_format])
    if recipe.compile:
        # In place: torch.compile() would put the prefix "_orig_mod." before every parameter's
        # name.
        model.compile()
    return model


def _decoded(recipe: Recipe, dataset: Dataset, geometry: Preprocessing, shown: bool) -> Dataset:
    """Return the dataset decoded and, where the recipe wants it, with pixels weighed.

    Files that are not kept in memory are read all the same: a broken one is found now, and not
    in the middle of the first epoch.
    """
    in_memory = all(isinstance(split, Split) for split in dataset.splits.values())
    if recipe.pipeline == "streaming" or not in_memory:
        from cnn_core.data.streaming import BadSamples, load_splits

        bad = BadSamples(recipe.bad_samples())
        with counting("reading files", shown) as progress:
            dataset = load_splits(
                dataset,
                geometry,
                pipeline=recipe.pipeline,
                threads=torch.get_num_threads(),
                bad=bad,
                progress=progress,
            )
        if bad.messages:
            names = "; ".join(map(printable, bad.messages[:5]))
            print(f"left out {len(bad.messages)} samples: {names}", file=sys.stderr)
    weighed = recipe.balance or recipe.border_weight
    return _weighed(recipe, dataset, geometry, shown) if weighed else dataset


def _weighed(recipe: Recipe, dataset: Dataset, geometry: Preprocessing, shown: bool) -> Dataset:
    """Add how much each pixel of the training images counts."""
    from cnn_core.tasks.pixel_weights import pixel_weights

    train = dataset.split("train")
    if not isinstance(train, Split):
        raise UsageError(
            "balance and border_weight need pipeline = memory", "--set pipeline=memory"
        )
    masks, classes = geometry.resized_masks(train.targets), len(dataset.spec.classes)
    with counting("weighing pixels", shown) as progress:
        weights = pixel_weights(recipe, masks, classes, progress)
    weighed = dataclasses.replace(train, weights=weights)
    return Dataset(dataset.spec, {**dataset.splits, "train": weighed})


def _geometry(
    recipe: Recipe, spec: ModelSpec, dataset: Dataset, model: nn.Module
) -> Preprocessing:
    """Return how images are resized or cut into tiles; `_normalised` adds mean and deviation."""
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

        # Of the training split only: test images must not influence the input.
        found = statistics(dataset.split("train"))
        mean, std = mean or found[0], std or found[1]
    return dataclasses.replace(geometry, mean=mean, std=std)
