"""Set up a training run: find the recipe, build the network and optimizer, decode the data."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.create import create_model, head_tensors
from cnn_core.data.batching import batch_sizes
from cnn_core.data.dataset import Dataset
from cnn_core.data.palette import background_class
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.progress_bar import progress_bar
from cnn_core.data.splits import Files, Split
from cnn_core.errors import UsageError
from cnn_core.files import expanded
from cnn_core.registry.names import canonical_name, default_recipe, resolved_name
from cnn_core.runs.recipe import Recipe, read_recipe
from cnn_core.specs import ModelSpec
from cnn_core.tasks import NETWORKS, loss_of, score_of
from cnn_core.tasks.class_weights import (
    balanced_order,
    own_targets,
    require_known,
    with_weights,
)
from cnn_core.tasks.thresholds import CRITERIA, require_binary
from cnn_core.tasks.tiles import tile_margin
from cnn_core.text import counted, printable
from cnn_core.training.defaults import FREE, describe, with_optimizer, with_sizes
from cnn_core.training.device import FORMATS, choose_memory_format, choose_precision
from cnn_core.training.distributed import ALONE, World, with_sync_batchnorm
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.evaluation import EvalSetup
from cnn_core.training.initial_weights import read_initial, sizes_of, start_from
from cnn_core.training.train_state import TrainState
from cnn_core.training.trained import read_as
from cnn_core.training.validation import (
    count_validated,
    require_validation,
    with_own_part,
)

__all__ = ["Setup", "find_recipe", "free_keys", "set_up"]

log: logging.Logger = logging.getLogger("cnn_core")

# fit = "crop": the shorter side, relative to the crop, as in the usual 256 for 224 pixels.
SHORTER_SIDE = 8 / 7


@dataclass(frozen=True, kw_only=True)
class Setup(EvalSetup):
    """Everything that a training run needs, built once by `set_up`.

    `train` and `validation` are the images to train on and to validate on; `validation` may be
    empty. `monitor` is the metric that selects the best epoch, and whether higher is better.
    """

    spec: ModelSpec
    dataset: Dataset
    train: Split | Files
    validation: Split | Files
    train_state: TrainState
    monitor: tuple[str, bool]

    @property
    def model(self) -> nn.Module:
        """The network to train."""
        return self.train_state.model

    @property
    def micro_batch_size(self) -> int:
        """The number of samples per forward pass on one process."""
        # Round up: rounding down could give more micro-batches than `accumulate`.
        return -(-self.recipe.batch_size // (self.world.size * self.recipe.accumulate))

    def order(self, epoch: int) -> Tensor | None:
        """The samples of `train` that the recipe's sampler draws in an epoch; None without one."""
        if not self.recipe.sampler:
            return None
        return balanced_order(own_targets(self.train), self.recipe.seed, epoch)

    def drawn(self, epoch: int) -> Split | Files:
        """The images to train on in an epoch, in the order of `order`."""
        order = self.order(epoch)
        return self.train if order is None else self.train.view(order)

    @property
    def steps(self) -> int:
        """The number of optimizer steps per epoch."""
        return len(batch_sizes(len(self.train), self.recipe.batch_size, training=True))


def find_recipe(
    model: str | None,
    data: str | None,
    name: str | None,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return the recipe called `name`, else the default recipe of the model and dataset.

    `defaults` replace the default recipe. If there is neither, start from the defaults of
    `Recipe`; `set_up` then chooses the `free_keys`. `model`, `data` and `settings` override the
    recipe's values.

    Raises:
        UsageError: the model or dataset is missing, a name or key is unknown, or a value is out of
            range.
    """
    given = {}
    if model is not None:
        given["model"] = canonical_name(registry.models(), model)
    if data is not None:
        given["data"] = canonical_name(registry.datasets(), data)
    # Default recipes are looked up by canonical names, so aliases are resolved first.
    recipe_settings = (
        dict(defaults) if name is None and defaults is not None else _recipe_settings(name, given)
    )
    base = {**(recipe_settings or {}), **given}
    for key in ("model", "data"):
        if key not in base:
            raise UsageError(f"no {key} is given", "cnnzoo train MODEL --data DATASET")
    # Merge tables key by key, so that --set options.width=2 keeps the recipe's other options.
    tables = {
        key: {**base.get(key, {}), **settings[key]}
        for key in ("options", "stage_lr")
        if isinstance(settings.get(key), Mapping)
    }
    return Recipe.from_settings({**base, **settings, **tables})


def free_keys(
    model: str | None, data: str | None, name: str | None, settings: Collection[str]
) -> frozenset[str]:
    """Return the recipe keys that `set_up` is to choose, since `find_recipe` found no recipe."""
    if name is not None or model is None or data is None:
        return frozenset()
    model, data = (
        canonical_name(registry.models(), model),
        canonical_name(registry.datasets(), data),
    )
    known = default_recipe(model, data) is not None
    return frozenset() if known else FREE.difference(settings)


def _recipe_settings(name: str | None, given: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the settings of the named or default recipe, or None if there is neither.

    Model and dataset names that are not in `given` are made canonical.
    """
    if name is not None and name.endswith(".toml"):
        if not expanded(name).is_file():
            raise UsageError(f"{name}: no such recipe file", "cnnzoo list-recipes")
        settings = dict(read_recipe(expanded(name)).settings)
        # A model or dataset that the caller replaces need not be installed.
        if "model" not in given:
            settings["model"] = canonical_name(registry.models(), settings["model"])
        if "data" not in given:
            settings["data"] = canonical_name(registry.datasets(), settings["data"])
        return settings
    if name is not None:
        recipe = registry.recipes().entry(name)
    # A default recipe belongs to a pair of model and dataset.
    elif len(given) == 2 and (default := default_recipe(**given)) is not None:
        recipe = default
    else:
        return None
    names = {key: resolved_name(recipe, key) for key in ("model", "data") if key not in given}
    return {**recipe.spec.settings, **names}


def set_up(
    recipe: Recipe,
    dataset: Dataset,
    device: torch.device,
    *,
    world: World = ALONE,
    workers: int = 0,
    resuming: bool = False,
    free: Collection[str] = (),
    show_progress: bool = True,
) -> Setup:
    """Build the network and optimizer, decode the data, and replace "auto" in the recipe.

    `free` are the keys of the recipe to choose from the network and the images; lines say what was
    chosen. Initial weights are loaded only for a new run, not when resuming. Cheap checks come
    first, because decoding a dataset may take minutes.

    Raises:
        UsageError: the recipe, model and dataset are incompatible.
    """
    spec, classes = registry.models().get(recipe.model), dataset.spec.classes
    _require_task(recipe, dataset, spec)
    dataset = read_as(recipe, dataset)
    recipe = with_sizes(recipe, dataset, free)
    _require_compatible(recipe, dataset, spec)
    metrics, criterion = _metrics(recipe, dataset), loss_of(dataset.spec.task, recipe)
    top_k = f"top{recipe.topk or min(5, len(classes))}"
    monitor = score_of(dataset.spec.task, recipe.monitor, top_k, classes)
    recipe, dataset, warning = _choose_validation(recipe, dataset, monitor[0])
    recipe, model, started = _build(recipe, dataset, resuming)
    recipe = _without_auto(with_optimizer(recipe, dataset, model, free), dataset, model, device)
    chosen = describe(recipe, dataset, free)
    network, head = _prepare(model, recipe, device, world), _head(recipe, dataset)
    train_state = TrainState(network, recipe, device, head)
    for line in (started, warning):
        if line and show_progress and not resuming:
            print(line, file=sys.stderr)
    geometry = _geometry(recipe, spec, dataset, model=train_state.model)
    if spec.task == "segmentation" and show_progress and geometry.scale_note:
        log.warning("%s", geometry.scale_note)
    recipe, dataset = _decode(recipe, dataset, geometry, show_progress)
    if chosen and show_progress:  # only now, when no broken file can stop it
        print(chosen, file=sys.stderr)
    train, validation = dataset.divide(*recipe.part())
    return Setup(
        recipe=recipe,
        preprocessing=_with_statistics(recipe, dataset, geometry),
        criterion=criterion,
        metrics=metrics,
        device=device,
        world=world,
        workers=workers,
        spec=spec,
        dataset=dataset,
        train=with_weights(train, recipe, classes),
        validation=validation,
        train_state=train_state,
        monitor=monitor,
    )


def _metrics(recipe: Recipe, dataset: Dataset) -> EpochMetrics:
    """Return the metrics of training and validation."""
    spec = dataset.spec
    return EpochMetrics(
        spec.task,
        len(spec.classes),
        recipe.topk,
        classes=spec.classes,
        background=spec.background,
    )


def _without_auto(
    recipe: Recipe, dataset: Dataset, model: nn.Module, device: torch.device
) -> Recipe:
    """Replace "auto" by the actual value, so that the run records it and resumes with it."""
    return dataclasses.replace(
        recipe,
        precision=choose_precision(recipe.precision, device),
        memory_format=choose_memory_format(recipe.memory_format, model),
        **asdict(dataset.reading),
    )


def _require_task(recipe: Recipe, dataset: Dataset, spec: ModelSpec) -> None:
    """Raise UsageError if the model is for another task than the dataset."""
    if spec.task != NETWORKS[dataset.spec.task]:
        raise UsageError(
            f"model '{recipe.model}' is for {spec.task}, but dataset '{recipe.data}' is for "
            f"{dataset.spec.task}",
            "cnnzoo list-models --task TASK",
        )


def _require_compatible(recipe: Recipe, dataset: Dataset, spec: ModelSpec) -> None:
    """Raise UsageError if a size or the preprocessing does not fit the model or the dataset."""
    require_known(recipe, dataset.spec.classes)
    if dataset.spec.task != "multilabel" and recipe.threshold in CRITERIA:
        require_binary(f"'{recipe.threshold}'", len(dataset.spec.classes))
    if spec.task == "segmentation":
        _require_background(recipe, dataset)
    if spec.task == "segmentation" and recipe.fit == "crop":
        raise UsageError("fit = 'crop' is for classification: masks are not cropped", "--set tile")
    for key in ("mean", "std"):
        channels, given = dataset.spec.image[0], len(getattr(recipe, key))
        if given not in (0, channels):
            has = f"{key} has {counted(given, 'value')}"
            raise UsageError(f"{has}, but images have {counted(channels, 'channel')}")
    key = "tile" if recipe.tile else "image_size"
    if (recipe.tile or recipe.image_size or min(spec.input[1:])) < spec.min_size:
        raise UsageError(
            f"{key} = {getattr(recipe, key)}: {recipe.model} needs at least {spec.min_size}"
        )


def _require_background(recipe: Recipe, dataset: Dataset) -> None:
    """Raise UsageError if a setting needs a background, and no class is known to be it."""
    found = background_class(dataset.spec.classes, dataset.spec.background)
    if recipe.border_weight and found is None:
        raise UsageError(
            f"border_weight = {recipe.border_weight:g} is for the background between objects, and "
            f"'{recipe.data}' does not say which class that is",
            'background = "NAME" in dataset.toml',
        )


def _choose_validation(
    recipe: Recipe, dataset: Dataset, monitor: str
) -> tuple[Recipe, Dataset, str]:
    """Return the recipe with the choice of validation images, the dataset, and a line or "".

    For folds, the dataset's own val is joined to train.
    """
    recipe, warning = with_own_part(recipe, dataset)
    require_validation(recipe, monitor, count_validated(recipe, dataset))
    return recipe, dataset.pooled() if recipe.fold else dataset, printable(warning)


def _build(recipe: Recipe, dataset: Dataset, resuming: bool) -> tuple[Recipe, nn.Module, str]:
    """Build the network, randomly initialised or with the recipe's weights; return both.

    The returned recipe takes the preprocessing from the weights, unless it sets its own. The text
    says for the user how the weights are used.
    """
    started = ""
    # Seed here, so that the initial weights do not depend on random numbers drawn before.
    torch.manual_seed(recipe.seed)
    if recipe.weights and not resuming:
        recipe, model, started = start_from(read_initial(recipe), recipe, dataset)
    else:
        model = create_model(recipe.model, **sizes_of(dataset), **recipe.options)
    return _with_crop(recipe), model, started


def _with_crop(recipe: Recipe) -> Recipe:
    """Fill in `resize` and `interpolation` if the recipe's `fit` is "crop"."""
    if recipe.fit != "crop":
        if recipe.resize or recipe.interpolation:
            key = "resize" if recipe.resize else "interpolation"
            raise UsageError(f"{key} applies only to fit = 'crop'", "--set fit=crop")
        return recipe
    side = recipe.image_size or max(registry.get_spec(recipe.model).input[1:])
    resize = recipe.resize or round(side * SHORTER_SIDE)
    if resize < side:
        raise UsageError(f"resize = {resize}: expected at least {side}, the side of the crop")
    interpolation = recipe.interpolation or "bilinear"
    return dataclasses.replace(recipe, resize=resize, interpolation=interpolation)


def _head(recipe: Recipe, dataset: Dataset) -> list[str]:
    """Return the tensors to train in `head_epochs`, by name."""
    if not recipe.head_epochs:
        return []
    return head_tensors(recipe.model, **sizes_of(dataset), **recipe.options)


def _prepare(model: nn.Module, recipe: Recipe, device: torch.device, world: World) -> nn.Module:
    """Return the model on the device, in its memory format, with SyncBatchNorm and compile."""
    if recipe.sync_batchnorm and world.size > 1:
        model = with_sync_batchnorm(model, device)
    model = model.to(device).to(memory_format=FORMATS[recipe.memory_format])
    if recipe.compile:
        # Compile in place: torch.compile() would prefix every parameter name with "_orig_mod.".
        model.compile()
    return model


def _decode(
    recipe: Recipe, dataset: Dataset, geometry: Preprocessing, show_progress: bool
) -> tuple[Recipe, Dataset]:
    """Decode files into memory unless streaming, and add pixel weights if needed.

    The returned recipe says which of the two it is.
    """
    in_memory = all(isinstance(split, Split) for split in dataset.splits.values())
    pipeline = "memory"
    if recipe.pipeline in ("streaming", "packed") or not in_memory:
        from cnn_core.data.bad_samples import BadSamples
        from cnn_core.data.pipeline import load_splits, pipeline_of

        pipeline = pipeline_of(dataset, geometry, recipe.pipeline)
        bad = BadSamples(recipe.bad_samples())
        with progress_bar("reading files", show_progress) as progress:
            dataset = load_splits(
                dataset,
                geometry,
                pipeline=pipeline,
                threads=torch.get_num_threads(),
                bad=bad,
                progress=progress,
            )
        if bad.messages:
            names = "; ".join(map(printable, bad.messages[:5]))
            skipped = counted(len(bad.messages), "unreadable sample")
            print(f"skipped {skipped}: {names}", file=sys.stderr)
    recipe = dataclasses.replace(recipe, pipeline=pipeline)
    if recipe.balance or recipe.border_weight:
        return recipe, _with_pixel_weights(recipe, dataset, geometry, show_progress)
    return recipe, dataset


def _with_pixel_weights(
    recipe: Recipe, dataset: Dataset, geometry: Preprocessing, show_progress: bool
) -> Dataset:
    """Return the dataset with a loss weight for each pixel of the training images."""
    from cnn_core.tasks.pixel_weights import pixel_weights

    train = dataset.split("train")
    if not isinstance(train, Split):
        raise UsageError(
            "balance and border_weight need pipeline = memory", "--set pipeline=memory"
        )
    masks, classes = geometry.resized_masks(train.targets), dataset.spec.classes
    # `_require_compatible` refuses border_weight without a background.
    background = background_class(classes, dataset.spec.background) or 0
    with progress_bar("computing pixel weights", show_progress) as progress:
        weights = pixel_weights(recipe, masks, len(classes), progress, background)
    weighted = dataclasses.replace(train, weights=weights)
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": weighted})


def _geometry(
    recipe: Recipe, spec: ModelSpec, dataset: Dataset, model: nn.Module
) -> Preprocessing:
    """Return the preprocessing without mean and std, which `_with_statistics` fills in."""
    side = recipe.tile or recipe.image_size
    size = (side, side) if side else spec.input[1:]
    image_size = dataset.spec.image[1:]
    if recipe.tile:
        device = next(model.parameters()).device
        margin = tile_margin(model, side, dataset.spec.image[0], device)
        return Preprocessing(
            size=size,
            image_size=image_size,
            fit="tile",
            mean=(),
            std=(),
            margin=margin,
            **asdict(dataset.reading),
        )
    return Preprocessing(
        size=size,
        image_size=image_size,
        fit=recipe.fit or dataset.spec.fit,
        mean=(),
        std=(),
        resize=recipe.resize,
        interpolation=recipe.interpolation or "bilinear",
        **asdict(dataset.reading),
    )


def _with_statistics(recipe: Recipe, dataset: Dataset, geometry: Preprocessing) -> Preprocessing:
    """Fill in mean and std: from the recipe, else the dataset, else the training images."""
    mean, std = recipe.mean or dataset.spec.mean, recipe.std or dataset.spec.std
    if not mean or not std:
        from cnn_core.data.streaming import statistics

        # Use only the training split: test images must not influence the preprocessing.
        train_mean, train_std = statistics(dataset.split("train"))
        mean, std = mean or train_mean, std or train_std
    return dataclasses.replace(geometry, mean=mean, std=std)
