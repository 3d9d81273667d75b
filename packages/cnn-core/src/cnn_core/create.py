"""Build a model by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
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

    from cnn_core.weights.keymap import KeyMap
    from cnn_core.weights.native import Weights

__all__ = ["build", "build_untrained", "create_model", "head_tensors", "sizes_in_file"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")  # of published weights, not a path


@dataclass(frozen=True, kw_only=True)
class _Foreign:
    """A weights file of another library, with what is known about it."""

    path: Path
    naming: str | None = None
    num_classes: int | None = None
    in_channels: int | None = None


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
    `download`; a run directory or its weights.safetensors; a `Weights` object; or a .safetensors,
    .pt or .pth file of another library. The architecture must know that library's parameter names
    (torchvision, timm, …); set `naming` to the library if the names are ambiguous.

    `num_classes` and `in_channels` default to those of the weights if these record them, else to
    the paper's. `options` are further keyword arguments of the model's constructor. With
    `new_head` the weights may have another number of classes; layers that depend on it are then
    randomly initialised.

    Raises:
        UnknownNameError: there is no such model; suggests similar names or a package to install.
        UsageError: an option or value is invalid, or the weights are for another model.
        WeightsMissingError: the published weights are not on this machine.
        PluginError: the architecture's code raises an exception.
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
    if source is not None:
        heads = _heads(entry, build, sizes, options) if new_head else ()
        _load(model, entry, source, fresh=heads)
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
    weights: str | PathLike[str] | Weights,
    naming: str | None,
    download: bool,
) -> Weights | _Foreign:
    """Return weights by path or by name: read them if they are ours, else say where they are."""
    from cnn_core.weights.native import Weights, is_ours, read_weights
    from cnn_core.weights.published import class_names, find_weights, locate

    if isinstance(weights, Weights):
        return weights
    path = Path(weights)
    if isinstance(weights, str) and _NAME.fullmatch(weights) and not path.exists():
        published = find_weights(f"{entry.qualified}:{weights}")
        path, spec = locate(published, download=download), published.spec
        if spec.naming:
            return _Foreign(
                path=path,
                naming=naming or spec.naming,
                num_classes=len(class_names(published)),
                in_channels=len(spec.mean),
            )
    if not path.is_dir() and not is_ours(path):
        return _Foreign(path=path, naming=naming)
    return read_weights(path)


def _load(
    model: nn.Module,
    entry: registry.Entry[ModelSpec],
    source: Weights | _Foreign,
    fresh: Collection[str],
) -> None:
    """Load weights into the model; tensors named in `fresh` may keep their initial values."""
    if isinstance(source, _Foreign):
        from cnn_core.weights.foreign import load_foreign, read_foreign

        state, path = read_foreign(source.path), source.path
        load_foreign(model, state, _key_maps(entry), path, naming=source.naming, fresh=fresh)
        return
    # If several plugins provide a model, the recorded name is "distribution/name".
    if source.model.rpartition("/")[2] not in (entry.spec.name, *entry.spec.aliases):
        raise UsageError(
            f"{source.path}: weights of '{source.model}', not of '{entry.spec.name}'",
            "matching names and shapes are not enough: the models may compute different functions",
        )
    source.load_into(model, fresh)


def _key_maps(entry: registry.Entry[ModelSpec]) -> Mapping[str, KeyMap]:
    """Return the key maps of a model by naming."""
    has_maps = bool(entry.spec.key_maps)
    maps: Mapping[str, KeyMap] = {}
    return registry.resolve(entry, "key_maps")(entry.spec.name) if has_maps else maps


def sizes_in_file(
    entry: registry.Entry[ModelSpec], path: Path, naming: str | None = None
) -> tuple[int, int]:
    """Return the numbers of classes and of input channels in a weights file of another library.

    They are the sizes of those dimensions of the model's tensors that grow with them; the model's
    own numbers if the file has no such tensor.
    """
    from cnn_core.weights.foreign import best_naming, read_foreign

    build, spec, state = registry.resolve(entry), entry.spec, read_foreign(path)
    sizes = {"num_classes": spec.num_classes, "in_channels": spec.input[0]}
    own = _shapes(entry, build, sizes, {})
    _, theirs = best_naming(own, state, _key_maps(entry), naming)
    for size, number in list(sizes.items()):
        more = _shapes(entry, build, {**sizes, size: number + 1}, {})
        for key, shape in own.items():
            grown = [d for d, n in enumerate(shape) if n == number and more[key][d] == number + 1]
            if grown and (found := state.get(theirs[key])) is not None:
                if found.ndim == len(shape):
                    sizes[size] = found.shape[grown[0]]
                break
    return sizes["num_classes"], sizes["in_channels"]


def head_tensors(name: str, *, num_classes: int, in_channels: int, **options: Any) -> list[str]:
    """Return the names of a model's tensors whose shape depends on the number of classes."""
    entry = registry.models().entry(name)
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    return _heads(entry, registry.resolve(entry), sizes, options)


def _heads(
    entry: registry.Entry[ModelSpec],
    build: Any,
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
) -> list[str]:
    """Return the names of the tensors whose shape depends on the number of classes."""
    more = {**sizes, "num_classes": sizes["num_classes"] + 1}
    before, after = (_shapes(entry, build, s, options) for s in (sizes, more))
    return [name for name in before if before[name] != after[name]]


def _shapes(
    entry: registry.Entry[ModelSpec],
    build: Any,
    sizes: Mapping[str, int],
    options: Mapping[str, Any],
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters and buffers, by name."""
    import torch

    message = f"model '{entry.spec.name}' ({entry.plugin.origin}) cannot be built"
    failed = required(entry.plugin, message)
    # The meta device needs no memory, and fork_rng keeps the caller's random state.
    with (
        torch.random.fork_rng(devices=[]),
        torch.device("meta"),
        isolated(entry.plugin, f"building of {entry.spec.name}", failed=failed),
    ):
        state = build(**sizes, **options).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


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
