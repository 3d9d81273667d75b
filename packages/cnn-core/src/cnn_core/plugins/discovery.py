"""Find installed plugins without importing any, and record their faults.

Nothing here imports torch.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType

from cnn_core.errors import PluginError
from cnn_core.text import printable

__all__ = [
    "Fault",
    "Plugin",
    "StrictError",
    "block",
    "complain",
    "describe",
    "discover",
    "pin_violation",
    "requirements",
    "some",
    "strays",
]

GROUP = "cnnzoo"
LONGEST = 300  # characters of a cause that are printed

log: logging.Logger = logging.getLogger("cnn_core.plugins")


class StrictError(PluginError):
    """A warning that became an error under CNNZOO_STRICT=1."""


@dataclass(frozen=True)
class Fault:
    """A fault of a plugin; `fatal` if the plugin could not be loaded."""

    where: str
    cause: str
    fatal: bool = False
    exception: BaseException | None = field(default=None, compare=False)


@dataclass
class Plugin:
    """An entry point of the group "cnnzoo", with the result of loading it."""

    name: str
    distribution: str
    version: str
    target: str
    entry: importlib.metadata.EntryPoint | None = None
    blocked: str = ""
    module: ModuleType | None = None
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)

    @property
    def origin(self) -> str:
        """The unique name: "distribution/name"."""
        return f"{self.distribution}/{self.name}"

    @property
    def status(self) -> str:
        """ "blocked", "broken" (not loaded), "faulty" (loaded, with faults) or "ok"."""
        if self.blocked:
            return "blocked"
        if any(fault.fatal for fault in self.faults):
            return "broken"
        return "faulty" if self.faults else "ok"

    def add_fault(
        self,
        where: str,
        cause: str | BaseException,
        *,
        fatal: bool = False,
        again: bool = False,
    ) -> None:
        """Record a fault; warn of a plugin's first one, and of each one with `again`.

        Raises:
            StrictError: instead of the warning, under CNNZOO_STRICT=1.
        """
        exception = cause if isinstance(cause, BaseException) else None
        fault = Fault(where, describe(cause), fatal, exception)
        if again or not self.faults:
            complain(f"{self.report(fault)} (cnnzoo doctor -v says more)", exception)
        self.faults.append(fault)

    @property
    def who(self) -> str:
        """Its name, distribution and version, for error messages."""
        return printable(f"plugin '{self.name}' ({self.distribution} {self.version})")

    def failure(self, message: str) -> PluginError:
        """Return an error whose hint tells how to leave this plugin out."""
        name = shlex.quote(printable(self.name))
        return PluginError(message, f"fix it, or leave it out: cnnzoo --no-plugin {name} …")

    def report(self, fault: Fault) -> str:
        """Return a line with plugin, distribution, version, place and cause."""
        return f"{self.who}: {fault.where}: {fault.cause}"


def complain(message: str, cause: BaseException | None = None) -> None:
    """Log a warning; under CNNZOO_STRICT=1 raise StrictError instead."""
    if os.environ.get("CNNZOO_STRICT") == "1":
        raise StrictError(message) from cause
    log.warning("%s", message)


def describe(cause: str | BaseException) -> str:
    """Return a printable line that describes a cause, cut where it is very long."""
    text = cause if isinstance(cause, str) else _describe_exception(cause)
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")


def _describe_exception(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # the __str__ of a plugin's exception can be broken, too
        return name
    return f"{name}: {text}" if text else name


def some(names: list[str]) -> str:
    """Return the first three names and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def discover() -> list[Plugin]:
    """Return every installed plugin, sorted by origin, without importing any of them."""
    found = []
    for entry in _entry_points():
        # An entry point that `importlib.metadata` finds always belongs to a distribution.
        assert entry.dist is not None
        distribution, version = _identity(entry.dist)
        plugin = Plugin(entry.name, distribution, version, entry.value, entry)
        plugin.blocked = blocked(plugin)
        found.append(plugin)
    # The order of installation differs between machines; errors and lists must not.
    return sorted(found, key=lambda plugin: plugin.origin)


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    """Return the group's entry points; an unreadable file hides those of its distribution only."""
    try:
        # The short way first: it fails as a whole if any distribution's file is broken.
        return importlib.metadata.entry_points(group=GROUP)
    except Exception:
        return _readable_entry_points()


def _readable_entry_points() -> list[importlib.metadata.EntryPoint]:
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for dist in importlib.metadata.distributions():
        name, version = _identity(dist)
        if name in found:  # Python imports the first one on the path
            continue
        try:
            found[name] = list(dist.entry_points.select(group=GROUP))
        except Exception as error:
            found[name] = []
            where = printable(f"distribution {name} {version}: entry_points.txt")
            complain(f"{where}: {describe(error)}", error)
    return [entry for entries in found.values() for entry in entries]


def _identity(dist: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return a distribution's normalised name and its version, "unknown" where it has none."""
    try:
        name, version = dist.metadata["Name"], dist.metadata["Version"]
    except Exception:  # METADATA is missing, or is no text
        name = version = ""
    return _normal(name or "unknown"), version or "unknown"


def _normal(name: str) -> str:
    """Return a distribution's name, normalised as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(plugin: Plugin) -> set[str]:
    """Return the normalised names of the distributions that a plugin's distribution requires."""
    dist = plugin.entry.dist if plugin.entry is not None else None
    return _required(dist) if dist is not None else set()


def _required(dist: importlib.metadata.Distribution) -> set[str]:
    texts = [text for text in dist.requires or [] if "extra ==" not in text]
    named = [re.match(r"[\w.-]+", text) for text in texts]
    return {_normal(match.group()) for match in named if match is not None}


def strays() -> dict[str, str]:
    """Return a line for each distribution that requires cnn-core and registers no plugin."""
    found: dict[str, str] = {}
    for dist in importlib.metadata.distributions():
        name, version = _identity(dist)
        if name in found:  # Python imports the first one on the path
            continue
        try:
            groups = {entry.group for entry in dist.entry_points}
            is_stray = GROUP not in groups and "cnn-core" in _required(dist)
        except Exception:  # its files cannot be read: `discover` reports that
            continue
        found[name] = _astray(f"{name} {version}", groups) if is_stray else ""
    return {name: line for name, line in sorted(found.items()) if line and name != "cnnzoo"}


def _astray(who: str, groups: set[str]) -> str:
    import difflib

    by_lower = {group.lower(): group for group in groups}
    near = difflib.get_close_matches(GROUP, by_lower, n=1, cutoff=0.5)
    only = f", only in '{by_lower[near[0]]}'" if near else ""
    what = f"{who}: requires cnn-core but has no entry point in the group '{GROUP}'{only}"
    return printable(f"{what}: a plugin's pyproject.toml has [project.entry-points.{GROUP}]")


def blocked(plugin: Plugin) -> str:
    """Return the reason why the environment leaves this plugin out, or an empty string."""
    only = os.environ.get("CNNZOO_PLUGINS")
    if only is not None and not _named(plugin, only):
        return f"not in CNNZOO_PLUGINS={only}"
    if _named(plugin, os.environ.get("CNNZOO_PLUGINS_DISABLE", "")):
        return "disabled by CNNZOO_PLUGINS_DISABLE or --no-plugin"
    return ""


def block(name: str) -> None:
    """Leave a plugin out of this process and its child processes; call it before `plugins()`."""
    kept_out = os.environ.get("CNNZOO_PLUGINS_DISABLE", "")
    os.environ["CNNZOO_PLUGINS_DISABLE"] = f"{kept_out},{name}".strip(",")


def _named(plugin: Plugin, names: str) -> bool:
    wanted = {name.strip() for name in names.split(",")}
    return plugin.name in wanted or plugin.origin in wanted


def pin_violation(plugin: Plugin) -> str:
    """Return the requirement that excludes this version of cnn-core, or an empty string."""
    from cnn_core.version import __version__

    dist = plugin.entry.dist if plugin.entry is not None else None
    for requirement in (dist.requires or []) if dist is not None else []:
        # Any spelling that PEP 503 allows, but no longer name such as cnn-core-extras.
        if not re.match(r"cnn[-_.]core\b(?![-_.])", requirement, re.IGNORECASE):
            continue
        if not _admits(requirement, __version__):
            return f"needs {requirement}, this is cnn-core {__version__}"
    return ""


def _admits(requirement: str, version: str) -> bool:
    """Whether a requirement admits `version`."""
    release = version.rpartition(".")[0]
    if re.fullmatch(rf"[\w.-]+\s*~=\s*{re.escape(release)}\.0", requirement):
        return True  # first-party plugins require this: saves importing packaging, 25 ms
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        return False
    # A requirement of an extra, or of another platform, does not apply here.
    if parsed.marker is not None and not parsed.marker.evaluate({"extra": ""}):
        return True
    # Else a pre-release of core would load no plugin at all.
    return parsed.specifier.contains(version, prereleases=True)
