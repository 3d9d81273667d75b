"""Resolve names in their context: on a command line, in a plugin's recipe, or in a run.

`registry` rejects a name that two plugins claim. Here the context can decide, for example the
plugin that provides the recipe. Nothing here imports torch.
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
    "ambiguous_defaults",
    "base_name",
    "canonical_name",
    "default_recipe",
    "recipes_of",
    "recorded_name",
    "resolve_for",
    "resolved_name",
]

S = TypeVar("S", bound=Spec)


def base_name(name: str) -> str:
    """Return the name alone: "imagefolder" for "cnn-core/imagefolder:PATH"."""
    return name.partition(":")[0].rpartition("/")[2]


def canonical_name(catalogue: Catalogue[Any], name: str) -> str:
    """Return the shortest unambiguous form of a name; a dataset's :PATH is kept.

    Raises:
        UnknownNameError: there is no such name.
        PluginError: two plugins claim it.
    """
    return _with_path(catalogue, catalogue.entry(name.partition(":")[0]), name)


def _with_path(catalogue: Catalogue[S], entry: Entry[S], name: str) -> str:
    _, colon, path = name.partition(":")
    return f"{catalogue.shown_name(entry)}{colon}{path}"


# Recipes


def resolve_for(catalogue: Catalogue[S], name: str, plugin: Plugin) -> Entry[S]:
    """Return the entry that `name` refers to in a plugin's recipe.

    The plugin's own entry comes first, then one from a distribution that it requires. Otherwise
    the name must be unambiguous.

    Raises:
        UnknownNameError: there is no such name.
        PluginError: several plugins claim it, and none of these rules chooses one.
    """
    head = name.partition(":")[0]
    claims = catalogue.claims(head)
    if len(claims) > 1:
        # A recipe was written against its plugin and the plugin's requirements. Installing other
        # plugins must not change the meaning of its names.
        for distributions in ({plugin.distribution}, requirements(plugin)):
            found = [entry for entry in claims if entry.plugin.distribution in distributions]
            if len(found) == 1:
                return found[0]
    return catalogue.entry(head)


def resolved_name(recipe: Entry[RecipeSpec], key: str) -> str:
    """Return the unambiguous name of a recipe's model or dataset; `key` is "model" or "data".

    Raises:
        ZooError: the model or dataset is not installed, or its name is ambiguous.
    """
    if key == "model":
        models = registry.models()
        return models.shown_name(resolve_for(models, recipe.spec.model, recipe.plugin))
    datasets, name = registry.datasets(), recipe.spec.dataset
    return _with_path(datasets, resolve_for(datasets, name, recipe.plugin), name)


def recipes_of(model: Entry[ModelSpec]) -> list[Entry[RecipeSpec]]:
    """Return all recipes for this model, from any plugin."""
    found, models = [], registry.models()
    for _, recipe in registry.recipes():
        with contextlib.suppress(ZooError):  # its model is not installed
            if resolve_for(models, recipe.spec.model, recipe.plugin).qualified == model.qualified:
                found.append(recipe)
    return found


def default_recipe(model: str, data: str) -> Entry[RecipeSpec] | None:
    """Return the default recipe for a model and a dataset, given their canonical names, or None.

    A recipe from the model's distribution takes precedence, then one from the dataset's.

    Raises:
        PluginError: two recipes have equal precedence.
    """
    found = _defaults().get((model, data), [])
    if len(found) > 1:
        names = " and ".join(f"'{entry.qualified}'" for entry in found)
        raise PluginError(
            printable(f"the default recipe of {model} on {data} is ambiguous: {names}"),
            f"choose one of them: --recipe {printable(found[0].qualified)}",
        )
    return found[0] if found else None


def ambiguous_defaults() -> list[str]:
    """Return a message for each model and dataset with several equal default recipes."""
    return [
        printable(f"default recipe of {model} on {data} is ambiguous: use --recipe ")
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
            # Two plugins may use different names for the same pair, so resolve them first.
            pair = resolved_name(recipe, "model"), resolved_name(recipe, "data")
            by_pair.setdefault(pair, []).append(recipe)
    return {pair: _of_highest_precedence(pair, found) for pair, found in by_pair.items()}


def _of_highest_precedence(
    pair: tuple[str, str], found: list[Entry[RecipeSpec]]
) -> list[Entry[RecipeSpec]]:
    model: Entry[ModelSpec] = registry.models().entry(pair[0])
    data: Entry[DatasetSpec] = registry.datasets().entry(pair[1].partition(":")[0])
    for owner in (model.plugin.distribution, data.plugin.distribution):
        if own := [entry for entry in found if entry.plugin.distribution == owner]:
            return own
    return found


# Runs


def recorded_name(catalogue: Catalogue[Any], name: str, recorded: Any, source: object) -> str:
    """Return today's name of the entry that a run or weights file refers to as `name`.

    `recorded` is the result of `registry.origin` from when `source` was written; without it,
    `name` is returned. `source` is the file or run that error messages mention.

    Raises:
        PluginError: its distribution is not installed.
        UsageError: its distribution no longer provides it.
    """
    if not isinstance(recorded, Mapping) or "distribution" not in recorded:
        return name
    distribution, version = recorded["distribution"], recorded.get("version")
    if all(plugin.distribution != distribution for plugin in plugins().all):
        raise PluginError(
            f"{source}: {catalogue.kind} '{name}' is from {distribution} {version}, "
            "which is not installed",
            shlex.join(["pip", "install", f"{distribution}=={version}"]),
        )
    # With the distribution: a plugin installed since then may claim the same name.
    return _with_path(catalogue, catalogue.entry(f"{distribution}/{base_name(name)}"), name)
