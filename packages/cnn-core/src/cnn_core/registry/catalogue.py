"""Look up plugins' specs by name; report conflicts, suggest similar names or a package.

Looking up a name that two plugins claim raises an error that names both. Each spec is still
available as "distribution/name". Nothing here imports torch.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, NoReturn, TypeVar

from cnn_core.errors import PluginError, SpecError, UnknownNameError, UsageError
from cnn_core.plugins import isolated, plugins
from cnn_core.plugins.directory import directory
from cnn_core.plugins.discovery import Plugin, describe, warn_or_raise
from cnn_core.plugins.guard import watch
from cnn_core.plugins.origins import claim
from cnn_core.specs import (
    Check,
    CommandSpec,
    DatasetSpec,
    MetricSpec,
    ModelSpec,
    Paper,
    RecipeSpec,
    Spec,
    ViewSpec,
    WeightsSpec,
)
from cnn_core.text import natural, printable

__all__ = [
    "Catalogue",
    "Entry",
    "catalogues",
    "checks",
    "commands",
    "datasets",
    "get_spec",
    "list_models",
    "metrics",
    "models",
    "origin",
    "recipes",
    "resolve",
    "views",
    "weights",
]

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Entry(Generic[S]):
    """A spec and the plugin that provides it."""

    spec: S
    plugin: Plugin

    @property
    def qualified(self) -> str:
        """The qualified name, which is always unique: "distribution/name"."""
        return f"{self.plugin.distribution}/{self.spec.name}"

    def as_dict(self, name: str) -> dict[str, Any]:
        """Return the spec's fields and its distribution, with `name` as the name."""
        fields = _fields(self.spec)
        return {**fields, "name": name, "distribution": self.plugin.distribution}


def _fields(spec: Spec) -> dict[str, Any]:
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    paper = values.get("paper")
    return values if paper is None else {**values, "paper": dataclasses.asdict(paper)}


def _copied(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec's fields, with copies of its mappings and of its paper."""
    return {name: _copy(value) for name, value in fields.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return copy.deepcopy(dict(value))
    return copy.copy(value) if isinstance(value, Paper) else value


class Catalogue(Generic[S]):
    """All specs of one kind, by name."""

    def __init__(self, hook: str, kind: type[S]) -> None:
        self.kind: str = kind.kind
        self.entries: list[Entry[S]] = []
        for plugin, specs in plugins().call(hook):
            if fault := _fault_in(specs, kind):
                plugin.add_fault(f"hook {hook}", fault)
                continue
            self.entries += [Entry(spec, plugin) for spec in specs]
        self.entries.sort(key=lambda entry: natural(entry.qualified))
        self._claims: dict[str, list[Entry[S]]] = {}
        for entry in self.entries:
            for name in _names(entry.spec):
                self._claims.setdefault(name, []).append(entry)
        self._report_conflicts()
        # All callers share these specs, so changes that a plugin makes to them are undone.
        self._originals = [_copied(vars(entry.spec)) for entry in self.entries]
        watch(self)

    def undo_changes(self) -> list[str]:
        """Restore specs that were changed after loading; return their names."""
        changed = []
        for entry, original in zip(self.entries, self._originals, strict=True):
            if vars(entry.spec) != original:
                changed.append(f"{self.kind} '{entry.qualified}'")
                vars(entry.spec).update(_copied(original))  # frozen: bypass __setattr__
        return changed

    @property
    def conflicts(self) -> list[str]:
        """A message for each name that more than one plugin claims."""
        return [
            printable(f"{self.kind} name '{name}' is ambiguous: use ")
            + " or ".join(printable(f"'{entry.qualified}'") for entry in claims)
            for name, claims in sorted(self._claims.items())
            if len(claims) > 1
        ]

    def _report_conflicts(self) -> None:
        for line in self.conflicts:
            warn_or_raise(line)

    def __iter__(self) -> Iterator[tuple[str, Entry[S]]]:
        """Yield (name, entry) in natural order; ambiguous names are qualified."""
        named = [(self.shown_name(entry), entry) for entry in self.entries]
        return iter(sorted(named, key=lambda pair: natural(pair[0])))

    def shown_name(self, entry: Entry[S]) -> str:
        """Return the spec's own name if it is unique, else the qualified name."""
        unique = len(self._claims[entry.spec.name]) == 1
        return entry.spec.name if unique else entry.qualified

    def match(self, pattern: str) -> list[tuple[str, Entry[S]]]:
        """Return (name, entry) for the names that match a shell pattern, such as "resnet*".

        An ambiguous name matches with or without its distribution.
        """
        return [
            (name, entry)
            for name, entry in self
            if any(fnmatch.fnmatchcase(n, pattern) for n in (name, entry.spec.name))
        ]

    def require_match(self, pattern: str) -> list[tuple[str, Entry[S]]]:
        """Return what `match` does; raise an error if no name matches, except for "*".

        Raises:
            UnknownNameError, UsageError, PluginError: as for `get`, with the pattern as the name.
        """
        found = self.match(pattern)
        if not found and pattern != "*":
            raise self._missing(pattern)
        return found

    def names(self) -> list[str]:
        """Return all names, sorted naturally."""
        return [name for name, _ in self]

    def claims(self, name: str) -> list[Entry[S]]:
        """Return the entries with this name or alias."""
        return self._claims.get(name, [])

    def get(self, name: str) -> S:
        """Return the spec; `name` is its name, an alias or "distribution/name".

        Raises:
            UnknownNameError: there is no such name; the message suggests similar ones.
            UsageError: the distribution that provides it is not installed.
            PluginError: two plugins claim it, or its plugin is blocked, faulty or too old.
        """
        return self.entry(name).spec

    def entry(self, name: str) -> Entry[S]:
        """Return the spec and its plugin. Raises the same errors as `get`."""
        distribution, _, base = name.rpartition("/")
        claims = self._claims.get(base, [])
        if distribution:
            claims = [e for e in claims if e.plugin.distribution == distribution]
        if not claims:
            raise self._missing(name)
        if len(claims) > 1:
            origins = " and ".join(f"'{entry.qualified}'" for entry in claims)
            raise PluginError(f"{self.kind} '{name}' is ambiguous: {origins}", "use one of them")
        return claims[0]

    def _missing(self, name: str) -> Exception:
        """Return an error that explains why the name is missing and how to get it."""
        # os.path: pathlib raises for names that are too long to be files.
        if self.kind == "dataset" and os.path.isdir(name):
            hint = (
                f"for the images in this folder: imagefolder:{name}; with masks: maskfolder:{name}"
            )
            return UnknownNameError(self.kind, name, (), hint)
        requested, _, base = name.rpartition("/")
        # The directory also knows the names in distributions that are not installed.
        known = directory().get(self.kind, {})
        distribution = requested or known.get(base)
        what = printable(f"{self.kind} '{name}' comes with {distribution}, which")
        for plugin in plugins().all:
            # It is installed but at fault: the reason helps, another pip install does not.
            if plugin.distribution == distribution and plugin.status != "ok":
                reason = plugin.blocked or plugin.report(plugin.faults[0])
                hint = "for details: cnnzoo doctor -v"
                return PluginError(f"{what} is {plugin.status}: {reason}", hint)
        if distribution is None or distribution != known.get(base):
            candidates = [*self._claims, *known]
            return UnknownNameError(
                self.kind, name, candidates, f"see: cnnzoo {self._list_command}"
            )
        if any(plugin.distribution == distribution for plugin in plugins().all):
            hint = f"pip install --upgrade {distribution}"
            return PluginError(f"{what} does not provide it in the installed version", hint)
        return UsageError(f"{self.kind} '{name}' is not installed", f"pip install {distribution}")

    @property
    def _list_command(self) -> str:
        return "--help" if self.kind == "command" else f"list-{self.kind.removesuffix('s')}s"


def _names(spec: Spec) -> tuple[str, ...]:
    return (spec.name, *getattr(spec, "aliases", ()))


def _fault_in(specs: Any, kind: type[Spec]) -> str:
    """Return a description of the fault in a hook's result, or "" if there is none."""
    if not isinstance(specs, list):
        return f"returned {type(specs).__name__}, expected an iterable of {kind.__name__}"
    for spec in specs:
        if not isinstance(spec, kind):
            return f"returned a {type(spec).__name__} among its items, expected {kind.__name__}"
        if fault := _display_fault(spec):
            return fault
    names = [name for spec in specs for name in _names(spec)]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    return f"offers {kind.kind} '{duplicates[0]}' twice" if duplicates else ""


def _display_fault(spec: Spec) -> str:
    """Return why a spec cannot be listed or written as JSON, or an empty string."""
    checked = {"str": str, "int": int, "bool": bool}
    try:
        for field in dataclasses.fields(spec):
            # specs.py postpones the evaluation of annotations, so field types are strings.
            kind = checked.get(str(field.type), object)
            spec.require(field.name, isinstance(getattr(spec, field.name), kind), kind.__name__)
        json.dumps(_fields(spec), allow_nan=False, default=repr)
    except SpecError as error:
        return str(error)
    except Exception as error:
        return f"{spec.kind} '{spec.name}' cannot be listed: {describe(error)}"
    return ""


# Cached: the hooks are called once, and only for the kinds that are asked for.
@functools.cache
def models() -> Catalogue[ModelSpec]:
    """Return the catalogue of architectures."""
    return Catalogue("cnnzoo_models", ModelSpec)


@functools.cache
def datasets() -> Catalogue[DatasetSpec]:
    """Return the catalogue of datasets."""
    return Catalogue("cnnzoo_datasets", DatasetSpec)


@functools.cache
def recipes() -> Catalogue[RecipeSpec]:
    """Return the catalogue of recipes."""
    return Catalogue("cnnzoo_recipes", RecipeSpec)


@functools.cache
def metrics() -> Catalogue[MetricSpec]:
    """Return the catalogue of metrics."""
    return Catalogue("cnnzoo_metrics", MetricSpec)


@functools.cache
def views() -> Catalogue[ViewSpec]:
    """Return the catalogue of views."""
    return Catalogue("cnnzoo_views", ViewSpec)


@functools.cache
def weights() -> Catalogue[WeightsSpec]:
    """Return the catalogue of pretrained weights."""
    return Catalogue("cnnzoo_weights", WeightsSpec)


@functools.cache
def commands() -> Catalogue[CommandSpec]:
    """Return the catalogue of commands."""
    return Catalogue("cnnzoo_commands", CommandSpec)


@functools.cache
def checks() -> Catalogue[Check]:
    """Return the catalogue of plugins' own health checks."""
    return Catalogue("cnnzoo_doctor", Check)


def catalogues() -> list[Catalogue[Any]]:
    """Return all catalogues; the first call runs all provider hooks of all plugins."""
    return [
        models(),
        datasets(),
        recipes(),
        metrics(),
        views(),
        weights(),
        commands(),
        checks(),
    ]


def list_models(pattern: str = "*", task: str | None = None) -> list[str]:
    """Return the names of models that match a shell pattern and a task, in natural order."""
    found = models().match(pattern)
    return [name for name, entry in found if task in (None, entry.spec.task)]


def get_spec(name: str) -> ModelSpec:
    """Return the spec of one model.

    Raises:
        UsageError, PluginError: as for `Catalogue.get`.
    """
    return models().get(name)


def origin(catalogue: Catalogue[Any], name: str) -> dict[str, str]:
    """Return the distribution that provides `name`, and its version, for a run to record."""
    plugin = catalogue.entry(name).plugin
    return {"distribution": plugin.distribution, "version": plugin.version}


def resolve(entry: Entry[Any], field: str = "target") -> Any:
    """Import the object that a field of a spec gives as "package.module:name".

    Raises:
        PluginError: the module or the name does not exist, or the import fails.
    """
    spec, plugin, target = entry.spec, entry.plugin, getattr(entry.spec, field)
    module, _, name = target.partition(":")
    # Before the import, so that errors in this module are attributed to the plugin.
    claim(module, plugin)

    def failed(error: BaseException) -> NoReturn:
        what = f"{spec.kind} '{spec.name}' of {plugin.label}: cannot import {target}"
        hint = f"fix or remove it: pip uninstall {plugin.distribution}"
        raise PluginError(f"{what}: {describe(error)}", hint) from error

    with isolated(plugin, f"import of {module}", failed=failed):
        return getattr(import_module(module), name)
