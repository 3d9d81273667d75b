"""Resolve names by their context: a command line, a plugin's recipe, or a run.

A name that two plugins claim is ambiguous in `registry`; here the context can decide, such as the
plugin whose recipe uses the name. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

from cnn_core import registry
from cnn_core.errors import PluginError, ZooError
from cnn_core.plugins import plugins
from cnn_core.plugins.discovery import Plugin, requirements
from cnn_core.registry import Catalogue, Entry
from cnn_core.specs import DatasetSpec, ModelSpec, RecipeSpec, Spec
from cnn_core.text import printable

__all__ = [
    "base_name",
    "canonical_name",
    "contested_defaults",
    "default_recipe",
    "recipes_of",
    "recorded_name",
    "resolve_for",
    "resolved_name",
]

S = TypeVar("S", bound=Spec)


def base_name(name: str) -> str:
    """Return the bare name: "imagefolder" of "cnn-core/imagefolder:PATH"."""
    return name.partition(":")[0].rpartition("/")[2]


def canonical_name(catalogue: Catalogue[Any], name: str) -> str:
    """Return the shortest unambiguous form of a name; a dataset's :PATH is kept.

    Raises:
        UnknownNameError: nothing has that name.
        PluginError: two plugins claim it.
    """
    return _with_path(catalogue, catalogue.entry(name.partition(":")[0]), name)


def _with_path(catalogue: Catalogue[S], entry: Entry[S], name: str) -> str:
    _, colon, path = name.partition(":")
    return f"{catalogue.shown_name(entry)}{colon}{path}"


# Recipes


def resolve_for(catalogue: Catalogue[S], name: str, plugin: Plugin) -> Entry[S]:
    """Return the entry that a plugin means by a name.

    That is its own, else the one of a distribution it requires, else the only one.

    Raises:
        UnknownNameError: nothing has that name.
        PluginError: several plugins claim it, and none of these rules chooses one.
    """
    head = name.partition(":")[0]
    claims = catalogue.claims(head)
    if len(claims) > 1:
        # A plugin was written against its own names and those of its requirements. Whatever else
        # is installed beside them must not change what its recipe means.
        for near in ({plugin.distribution}, requirements(plugin)):
            found = [entry for entry in claims if entry.plugin.distribution in near]
            if len(found) == 1:
                return found[0]
    return catalogue.entry(head)


def resolved_name(recipe: Entry[RecipeSpec], key: str) -> str:
    """Return an unambiguous name of a recipe's "model" or "data".

    Raises:
        ZooError: it is not installed, or the name is ambiguous.
    """
    if key == "model":
        models = registry.models()
        return models.shown_name(resolve_for(models, recipe.spec.model, recipe.plugin))
    datasets, name = registry.datasets(), recipe.spec.dataset
    return _with_path(datasets, resolve_for(datasets, name, recipe.plugin), name)


def recipes_of(model: Entry[ModelSpec]) -> list[Entry[RecipeSpec]]:
    """Return the recipes of all plugins for this model."""
    found, models = [], registry.models()
    for _, recipe in registry.recipes():
        with contextlib.suppress(ZooError):  # its model is not installed
            if resolve_for(models, recipe.spec.model, recipe.plugin).qualified == model.qualified:
                found.append(recipe)
    return found


def default_recipe(model: str, data: str) -> Entry[RecipeSpec] | None:
    """Return the default recipe of a model and dataset, given by their canonical names.

    That is the one from the model's distribution, else from the dataset's, else from any.

    Raises:
        PluginError: two recipes have equal precedence.
    """
    found = _defaults().get((model, data), [])
    if len(found) > 1:
        names = " and ".join(f"'{entry.qualified}'" for entry in found)
        raise PluginError(
            printable(f"the default recipe of {model} on {data} is ambiguous: {names}"),
            f"name one of them: --recipe {printable(found[0].qualified)}",
        )
    return found[0] if found else None


def contested_defaults() -> list[str]:
    """Return a line for each pair with several default recipes of equal precedence."""
    return [
        printable(f"default recipe of {model} on {data} is claimed twice: use --recipe ")
        + " or ".join(printable(f"'{entry.qualified}'") for entry in found)
        for (model, data), found in sorted(_defaults().items())
        if len(found) > 1
    ]


def _defaults() -> dict[tuple[str, str], list[Entry[RecipeSpec]]]:
    """Return the default recipes of highest precedence for each (model, dataset)."""
    by_pair: dict[tuple[str, str], list[Entry[RecipeSpec]]] = {}
    for _, recipe in registry.recipes():
        if not recipe.spec.default:
            continue
        with contextlib.suppress(ZooError):  # its model or dataset is not installed
            # Each plugin's names are resolved in its own context before they are compared.
            pair = resolved_name(recipe, "model"), resolved_name(recipe, "data")
            by_pair.setdefault(pair, []).append(recipe)
    return {pair: _nearest(pair, found) for pair, found in by_pair.items()}


def _nearest(pair: tuple[str, str], found: list[Entry[RecipeSpec]]) -> list[Entry[RecipeSpec]]:
    model: Entry[ModelSpec] = registry.models().entry(pair[0])
    data: Entry[DatasetSpec] = registry.datasets().entry(pair[1].partition(":")[0])
    for owner in (model.plugin.distribution, data.plugin.distribution):
        if own := [entry for entry in found if entry.plugin.distribution == owner]:
            return own
    return found


# Runs


def recorded_name(catalogue: Catalogue[Any], name: str, recorded: Any, where: object) -> str:
    """Return the current name of the entry that `name` meant when the run `where` was written.

    `recorded` is the result of `registry.origin` at that time; without it `name` is returned.

    Raises:
        PluginError: its distribution is not installed, or no longer offers it.
    """
    if not isinstance(recorded, Mapping) or "distribution" not in recorded:
        return name
    distribution, version = recorded["distribution"], recorded.get("version")
    if all(plugin.distribution != distribution for plugin in plugins().all):
        raise PluginError(
            f"{where}: {catalogue.kind} '{name}' is from {distribution} {version}, "
            "which is not installed",
            shlex.join(["pip", "install", f"{distribution}=={version}"]),
        )
    # Not by its name alone: a plugin that was installed since may claim it.
    return _with_path(catalogue, catalogue.entry(f"{distribution}/{base_name(name)}"), name)
