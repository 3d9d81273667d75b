"""Find installed plugins without importing them, and record their faults.

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
    "abbreviated",
    "block",
    "describe",
    "discover",
    "pin_violation",
    "requirements",
    "unregistered",
    "warn_or_raise",
]

GROUP = "cnnzoo"
MAX_CAUSE = 300  # characters; longer causes are truncated

log: logging.Logger = logging.getLogger("cnn_core.plugins")


class StrictError(PluginError):
    """Raised instead of logging a warning under CNNZOO_STRICT=1."""


@dataclass(frozen=True)
class Fault:
    """A fault of a plugin; `fatal` if it prevents the plugin from being loaded.

    `stage` is the activity that failed, such as "import".
    """

    stage: str
    cause: str
    fatal: bool = False
    exception: BaseException | None = field(default=None, compare=False)


@dataclass
class Plugin:
    """An entry point of the group "cnnzoo", and the result of loading it."""

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
        """The qualified name, which is unique: "distribution/name"."""
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
        stage: str,
        cause: str | BaseException,
        *,
        fatal: bool = False,
        always_warn: bool = False,
    ) -> None:
        """Record a fault. Log a warning if it is the plugin's first, or with `always_warn`.

        Raises:
            StrictError: instead of the warning, under CNNZOO_STRICT=1.
        """
        exception = cause if isinstance(cause, BaseException) else None
        fault = Fault(stage, describe(cause), fatal, exception)
        if always_warn or not self.faults:
            warn_or_raise(f"{self.report(fault)} (for details: cnnzoo doctor -v)", exception)
        self.faults.append(fault)

    @property
    def label(self) -> str:
        """The plugin's name, distribution and version, for error messages."""
        return printable(f"plugin '{self.name}' ({self.distribution} {self.version})")

    def failure(self, message: str) -> PluginError:
        """Return a PluginError with the command that disables this plugin as its hint."""
        name = shlex.quote(printable(self.name))
        return PluginError(message, f"fix it, or disable it: cnnzoo --no-plugin {name} …")

    def report(self, fault: Fault) -> str:
        """Return one line with the plugin's label, the stage and the cause."""
        return f"{self.label}: {fault.stage}: {fault.cause}"


def warn_or_raise(message: str, cause: BaseException | None = None) -> None:
    """Log a warning; under CNNZOO_STRICT=1 raise StrictError instead."""
    if os.environ.get("CNNZOO_STRICT") == "1":
        raise StrictError(message) from cause
    log.warning("%s", message)


def describe(cause: str | BaseException) -> str:
    """Return a cause as printable text, truncated to MAX_CAUSE characters."""
    text = cause if isinstance(cause, str) else _describe_exception(cause)
    return printable(text if len(text) <= MAX_CAUSE else f"{text[:MAX_CAUSE]}…")


def _describe_exception(error: BaseException) -> str:
    name = type(error).__name__
    try:
        text = " ".join(str(error).split())
    except Exception:  # the __str__ of a plugin's exception can raise, too
        return name
    return f"{name}: {text}" if text else name


def abbreviated(names: list[str]) -> str:
    """Return the first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def discover() -> list[Plugin]:
    """Return every installed plugin, sorted by origin, without importing any of them."""
    found = []
    for entry in _entry_points():
        # `dist` is None only for entry points created by hand.
        assert entry.dist is not None
        distribution, version = _identity(entry.dist)
        plugin = Plugin(entry.name, distribution, version, entry.value, entry)
        plugin.blocked = blocked(plugin)
        found.append(plugin)
    # Installation order differs between machines; messages and listings must not.
    return sorted(found, key=lambda plugin: plugin.origin)


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    """Return the group's entry points; skip distributions with unreadable metadata."""
    try:
        # The fast path: it raises if the entry points of any one distribution are unreadable.
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
            file = printable(f"distribution {name} {version}: entry_points.txt")
            warn_or_raise(f"{file}: {describe(error)}", error)
    return [entry for entries in found.values() for entry in entries]


def _identity(dist: importlib.metadata.Distribution) -> tuple[str, str]:
    """Return a distribution's normalised name and its version, or "unknown" for either."""
    try:
        name, version = dist.metadata["Name"], dist.metadata["Version"]
    except Exception:  # METADATA is missing or is not text
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


def unregistered() -> dict[str, str]:
    """Return messages about distributions that require cnn-core but register no plugin.

    The keys are the names of the distributions.
    """
    found: dict[str, str] = {}
    for dist in importlib.metadata.distributions():
        name, version = _identity(dist)
        if name in found:  # Python imports the first one on the path
            continue
        try:
            groups = {entry.group for entry in dist.entry_points}
            forgotten = GROUP not in groups and "cnn-core" in _required(dist)
        except Exception:  # `discover` reports unreadable entry points
            continue
        found[name] = _no_entry_point(f"{name} {version}", groups) if forgotten else ""
    return {name: line for name, line in sorted(found.items()) if line and name != "cnnzoo"}


def _no_entry_point(label: str, groups: set[str]) -> str:
    """Return the message; it mentions a group with a similar name, which may be a typo."""
    import difflib

    by_lower = {group.lower(): group for group in groups}
    near = difflib.get_close_matches(GROUP, by_lower, n=1, cutoff=0.5)
    only = f", only in '{by_lower[near[0]]}'" if near else ""
    what = f"{label}: requires cnn-core but has no entry point in the group '{GROUP}'{only}"
    return printable(f"{what}: declare it in pyproject.toml under [project.entry-points.{GROUP}]")


def blocked(plugin: Plugin) -> str:
    """Return why the environment variables disable this plugin, or an empty string."""
    only = os.environ.get("CNNZOO_PLUGINS")
    if only is not None and not _is_listed(plugin, only):
        return f"not in CNNZOO_PLUGINS={only}"
    if _is_listed(plugin, os.environ.get("CNNZOO_PLUGINS_DISABLE", "")):
        return "disabled by CNNZOO_PLUGINS_DISABLE or --no-plugin"
    return ""


def block(name: str) -> None:
    """Disable a plugin in this process and its children. Call this before `plugins()`."""
    disabled = os.environ.get("CNNZOO_PLUGINS_DISABLE", "")
    os.environ["CNNZOO_PLUGINS_DISABLE"] = f"{disabled},{name}".strip(",")


def _is_listed(plugin: Plugin, names: str) -> bool:
    wanted = {name.strip() for name in names.split(",")}
    return plugin.name in wanted or plugin.origin in wanted


def pin_violation(plugin: Plugin) -> str:
    """Return a message if the plugin requires another version of cnn-core, or ""."""
    from cnn_core.version import __version__

    dist = plugin.entry.dist if plugin.entry is not None else None
    for requirement in (dist.requires or []) if dist is not None else []:
        # Match each spelling of the name (PEP 503), but not longer names like cnn-core-extras.
        if not re.match(r"cnn[-_.]core\b(?![-_.])", requirement, re.IGNORECASE):
            continue
        if not _admits(requirement, __version__):
            return f"needs {requirement}, this is cnn-core {__version__}"
    return ""


def _admits(requirement: str, version: str) -> bool:
    """Return whether `version` satisfies a requirement."""
    release = version.rpartition(".")[0]
    if re.fullmatch(rf"[\w.-]+\s*~=\s*{re.escape(release)}\.0", requirement):
        return True  # the form in first-party plugins: importing packaging would take 25 ms
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        return False
    # Requirements of extras and of other platforms do not apply.
    if parsed.marker is not None and not parsed.marker.evaluate({"extra": ""}):
        return True
    # Without `prereleases`, a pre-release of core would reject all plugins.
    return parsed.specifier.contains(version, prereleases=True)
