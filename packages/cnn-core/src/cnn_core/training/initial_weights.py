"""The weights that training starts from: a run, a weights file, or published weights by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnn_core import registry
from cnn_core.create import create_model, head_tensors, load_model
from cnn_core.data.dataset import Dataset
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import CorruptError, UsageError
from cnn_core.registry import Entry
from cnn_core.runs.recipe import Recipe
from cnn_core.specs import WeightsSpec
from cnn_core.text import counted, printable
from cnn_core.training.exported import SUFFIXES
from cnn_core.training.sources import FILES, preprocessing_of
from cnn_core.weights.hub import is_hub_name, locate_repository
from cnn_core.weights.native import Weights, is_ours, read_weights
from cnn_core.weights.published import (
    class_names,
    file_digest,
    find_weights,
    identified_by,
    locate,
    weights_of,
)
from cnn_core.weights.timm_files import read_shared_folder

__all__ = [
    "InitialWeights",
    "advice",
    "fetch_initial",
    "read_initial",
    "recorded_source",
    "require_trainable",
    "sizes_of",
    "start_from",
]

log: logging.Logger = logging.getLogger("cnn_core")

SMALL = 5_000  # training images; with fewer, pretrained weights help most


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights to start training from, with their classes and preprocessing if known.

    `source` is recorded in the recipe: "MODEL:NAME", "hf:owner/name" or an absolute path.
    `weights` is a path for files of other libraries. `classes` and `preprocessing` are empty and
    None if unknown. `published` says that the contents of the file are known.
    """

    source: str
    digest: str
    weights: Weights | Path
    naming: str | None = None
    published: bool = False
    classes: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None


def recorded_source(recipe: Recipe) -> str:
    """Return how a run records the recipe's `weights`: by name, an absolute path, or "".

    Raises:
        UnknownNameError: there are no published weights of this name; suggests names.
        UsageError: the weights are of another model.
    """
    if not recipe.weights:
        return ""
    entry = _published(recipe)
    if is_hub_name(recipe.weights):
        return recipe.weights
    if entry is None:
        # Absolute, because the run may be resumed from another directory.
        return str(Path(recipe.weights).absolute())
    return f"{recipe.model}:{entry.spec.name.partition(':')[2]}"


def _published(recipe: Recipe) -> Entry[WeightsSpec] | None:
    """Return the published weights that a recipe names, or None if it gives a path."""
    name, (model, colon, _) = recipe.weights, recipe.weights.rpartition(":")
    if Path(name).exists() or Path(name).suffix in FILES or (os.sep in name and not colon):
        return None
    if is_hub_name(name) or (colon and not registry.models().claims(model.rpartition("/")[2])):
        return None
    return _named(recipe, "weights")


def _named(recipe: Recipe, key: str) -> Entry[WeightsSpec]:
    """Return the published weights that a key of a recipe names: "NAME" or "MODEL:NAME"."""
    name: str = getattr(recipe, key)
    model, colon, own = name.rpartition(":")
    if colon:
        wanted, found = (registry.models().entry(m).qualified for m in (recipe.model, model))
        if wanted != found:
            raise UsageError(
                f"{key} = '{printable(name)}': weights of '{model}', not of '{recipe.model}'"
            )
    return find_weights(f"{recipe.model}:{own}")


def fetch_initial(recipe: Recipe) -> None:
    """Download the published weights or the repository that a recipe names."""
    if is_hub_name(recipe.weights):
        locate_repository(recipe.weights, download=True)
    elif recipe.weights and (entry := _published(recipe)) is not None:
        locate(entry, download=True)


def read_initial(recipe: Recipe) -> InitialWeights:
    """Read the recipe's initial weights.

    Raises:
        UsageError: there is no such file or name, or it is not for this model.
        WeightsMissingError: the published weights are not on this machine.
        CorruptError: the file was damaged, or it is not the one in `weights_digest`.
    """
    found = _read(recipe)
    if recipe.weights_digest and not found.digest.startswith(recipe.weights_digest):
        raise CorruptError(
            f"{found.source}: these weights have changed: SHA-256 {found.digest[:16]}…, "
            f"the recipe has {printable(recipe.weights_digest[:16])}…",
            "restore them, or start a new run",
        )
    return found


def _read(recipe: Recipe) -> InitialWeights:
    """Read the initial weights without comparing their digest with the recipe's."""
    source, entry = recorded_source(recipe), _published(recipe)
    path = Path(recipe.weights)
    require_trainable(path)
    if is_hub_name(source):
        _refuse_keys_for_foreign_files(recipe)
        return _of_folder(locate_repository(source), recipe)
    if entry is not None:
        _refuse_keys_for_foreign_files(recipe)
        return _of_entry(entry, locate(entry), source)
    if path.is_dir() or is_ours(path):
        _refuse_keys_for_foreign_files(recipe)
        return _of_weights(read_weights(path), source)
    digest = file_digest(path)
    if (known := identified_by(digest, recipe.model)) is not None:
        return _of_entry(known, path, source)
    like = _named(recipe, "weights_like") if recipe.weights_like else None
    return InitialWeights(
        source=source,
        digest=digest,
        weights=path,
        naming=recipe.naming or None,
        classes=() if like is None else class_names(like),
        preprocessing=None if like is None else preprocessing_of(like.spec),
    )


def _refuse_keys_for_foreign_files(recipe: Recipe) -> None:
    """Raise UsageError if the recipe sets keys that are only for files of other libraries."""
    for key in ("naming", "weights_like"):
        if getattr(recipe, key):
            raise UsageError(
                f"{printable(recipe.weights)}: {key} is for weights files of other libraries",
                f"leave out {key}",
            )


def _of_folder(folder: Path, recipe: Recipe) -> InitialWeights:
    """Return the weights in the folder of a repository."""
    found = read_shared_folder(folder)
    if isinstance(found, Weights):
        return _of_weights(found, recipe.weights)
    return InitialWeights(
        source=recipe.weights,
        digest=file_digest(found.file.path),
        weights=found.file.path,
        naming=found.naming,
        classes=found.classes,
        preprocessing=found.preprocessing,
    )


def require_trainable(path: Path) -> None:
    """Raise UsageError if a path is that of an exported file."""
    if path.suffix in SUFFIXES:
        raise UsageError(
            f"{path}: an exported file, which cannot be trained",
            "give the run or the weights that it was exported from",
        )


def _of_weights(weights: Weights, source: str) -> InitialWeights:
    return InitialWeights(
        source=source,
        digest=weights.digest,
        weights=weights,
        classes=weights.classes,
        preprocessing=weights.preprocessing,
    )


def _of_entry(entry: Entry[WeightsSpec], path: Path, source: str) -> InitialWeights:
    """Return published weights, from the file at `path`."""
    if not entry.spec.naming:
        return _of_weights(read_weights(path), source)
    return InitialWeights(
        source=source,
        digest=file_digest(path),
        weights=path,
        naming=entry.spec.naming,
        published=True,
        classes=class_names(entry),
        preprocessing=preprocessing_of(entry.spec),
    )


def sizes_of(dataset: Dataset) -> dict[str, Any]:
    """Return the arguments of `create_model` that depend on the dataset."""
    return {"num_classes": len(dataset.spec.classes), "in_channels": dataset.spec.image[0]}


def start_from(
    initial: InitialWeights, recipe: Recipe, dataset: Dataset
) -> tuple[Recipe, nn.Module, str]:
    """Build the network with initial weights, and a new head unless the classes are the same.

    The returned recipe records the weights, and takes from them the preprocessing and the options
    of the network that it does not set itself. The text is a line for the user: what is new, what
    is frozen, and which mean and standard deviation are used.
    """
    sizes = sizes_of(dataset)
    loaded = load_model(
        recipe.model,
        **sizes,
        weights=initial.weights,
        naming=initial.naming,
        new_head=True,
        **recipe.options,
    )
    # The contents of a published file are known, so its notes would tell nothing new.
    for note in () if initial.published else loaded.notes:
        log.warning("%s", note)
    # Record options that the weights need: the saved weights are rebuilt with them.
    given, new_head = recipe, loaded.new_head
    recipe, model = replace(recipe, options=dict(loaded.options)), loaded.model
    # With the same number of classes the old head fits, but its outputs stand for other classes.
    if initial.classes and initial.classes != dataset.spec.classes:
        new_head = _renew_head(model, recipe, sizes)
    recipe = replace(recipe, weights=initial.source, weights_digest=initial.digest)
    if initial.preprocessing is not None:
        recipe = _with_preprocessing(recipe, initial.preprocessing, dataset.spec.image[0])
    head = f"new head: {', '.join(new_head)}" if new_head else "head kept"
    frozen = [*_of_head_epochs(recipe)]
    frozen += [f"frozen: {', '.join(recipe.freeze)}"] if recipe.freeze else []
    statistics = _origin_of_statistics(given, recipe, dataset, loaded.naming)
    return (
        recipe,
        model,
        printable("; ".join([f"from {initial.source}", head, *frozen, statistics])),
    )


def _of_head_epochs(recipe: Recipe) -> Iterator[str]:
    """Yield words that say in which epochs only the head is trained, if there are such epochs."""
    if 0 < recipe.head_epochs < recipe.epochs:
        last = recipe.head_epochs
        yield f"{'epoch 1 trains' if last == 1 else f'epochs 1 to {last} train'} only the head"
    elif recipe.head_epochs:
        yield (
            f"only the head is trained, since head_epochs = epochs = {recipe.epochs}; all else "
            "stays as it is (--set head_epochs=0 trains everything)"
        )


def _origin_of_statistics(given: Recipe, recipe: Recipe, dataset: Dataset, naming: str) -> str:
    """Return words that say where mean and std come from: `given`, the weights or the dataset.

    In `recipe`, those of the weights are filled in.
    """
    known = "dataset"
    if any(getattr(recipe, key) and not getattr(given, key) for key in ("mean", "std")):
        known = "weights"
    mean, std = ("as set" if getattr(given, key) else f"of the {known}" for key in ("mean", "std"))
    if mean != std:
        return f"mean {mean}, std {std}"
    channels = dataset.spec.image[0]
    alike = (
        entry.spec.name.partition(":")[2]
        for entry in weights_of(recipe.model).values()
        if entry.spec.naming == naming != "" and len(entry.spec.mean) == channels
    )
    text = f"mean and std {mean}"
    if mean == "of the dataset" and not recipe.weights_like and (name := next(alike, "")):
        return f"{text}, those of the file are unknown (--set weights_like={name} sets them)"
    return text


def _renew_head(model: nn.Module, recipe: Recipe, sizes: Mapping[str, Any]) -> tuple[str, ...]:
    """Initialise the tensors that depend on the number of classes, as in an untrained network.

    Return their names.
    """
    torch.manual_seed(recipe.seed)
    untrained = create_model(recipe.model, **sizes, **recipe.options).state_dict()
    head = head_tensors(recipe.model, **sizes, **recipe.options)
    model.load_state_dict({**model.state_dict(), **{name: untrained[name] for name in head}})
    return tuple(head)


def _with_preprocessing(recipe: Recipe, known: Preprocessing, channels: int) -> Recipe:
    """Return a recipe with the preprocessing of its initial weights, where it sets none."""
    changes: dict[str, Any] = {}
    if len(known.mean) == channels:
        changes |= {"mean": recipe.mean or known.mean, "std": recipe.std or known.std}
    height, width = known.size
    if height == width and not (known.tiled or recipe.tile):
        changes["image_size"] = recipe.image_size or height
    if known.crops and recipe.fit in ("", "crop"):
        side = changes.get("image_size", height)
        changes |= {
            "fit": "crop",
            # In proportion, if the recipe sets another size.
            "resize": recipe.resize or round(known.resize * side / height),
            "interpolation": recipe.interpolation or known.interpolation,
        }
    return replace(recipe, **changes)


def advice(recipe: Recipe, dataset: Dataset) -> str:
    """Return a line that suggests pretrained weights for a small dataset, or ""."""
    count, entry = len(dataset.split("train")), next(iter(weights_of(recipe.model).values()), None)
    # Weights of the same dataset would leave nothing to learn.
    if recipe.weights or count >= SMALL or entry is None or entry.spec.data == dataset.spec.name:
        return ""
    return (
        f"hint: only {counted(count, 'training image')}: --weights default starts from "
        f"{entry.spec.name}, trained on {entry.spec.data}"
    )
