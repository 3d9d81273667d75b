"""Folders with a shared network: ours, or timm's, whose config.json is read and written here.

timm's create_model("hf-hub:owner/name") and ("local-dir:FOLDER") read a folder with config.json
and model.safetensors. Keys: https://huggingface.co/docs/timm/en/models
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_core import registry
from cnn_core.data.imagenet import CLASSES
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import CorruptError, UsageError, ZooError
from cnn_core.registry import Entry
from cnn_core.registry.names import canonical_name
from cnn_core.specs import ModelSpec
from cnn_core.text import printable
from cnn_core.weights.blueprint import Blueprint, key_maps, sizes_in_file
from cnn_core.weights.foreign import ForeignFile, read_foreign
from cnn_core.weights.hub import CONFIG, WEIGHTS
from cnn_core.weights.native import Weights, is_ours, read_weights

__all__ = ["TimmFolder", "read_shared_folder", "timm_config", "timm_naming"]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # timm's defaults
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class TimmFolder:
    """A network of ours in a folder of timm; `notes` say what had to be assumed."""

    model: str
    naming: str
    file: ForeignFile
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()


def timm_naming(weights: Weights) -> str:
    """Return the key map under which timm has this network, or "".

    timm's network computes the same only if the options of ours are those of the key map.
    """
    for naming, keymap in key_maps(registry.models().entry(weights.model)).items():
        if keymap.timm and dict(weights.options) == keymap.options:
            return naming
    return ""


def timm_config(weights: Weights, naming: str) -> dict[str, Any]:
    """Return the content of config.json for weights that timm has under the key map `naming`."""
    keymap = key_maps(registry.models().entry(weights.model))[naming]
    preprocessing, channels = weights.preprocessing, weights.in_channels
    cut = preprocessing.crops
    config = {
        "architecture": keymap.timm,
        "num_classes": weights.num_classes,
        "label_names": list(weights.classes),
        "pretrained_cfg": {
            "num_classes": weights.num_classes,
            "input_size": [channels, *preprocessing.size],
            "fixed_input_size": False,
            "interpolation": preprocessing.interpolation,
            "crop_pct": _crop_pct(preprocessing) if cut else 1.0,
            "crop_mode": "center" if cut else "squash",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
    }
    return config if channels == 3 else {**config, "model_args": {"in_chans": channels}}


def _crop_pct(preprocessing: Preprocessing) -> float:
    """Return the fraction that the crop is of the resized side."""
    side, resized = preprocessing.size[0], preprocessing.resize
    # Rounded down: timm divides by it and rounds down, and would otherwise be a pixel short.
    return math.floor(10_000 * side / resized) / 10_000


def read_shared_folder(folder: Path) -> Weights | TimmFolder:
    """Read the folder of a repository: our weights, or timm's for a network that we have, too.

    Strangers write these files, so a network is built only in the sizes of the file's tensors.

    Raises:
        ZooError: the files are broken, or do not fit together.
    """
    if not is_ours(folder / WEIGHTS):
        return _read_timm_folder(folder)
    weights = read_weights(folder / WEIGHTS)
    entry = registry.models().entry(weights.model)
    sizes = {"num_classes": weights.num_classes, "in_channels": weights.in_channels}
    shapes = Blueprint(entry, registry.resolve(entry), sizes, weights.options).shapes()
    if shapes != {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}:
        raise CorruptError(
            f"{weights.path}: its tensors are not those of '{weights.model}' with "
            f"{weights.num_classes:,} classes and options {dict(weights.options)}"
        )
    return weights


def _read_timm_folder(folder: Path) -> TimmFolder:
    """Read config.json and model.safetensors of a network that cnnzoo has, too.

    Raises:
        UsageError: cnnzoo lacks the network, or a step of its preprocessing.
        CorruptError: config.json is missing, broken or about other weights, or the weights are
            broken.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
        # Older files have all keys on the top level.
        fields = {**config, **config.get("pretrained_cfg", {})}
        architecture = config["architecture"]
        names = config.get("label_names") or fields.get("label_names") or fields.get("labels")
        channels = config.get("model_args", {}).get("in_chans")
        preprocessing = _preprocessing(path, fields, channels)
    except ZooError:
        raise
    except OSError as error:
        raise CorruptError(f"{path}: no such file: no description of the network") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CorruptError(f"{path}: not a description of a network by timm: {error!r}") from error
    entry, naming = _ours(path, architecture)
    file = read_foreign(folder / WEIGHTS)
    # The sizes of the tensors in the file: config.json could declare any.
    count, channels = sizes_in_file(entry, file, naming)
    if channels != len(preprocessing.mean):
        raise CorruptError(
            f"{path}: mean = {preprocessing.mean}, but the weights are for {channels} channels"
        )
    classes, notes = _classes(path, names, count)
    model = canonical_name(registry.models(), entry.qualified)
    return TimmFolder(model, naming, file, classes, preprocessing, notes)


def _ours(path: Path, architecture: object) -> tuple[Entry[ModelSpec], str]:
    """Return our network for an architecture of timm, and the name of the key map."""
    # Names with tags, as in "resnet50.a1_in1k", say which weights of it.
    wanted = str(architecture).partition(".")[0]
    for _, entry in registry.models():
        with contextlib.suppress(ZooError):  # a broken plugin
            for naming, keymap in key_maps(entry).items():
                if keymap.timm == wanted:
                    return entry, naming
    raise UsageError(
        f"{path}: architecture '{printable(wanted)}' of timm: cnnzoo has no such network",
        "its networks: cnnzoo list-models",
    )


def _classes(path: Path, names: object, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names, and a note if they had to be assumed."""
    if isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names):
        return tuple(names), ()
    if names:
        raise CorruptError(f"{path}: label_names: expected {count} names, one for each class")
    if count == len(CLASSES):
        return CLASSES, (f"{path}: no label_names: taken for the 1,000 classes of ImageNet",)
    numbered = tuple(f"class {number}" for number in range(count))
    return numbered, (f"{path}: no label_names: class names unknown",)


def _preprocessing(
    path: Path, fields: Mapping[str, Any], in_channels: int | None
) -> Preprocessing:
    """Return the preprocessing of timm's evaluation transform."""
    channels, height, width = (int(side) for side in fields.get("input_size", (3, 224, 224)))
    mean, std = (tuple(map(float, fields.get(key, IMAGENET[key]))) for key in ("mean", "std"))
    if not len(mean) == len(std) == (in_channels or channels) or min(std) <= 0:
        raise CorruptError(f"{path}: mean = {mean} and std = {std} for {channels} channels")
    crop_pct, mode = float(fields.get("crop_pct") or 0.875), fields.get("crop_mode") or "center"
    interpolation = fields.get("interpolation") or "bicubic"
    whole = mode == "squash" and crop_pct == 1 and interpolation == "bilinear"
    cut = mode == "center" and height == width and 0 < crop_pct <= 1
    if not whole and not (cut and interpolation in INTERPOLATIONS):
        raise UsageError(
            f"{path}: crop_mode '{printable(str(mode))}' with crop_pct {crop_pct:g}, "
            f"interpolation '{printable(str(interpolation))}' and size {height}x{width}: "
            "cnnzoo cannot prepare images like this"
        )
    return Preprocessing(
        size=(height, width),
        image_size=(0, 0),
        fit="crop" if cut else "resize",
        mean=mean,
        std=std,
        resize=math.floor(height / crop_pct) if cut else 0,
        interpolation=interpolation if cut else "bilinear",
    )
