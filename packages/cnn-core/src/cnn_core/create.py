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

__all__ = ["build", "build_untrained", "create_model"]


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
    """Build the model called `name`, randomly initialised or with `weights`.

    `num_classes` and `in_channels` default to the paper's values. `weights` is a run directory,
    its weights.safetensors, a `Weights` object, or a .safetensors, .pt or .pth file of another
    library. The architecture must know that library's parameter names (torchvision, timm, …); set
    `naming` to the library if the names are ambiguous. With `new_head` the weights may have
    another number of classes; layers that depend on it are then randomly initialised. `options`
    are further keyword arguments of the model's constructor.

    Raises:
        UnknownNameError: there is no such model; suggests similar names or a package to install.
        UsageError: an option or value is invalid, or the weights are for another model.
        PluginError: the architecture's code raises an exception.
    """
    entry = registry.models().entry(name)
    build = registry.resolve(entry)
    # Check before the call: a wrong option is the caller's mistake, but a TypeError raised by the
    # call is the plugin's.
    _check_options(name, entry, build, options)
    spec = entry.spec
    sizes = {
        "num_classes": _positive("num_classes", num_classes, spec.num_classes),
        "in_channels": _positive("in_channels", in_channels, spec.input[0]),
    }
    label = f"model '{name}' ({entry.plugin.origin})"
    failed = required(entry.plugin, f"{label} cannot be built")
    with isolated(entry.plugin, f"building of {name}", failed=failed):
        model = build(**sizes, **options)
    from torch import nn  # imported here to keep `import cnn_core` fast

    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise entry.plugin.failure(
            f"{label}: {spec.target} returned {kind}, expected an nn.Module"
        )
    if weights is not None:
        heads = _heads(entry, build, sizes, options) if new_head else ()
        _load_weights(model, entry, weights, naming, fresh=heads)
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


def _load_weights(
    model: nn.Module,
    entry: registry.Entry[ModelSpec],
    weights: str | PathLike[str] | Weights,
    naming: str | None,
    fresh: Collection[str],
) -> None:
    """Load weights into the model; tensors named in `fresh` may keep their initial values."""
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
    # If several plugins provide a model, the recorded name is "distribution/name".
    if weights.model.rpartition("/")[2] not in (entry.spec.name, *entry.spec.aliases):
        raise UsageError(
            f"{weights.path}: weights of '{weights.model}', not of '{entry.spec.name}'",
            "matching names and shapes are not enough: the models may compute different functions",
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

    # Build the network with two class counts and compare shapes. The meta device needs no memory,
    # and fork_rng keeps the caller's random state.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        more = {**sizes, "num_classes": sizes["num_classes"] + 1}
        message = f"model '{entry.spec.name}' ({entry.plugin.origin}) cannot be built"
        failed = required(entry.plugin, message)
        with isolated(entry.plugin, f"building of {entry.spec.name}", failed=failed):
            before, after = (build(**s, **options).state_dict() for s in (sizes, more))
    return [name for name in before if before[name].shape != after[name].shape]


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


def _positive(option: str, value: int | None, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"{option} = {value!r}: expected a positive integer")
    return value
