"""Build a model by name."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_core import registry
from cnn_core.errors import UsageError
from cnn_core.files import expanded
from cnn_core.plugins import isolated, required
from cnn_core.specs import ModelSpec
from cnn_core.text import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from cnn_core.weights.blueprint import Blueprint
    from cnn_core.weights.foreign import ForeignFile
    from cnn_core.weights.native import Weights

__all__ = ["Loaded", "build", "build_untrained", "create_model", "head_tensors", "load_model"]

log: logging.Logger = logging.getLogger("cnn_core")

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")  # of published weights, not a path


@dataclass(frozen=True, kw_only=True)
class _Foreign:
    """A weights file of another library, with its key naming and its sizes."""

    file: ForeignFile
    naming: str | None = None
    num_classes: int | None = None
    in_channels: int | None = None
    published: bool = False


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model, with the options of its constructor, and lines for the user about its weights.

    `options` includes those that the weights need, such as another activation. `naming` is the key
    map under which a file of another library was read. `new_head` are the tensors that keep their
    random values, because the weights have another head.
    """

    model: nn.Module
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    naming: str = ""
    new_head: tuple[str, ...] = ()


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | PathLike[str] | Weights | None = None,
    naming: str | None = None,
    new_head: bool = False,
    download: bool = False,
    **options: Any,
) -> nn.Module:
    """Build the model called `name`, randomly initialised or with `weights`.

    `weights` is "default" or the name of published weights, which are fetched if necessary with
    `download`; a repository of the Hugging Face Hub, "hf:owner/name"; a run directory or its
    weights.safetensors; a `Weights` object; or a .safetensors, .pt or .pth file of another
    library. The architecture must know that library's parameter names (torchvision, timm, …); set
    `naming` to the library if the names are ambiguous.

    `num_classes` and `in_channels` default to those of the weights if these record them, else to
    the paper's. `options` are further keyword arguments of the model's constructor; those that the
    weights need, such as another activation, are set unless given. With `new_head` the weights may
    have another head; layers that depend on the number of classes are then randomly initialised.
    Warnings name the part of a file that was taken, the tensors left out, and anything unusual.

    Raises:
        UnknownNameError: there is no such model; suggests similar names or a package to install.
        UsageError: an option or value is invalid, or the weights are for another model.
        WeightsMissingError: the published weights are not on this machine.
        PluginError: the architecture's code raises an exception.
    """
    loaded = load_model(
        name,
        num_classes=num_classes,
        in_channels=in_channels,
        weights=weights,
        naming=naming,
        new_head=new_head,
        download=download,
        **options,
    )
    for note in loaded.notes:
        log.warning("%s", note)
    if loaded.new_head:
        head = ", ".join(loaded.new_head)
        log.warning("%s: initialised anew, because the weights have another head: %s", name, head)
    return loaded.model


def load_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | PathLike[str] | Weights | ForeignFile | None = None,
    naming: str | None = None,
    new_head: bool = False,
    download: bool = False,
    **options: Any,
) -> Loaded:
    """Build a model as `create_model` does; return also its options and lines for the user.

    Raises:
        ZooError: as `create_model`.
    """
    entry = registry.models().entry(name)
    build = registry.resolve(entry)
    # Check before the call: a wrong option is the caller's mistake, but a TypeError raised by the
    # call is the plugin's.
    _check_options(name, entry, build, options)
    source = None if weights is None else _find(entry, weights, naming, download)
    spec, known = entry.spec, None if new_head else source
    sizes = {
        "num_classes": _positive("num_classes", num_classes, known, spec.num_classes),
        "in_channels": _positive("in_channels", in_channels, known, spec.input[0]),
    }
    if source is not None:
        from cnn_core.weights.blueprint import Blueprint  # imports torch

        needed = _options_of(source, Blueprint(entry, build, sizes, options))
        options = {**needed, **options}
    model = _built(name, entry, build, {**sizes, **options})
    notes: tuple[str, ...] = ()
    read_as = ""
    new: tuple[str, ...] = ()
    if source is not None:
        blueprint = Blueprint(entry, build, sizes, options)
        read_as, notes, new = _load(model, source, blueprint, new_head)
        notes += tuple(_clashes(needed, options))
    return Loaded(model=model, options=options, notes=notes, naming=read_as, new_head=new)


def _built(
    name: str, entry: registry.Entry[ModelSpec], build: Any, arguments: Mapping[str, Any]
) -> nn.Module:
    """Call a model's constructor; raise PluginError if it fails or returns something else."""
    label = f"model '{name}' ({entry.plugin.origin})"
    failed = required(entry.plugin, f"{label} cannot be built")
    with isolated(entry.plugin, f"building of {name}", failed=failed):
        model = build(**arguments)
    from torch import nn  # imported here to keep `import cnn_core` fast

    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise entry.plugin.failure(
            f"{label}: {entry.spec.target} returned {kind}, expected an nn.Module"
        )
    return model


def build_untrained(weights: Weights) -> nn.Module:
    """Build the model that `weights` belong to, with random initial weights."""
    return create_model(
        weights.model,
        num_classes=weights.num_classes,
        in_channels=weights.in_channels,
        **weights.options,
    )


def build(weights: Weights) -> nn.Module:
    """Build the model that `weights` belong to and load them; return it in eval mode."""
    model = build_untrained(weights)
    weights.load_into(model)
    return model.eval()


def _find(
    entry: registry.Entry[ModelSpec],
    weights: str | PathLike[str] | Weights | ForeignFile,
    naming: str | None,
    download: bool,
) -> Weights | _Foreign:
    """Return weights by path or by name, after checking that ours are for this model."""
    from cnn_core.weights.foreign import ForeignFile, read_foreign
    from cnn_core.weights.hub import is_hub_name, locate_repository
    from cnn_core.weights.native import Weights, is_ours, read_weights
    from cnn_core.weights.published import class_names, find_weights, locate

    if isinstance(weights, Weights):
        return _require_model(weights, entry)
    if isinstance(weights, ForeignFile):
        return _Foreign(file=weights, naming=naming)
    if is_hub_name(weights):
        return _in_repository(entry, locate_repository(weights, download=download), naming)
    path = expanded(weights)
    if isinstance(weights, str) and _NAME.fullmatch(weights) and not path.exists():
        published = find_weights(f"{registry.models().shown_name(entry)}:{weights}")
        path, spec = locate(published, download=download), published.spec
        if spec.naming:
            return _Foreign(
                file=read_foreign(path),
                naming=naming or spec.naming,
                num_classes=len(class_names(published)),
                in_channels=len(spec.mean),
                published=True,
            )
    if not path.is_dir() and not is_ours(path):
        return _Foreign(file=read_foreign(path), naming=naming)
    return _require_model(read_weights(path), entry)


def _in_repository(
    entry: registry.Entry[ModelSpec], folder: Path, naming: str | None
) -> Weights | _Foreign:
    """Return the weights in the folder of a repository: ours, or timm's with its config.json."""
    from cnn_core.weights.native import Weights
    from cnn_core.weights.timm_files import read_shared_folder

    found = read_shared_folder(folder)
    if isinstance(found, Weights):
        return _require_model(found, entry)
    _require_same(found.model, entry, folder)
    return _Foreign(
        file=found.file,
        naming=naming or found.naming,
        num_classes=len(found.classes),
        in_channels=len(found.preprocessing.mean),
        published=True,
    )


def _require_model(weights: Weights, entry: registry.Entry[ModelSpec]) -> Weights:
    """Return weights of ours; raise UsageError if they are for another model."""
    _require_same(weights.model, entry, weights.path)
    return weights


def _require_same(model: str, entry: registry.Entry[ModelSpec], path: Path | None) -> None:
    # If several plugins provide a model, the recorded name is "distribution/name".
    if model.rpartition("/")[2] not in (entry.spec.name, *entry.spec.aliases):
        raise UsageError(
            f"{path}: weights of '{model}', not of '{entry.spec.name}'",
            "matching names and shapes are not enough: the models may compute different functions",
        )


def _options_of(source: Weights | _Foreign, blueprint: Blueprint) -> Mapping[str, Any]:
    """Return the options of the model that weights were trained with, as far as known."""
    if not isinstance(source, _Foreign):
        return source.options
    from cnn_core.weights.blueprint import key_maps
    from cnn_core.weights.naming import best_match

    maps = key_maps(blueprint.entry)
    if not any(keymap.options for keymap in maps.values()):
        return {}
    match = best_match(blueprint.shapes(), source.file.tensors, maps, source.naming)
    return maps[match.naming].options if match.naming in maps else {}


def _clashes(needed: Mapping[str, Any], options: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each option that the caller set to another value than the weights need."""
    for option, value in needed.items():
        if options[option] != value:
            yield f"{option} = {options[option]!r}, but the weights are for {option} = {value!r}"


def _load(
    model: nn.Module, source: Weights | _Foreign, blueprint: Blueprint, new_head: bool
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Load weights; return their naming, lines for the user, and the tensors of a new head."""
    from cnn_core.weights.advice import hint_for
    from cnn_core.weights.blueprint import key_maps
    from cnn_core.weights.loading import MismatchError, load_foreign

    fresh = blueprint.dimensions_of("num_classes") if new_head else ()
    if not isinstance(source, _Foreign):
        return "", (), source.load_into(model, fresh)
    file, maps = source.file, key_maps(blueprint.entry)
    try:
        read_as, notes, new = load_foreign(model, file, maps, naming=source.naming, fresh=fresh)
    except MismatchError as error:
        raise UsageError(error.message, hint_for(error, blueprint, file)) from None
    # The contents of a published file are known, so do not list its other entries.
    shown = () if source.published else notes
    return read_as, tuple(f"{file.path}: {note}" for note in shown), new


def head_tensors(name: str, *, num_classes: int, in_channels: int, **options: Any) -> list[str]:
    """Return the names of a model's tensors whose shape depends on the number of classes."""
    from cnn_core.weights.blueprint import Blueprint

    entry = registry.models().entry(name)
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    blueprint = Blueprint(entry, registry.resolve(entry), sizes, options)
    return list(blueprint.dimensions_of("num_classes"))


def _check_options(
    name: str, entry: registry.Entry[ModelSpec], build: Any, options: Mapping[str, Any]
) -> None:
    if not callable(build):
        target = f"model '{name}' ({entry.plugin.origin}): {entry.spec.target}"
        raise entry.plugin.failure(f"{target} is of type {type(build).__name__}, not a function")
    known = [*inspect.signature(build).parameters]
    for option in options:
        if option not in known:
            raise UsageError(
                f"model '{name}' takes no option '{option}'{did_you_mean(option, known)}",
                f"options: {', '.join(known)}",
            )


def _positive(
    option: str, value: int | None, source: Weights | _Foreign | None, default: int
) -> int:
    """Return the value of an option: the caller's, else that of the weights, else the paper's."""
    if value is None:
        return getattr(source, option, None) or default
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"{option} = {value!r}: expected a positive integer")
    return value
