"""Open a trained network.

A run, weights by name, a repository of the Hugging Face Hub, anybody's weights file, or an
exported file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cnn_core import registry
from cnn_core.create import Loaded, load_model
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import UsageError
from cnn_core.registry import Entry
from cnn_core.registry.names import canonical_name, resolve_for
from cnn_core.specs import ModelSpec, WeightsSpec
from cnn_core.text import did_you_mean, printable
from cnn_core.training.exported import SUFFIXES, open_exported
from cnn_core.weights.blueprint import key_maps, sizes_in_file
from cnn_core.weights.foreign import read_foreign
from cnn_core.weights.hub import WEIGHTS, is_hub_name, locate_repository
from cnn_core.weights.keymap import KeyMap
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

__all__ = ["Opened", "is_foreign", "is_run", "open_source", "preprocessing_of"]

FILES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar", *SUFFIXES)


@dataclass(frozen=True)
class Opened:
    """Weights with all that is needed to use them, and the network, if it was built to read them.

    `notes` are lines for the user about what had to be assumed.
    """

    weights: Weights
    model: nn.Module | None = None
    entry: Entry[WeightsSpec] | None = None
    notes: tuple[str, ...] = ()


def is_run(source: str | os.PathLike[str]) -> bool:
    """Return whether a source is the directory of a run."""
    return (Path(source) / "recipe.toml").is_file()


def is_foreign(source: str | os.PathLike[str]) -> bool:
    """Return whether a source is a weights file of another library."""
    path = Path(source)
    return path.is_file() and not is_ours(path) and path.suffix not in SUFFIXES


def open_source(
    source: str | os.PathLike[str],
    *,
    model: str = "",
    naming: str | None = None,
    download: bool = False,
) -> Opened:
    """Open a trained network by path or by name.

    `source` is a run, a weights file, an exported .pt2 or .onnx file, the name of published
    weights, "MODEL" or "MODEL:NAME", or a repository, "hf:owner/name", or a folder like it.
    `model` says which network the weights file of another library is for, unless the file is known
    by its hash, and `naming` which library's names its parameters have. With `download`, published
    weights are fetched if they are missing, and so is the newest version of a repository.

    Raises:
        UsageError: there is no such file or name, or an option does not apply to this source.
        WeightsMissingError: the published weights are not on this machine, and may not be fetched.
        CorruptError: the file was damaged or changed, or cannot be loaded safely.
    """
    path = Path(source)
    of_file = is_foreign(path)
    if (model or naming) and not of_file:
        if path.suffix in FILES:
            _require_exists(path)
        option = "model" if model else "naming"
        raise UsageError(
            f"{printable(str(source))}: {option} is for weights files of other libraries",
            f"leave out --{option}",
        )
    # A folder that happens to have the model's name is not a source.
    here = path.is_file() or is_run(path) or (path / WEIGHTS).is_file()
    if download and here:
        raise UsageError(f"{path}: is here already: there is nothing to download")
    if is_hub_name(source):
        return _open_folder(locate_repository(source, download=download))
    if of_file:
        return _open_foreign(path, model, naming)
    if path.is_file() and path.suffix in SUFFIXES:
        return Opened(*open_exported(path))
    if path.is_file() or is_run(path) or (path / "weights.safetensors").is_file():
        return Opened(read_weights(path))
    if (path / WEIGHTS).is_file():
        return _open_folder(path)
    return _open_published(str(source), download)


def _open_folder(folder: Path) -> Opened:
    """Open the files of a repository: weights of ours, or of timm with its config.json."""
    found = read_shared_folder(folder)
    if isinstance(found, Weights):
        return Opened(found)
    loaded = load_model(
        found.model,
        num_classes=len(found.classes),
        in_channels=len(found.preprocessing.mean),
        weights=found.file,
        naming=found.naming,
    )
    weights = _weights_of(
        loaded, found.model, found.classes, found.preprocessing, path=found.file.path
    )
    return Opened(weights, loaded.model.eval(), notes=(*found.notes, *loaded.notes))


def _weights_of(
    loaded: Loaded,
    model: str,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    *,
    path: Path,
) -> Weights:
    """Return the weights that a network was loaded with from a file of another library."""
    return Weights(
        tensors=loaded.model.state_dict(),
        model=model,
        num_classes=len(classes),
        in_channels=len(preprocessing.mean),
        options=loaded.options,
        classes=classes,
        preprocessing=preprocessing,
        epoch=0,
        path=path,
        digest=file_digest(path),
    )


def _require_exists(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"{printable(str(path))}: no such file or run", "ls runs/")


def _runs_beside(path: Path) -> list[str]:
    """Return the runs and weights files in the folder of a path, which may be misspelt."""
    try:
        found = [path.with_name(other.name) for other in path.parent.iterdir()]
        return [str(other) for other in found if other.suffix in FILES or is_run(other)]
    except (OSError, ValueError):  # no such folder, or a path without a name
        return []


def _open_published(name: str, download: bool) -> Opened:
    """Open published weights; raise UsageError if there is neither such a name nor such a path."""
    if not registry.models().claims(name.partition(":")[0].rpartition("/")[2]):
        path = Path(name)
        if path.exists():
            return Opened(read_weights(path))  # raises the error that explains what is missing
        if path.suffix in FILES or os.sep in name:
            nearest = did_you_mean(name, _runs_beside(path))
            raise UsageError(f"{printable(name)}: no such file or run{nearest}", "ls runs/")
        nearest = did_you_mean(name, [*registry.models().names(), *_runs_beside(path)])
        raise UsageError(
            f"'{printable(name)}' is neither a run, a file nor a model{nearest}",
            "trained networks: ls runs/, cnnzoo list-weights",
        )
    entry = find_weights(name)
    return _read_published(entry, locate(entry, download=download))


def _read_published(entry: Entry[WeightsSpec], path: Path) -> Opened:
    """Read the file of published weights."""
    spec = entry.spec
    if not spec.naming:
        return Opened(read_weights(path), entry=entry)
    classes, preprocessing = class_names(entry), preprocessing_of(spec)
    name = canonical_name(registry.models(), _model_of(entry))
    loaded = load_model(
        name,
        num_classes=len(classes),
        in_channels=len(spec.mean),
        weights=path,
        naming=spec.naming,
    )
    # The notes are left out: what a publisher's file contains beside the weights is known.
    weights = _weights_of(loaded, name, classes, preprocessing, path=path)
    return Opened(weights, loaded.model.eval(), entry)


def _model_of(entry: Entry[WeightsSpec]) -> str:
    """Return the unambiguous name of the model of published weights."""
    return resolve_for(registry.models(), entry.spec.model, entry.plugin).qualified


def preprocessing_of(spec: WeightsSpec) -> Preprocessing:
    """Return the preprocessing that published weights need."""
    return Preprocessing(
        size=spec.input_size,
        image_size=spec.image_size,
        fit=spec.fit,
        mean=spec.mean,
        std=spec.std,
        resize=spec.resize,
        interpolation=spec.interpolation,
    )


def _open_foreign(path: Path, model: str, naming: str | None) -> Opened:
    """Open the weights file of another library."""
    name, colon, _ = model.partition(":")
    if known := identified_by(file_digest(path), name):
        return _read_published(known, path)
    if not model:
        raise UsageError(
            f"{path}: which network are these weights for?",
            "give its name: --model MODEL, one of cnnzoo list-models",
        )
    entry = registry.models().entry(name)
    file = read_foreign(path)
    num_classes, in_channels = sizes_in_file(entry, file, naming)
    loaded = load_model(
        name, num_classes=num_classes, in_channels=in_channels, weights=file, naming=naming
    )
    like = find_weights(model) if colon else _published_like(name, num_classes)
    theirs = key_maps(entry).get(loaded.naming, KeyMap()).preprocessing
    if colon or (like is not None and like.spec.naming == loaded.naming):
        theirs = {}
    classes, preprocessing, assumed = _assumed(entry.spec, like, theirs, num_classes, in_channels)
    canonical = canonical_name(registry.models(), name)
    return Opened(
        _weights_of(loaded, canonical, classes, preprocessing, path=path),
        loaded.model.eval(),
        notes=loaded.notes if colon else (*loaded.notes, f"{path}: {assumed}"),
    )


def _published_like(model: str, num_classes: int) -> Entry[WeightsSpec] | None:
    """Return the model's published weights, with that number of classes if there are such."""
    published = list(weights_of(model).values())
    same = [entry for entry in published if entry.spec.num_classes == num_classes]
    return next(iter(same or published), None)


def _assumed(
    spec: ModelSpec,
    like: Entry[WeightsSpec] | None,
    theirs: Mapping[str, Any],
    num_classes: int,
    in_channels: int,
) -> tuple[tuple[str, ...], Preprocessing, str]:
    """Return classes and preprocessing for a file that has neither, and words that say so.

    `theirs` is the usual preprocessing of the file's library, if it is known and differs from that
    of `like`.
    """
    _, height, width = spec.input
    fields: dict[str, Any] = {"size": (height, width), "image_size": (0, 0)}
    if len(theirs.get("mean", ())) == in_channels:
        preprocessing = Preprocessing(**fields, **theirs)
        assumed = f"preprocessing as in its library, mean {preprocessing.mean}"
    elif like is not None and len(like.spec.mean) == in_channels:
        preprocessing = preprocessing_of(like.spec)
        assumed = f"preprocessing as for {like.spec.name}"
    else:
        values: dict[str, Any] = {"mean": (0.0,) * in_channels, "std": (1.0,) * in_channels}
        preprocessing = Preprocessing(**fields, **values, fit="resize")
        assumed = f"images resized to {height}x{width}, with values from 0 to 1"
    if like is not None and like.spec.num_classes == num_classes:
        also = f" as for {like.spec.name}," if theirs else " and"
        return class_names(like), preprocessing, f"classes{also} {assumed}"
    names = tuple(f"class {number}" for number in range(num_classes))
    return names, preprocessing, f"class names unknown, {assumed}"
