"""Build a model by name."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_core import registry
from cnn_core.errors import UsageError
from cnn_core.plugins import isolated, required
from cnn_core.specs import ModelSpec
from cnn_core.text import did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from cnn_core.weights.native import Weights

__all__ = ["build", "create_model", "untrained"]


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    weights: str | PathLike[str] | Weights | None = None,
    naming: str | None = None,
    new_head: bool = False,
    **options: Any,
) -> nn.Module:
    """Build the model called `name`, newly initialised or with `weights` from a file.

    `num_classes` and `in_channels` default to the paper's. `weights` is a run directory, its
    weights.safetensors, a `Weights`, or a .safetensors, .pt or .pth file of another library. The
    architecture has to know that library's names of the parameters (torchvision, timm, …);
    `naming` is the library, where the names alone do not tell. With `new_head` the weights may
    be for another number of classes: layers that depend on it are then newly initialised.
    `options` are the other arguments of the architecture's constructor.

    Raises:
        UnknownNameError: there is no such model; suggests names, or says what to install.
        UsageError: an option or a value that the architecture does not take; weights of another.
        PluginError: the architecture's own code fails.
    """
    entry = registry.models().entry(name)
    build = registry.resolve(entry)
    # Before the call: a typo is the caller's fault, a TypeError in the call the plugin's.
    _check_options(name, entry, build, options)
    spec = entry.spec
    sizes = {
        "num_classes": _positive("num_classes", num_classes, spec.num_classes),
        "in_channels": _positive("in_channels", in_channels, spec.input[0]),
    }
    what = f"model '{name}' ({entry.plugin.origin})"
    failed = required(entry.plugin, f"{what} cannot be built")
    with isolated(entry.plugin, f"building of {name}", failed=failed):
        model = build(**sizes, **options)
    from torch import nn  # not above: `import cnn_core` stays light

    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise entry.plugin.failure(f"{what}: {spec.target} returned {kind}, expected an nn.Module")
    if weights is not None:
        heads = _heads(entry, build, sizes, options) if new_head else ()
        _load(model, entry, weights, naming, fresh=heads)
    return model


def untrained(weights: Weights) -> nn.Module:
    """Return the model that `weights` are for, newly initialised."""
    return create_model(
        weights.model,
        num_classes=weights.num_classes,
        in_channels=weights.in_channels,
        **weights.options,
    )


def build(weights: Weights) -> nn.Module:
    """Return the model with `weights`, in eval mode."""
    model = untrained(weights)
    weights.load_into(model)
    return model.eval()


def _load(
    model: nn.Module,
    entry: registry.Entry[ModelSpec],
    weights: str | PathLike[str] | Weights,
    naming: str | None,
    fresh: Collection[str],
) -> None:
    """Load a run, its weights, or a file of another library; `fresh` may stay as they are."""
    from cnn_core.weights.foreign import load_foreign, read_foreign
    from cnn_core.weights.native import Weights, is_ours, read_weights

    if not isinstance(weights, Weights):
        path = Path(weights)
        if not path.is_dir() and not is_ours(path):
            has_maps = bool(entry.spec.key_maps)
            maps = registry.resolve(entry, "key_maps")(entry.spec.name) if has_maps else {}
            load_foreign(model, read_foreign(path), maps, path, naming=naming, fresh=fresh)
            return
        weights = read_weights(path)
    # A contested name is recorded with its distribution, which the spec's names do not have.
    if weights.model.rpartition("/")[2] not in (entry.spec.name, *entry.spec.aliases):
        raise UsageError(
            f"{weights.path}: weights of '{weights.model}', not of '{entry.spec.name}'",
            "parameters of the same names and shapes may still be another function's",
        )
    weights.load_into(model, fresh)


def _heads(
    entry: registry.Entry[ModelSpec],
    build: Any,
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
) -> list[str]:
    """Return the names of the tensors whose shape depends on the number of classes."""
    import torch

    # Compare two sizes of the same network. The meta device gives shapes without memory, and the
    # caller's random numbers stay as they are.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        more = {**sizes, "num_classes": sizes["num_classes"] + 1}
        what = f"model '{entry.spec.name}' ({entry.plugin.origin}) cannot be built"
        failed = required(entry.plugin, what)
        with isolated(entry.plugin, f"building of {entry.spec.name}", failed=failed):
            ours, others = (build(**s, **options).state_dict() for s in (sizes, more))
    return [name for name in ours if ours[name].shape != others[name].shape]


def _check_options(
    name: str, entry: registry.Entry[ModelSpec], build: Any, options: Mapping[str, Any]
) -> None:
    if not callable(build):
        what = f"model '{name}' ({entry.plugin.origin}): {entry.spec.target}"
        raise entry.plugin.failure(f"{what} is of type {type(build).__name__}, not a function")
    known = [*inspect.signature(build).parameters]
    for option in options:
        if option not in known:
            raise UsageError(
                f"model '{name}' takes no option '{option}'{did_you_mean(option, known)}",
                f"it takes: {', '.join(known)}",
            )


def _positive(option: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"{option} = {value!r}: expected a positive integer")
    return value
