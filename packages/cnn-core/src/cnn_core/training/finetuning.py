"""Fine-tune a trained network on other data, with settings made for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from cnn_core import registry
from cnn_core.data.dataset import load_dataset
from cnn_core.errors import UsageError
from cnn_core.files import expanded
from cnn_core.registry.names import canonical_name, resolve_for
from cnn_core.runs.run import Run
from cnn_core.text import did_you_mean, printable
from cnn_core.training.initial_weights import require_trainable
from cnn_core.training.setup import find_recipe
from cnn_core.training.sources import open_source
from cnn_core.training.trainer import train
from cnn_core.weights.hub import is_hub_name
from cnn_core.weights.native import is_ours, read_weights
from cnn_core.weights.published import file_digest, find_weights, identified_by

__all__ = ["finetune"]

# First the new head, then everything at a lower rate, as fastai's fine_tune (Howard and Gugger
# 2020, arXiv:2002.04688).
SETTINGS = {
    "epochs": 10,
    "head_epochs": 1,
    "batch_size": 32,
    "optimizer": "adamw",
    "head_lr": 2e-3,
    "lr": 1e-3,
    "layer_decay": 0.9,
    "weight_decay": 0.01,
    "weight_decay_on": "weights",
    "schedule": "one_cycle",
}
SEGMENTATION_BATCH_SIZE = 2  # more large images rarely fit
# For colour images. Digits must not be mirrored.
PHOTOGRAPHS = {"crop": (0.35, 1.0), "flip": True}
ARGUMENTS = {  # of `train`, beside recipe keys
    *("auto_resume", "fit_memory", "out", "data_dir", "download", "device", "workers"),
    *("progress", "observers"),
}


def finetune(
    source: str | os.PathLike[str],
    data: str,
    *,
    model: str = "",
    recipe: str | None = None,
    **settings: Any,
) -> Run:
    """Fine-tune trained weights on a dataset; return the run.

    `source` is a run, the name of published weights, "MODEL" or "MODEL:NAME", a repository,
    "hf:owner/name", or a weights file. For another library's file, `model` names the network.
    "MODEL:NAME" also names published weights with the same preprocessing as the file, and the
    recipe key `naming` gives the library. The head is new unless the classes are the same. The
    preprocessing is that of the weights, if it is known.

    `settings` are recipe keys and the arguments of `train`; they override the defaults: 10 epochs,
    the first of them for the head alone, AdamW with a lower rate for the stages further down, and
    for colour images random crops and mirroring. `recipe`, the name of a recipe or a TOML file,
    replaces these defaults.

    Raises:
        UsageError: the source, the dataset or a key is invalid, or they do not fit together.
        WeightsMissingError: the published weights are missing, and `download` is false.
        NumericalError: as for `train`.
    """
    arguments = {name: settings.pop(name) for name in ARGUMENTS & settings.keys()}
    for key in {"model", "weights"} & settings.keys():
        raise UsageError(f"{key} = {settings[key]!r}: the source already determines the {key}")
    download = bool(arguments.get("download"))
    name, weights, like = _described(source, model, download=download)
    if like:
        settings.setdefault("weights_like", like)
    defaults = None if recipe is not None else _defaults(name, data, arguments)
    if defaults and settings.get("head_epochs") == 0:
        del defaults["head_lr"]
    settings["weights"] = weights
    return train(recipe=find_recipe(name, data, recipe, settings, defaults), **arguments)


def _described(
    source: str | os.PathLike[str], model: str, *, download: bool
) -> tuple[str, str, str]:
    """Return the model of a source, and the recipe keys `weights` and `weights_like`."""
    if is_hub_name(str(source)):
        _require_no_model(str(source), model)
        return open_source(source, download=download).weights.model, str(source), ""
    path = expanded(source)
    name = str(path)
    require_trainable(path)
    if path.is_dir() or (path.is_file() and is_ours(path)):
        _require_no_model(name, model)
        return read_weights(path).model, name, ""
    if path.is_file():
        model, _, like = model.partition(":")
        known = None if model else identified_by(file_digest(path))
        if known is not None:
            model = resolve_for(registry.models(), known.spec.model, known.plugin).qualified
        if not model:
            raise UsageError(
                f"{path}: which network are these weights for?",
                "give its name: --model MODEL, one of cnnzoo list-models",
            )
        return canonical_name(registry.models(), model), name, like
    _require_no_model(name, model)
    if not registry.models().claims(name.partition(":")[0].rpartition("/")[2]):
        nearest = did_you_mean(name, registry.models().names())
        raise UsageError(
            f"'{printable(name)}' is neither a run, a weights file nor a model{nearest}",
            "trained networks: ls runs/, cnnzoo list-weights",
        )
    entry = find_weights(name)
    owner = resolve_for(registry.models(), entry.spec.model, entry.plugin).qualified
    model = canonical_name(registry.models(), owner)
    return model, f"{model}:{entry.spec.name.partition(':')[2]}", ""


def _require_no_model(source: str, model: str) -> None:
    if model:
        raise UsageError(
            f"{source}: model is for weights files of other libraries", "leave out --model"
        )


def _defaults(model: str, data: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of fine-tuning on a dataset."""
    if registry.get_spec(model).task == "segmentation":
        return {**SETTINGS, "batch_size": SEGMENTATION_BATCH_SIZE}
    spec = registry.datasets().get(data.partition(":")[0])
    if spec.folder:
        spec = load_dataset(data, data_dir=arguments.get("data_dir")).spec
    return {**SETTINGS, **(PHOTOGRAPHS if spec.image[0] == 3 else {})}
