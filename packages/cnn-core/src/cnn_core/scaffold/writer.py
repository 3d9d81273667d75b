"""Write a new, working plugin for `cnnzoo new`. No torch here.

The files come from templates/KIND and templates/any. PACKAGE and WORD in file names, and variables
such as `$package` and `$word` in the text, are replaced.
"""

from __future__ import annotations

import builtins
import keyword
import re
import shlex
import string
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata, resources, util
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from cnn_core import registry
from cnn_core.errors import UsageError, ZooError
from cnn_core.files import new_folder, write_text
from cnn_core.plugins import plugins
from cnn_core.plugins.directory import directory
from cnn_core.plugins.discovery import discover
from cnn_core.runs.destinations import folder_of
from cnn_core.text import printable
from cnn_core.version import __version__

__all__ = ["KINDS", "Kind", "next_steps", "write_plugin"]

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # normalised (PEP 503)
MAX_NAME = 48  # characters, so that derived names have at most 64
MAX_QUOTED = 80  # characters of an invalid name that the error quotes
RESERVED = {  # names in the templates: a network called `nn` would shadow torch's
    *("annotations", "classifier", "command", "conv_bn", "figure", "nn", "plugin", "predictions"),
    *("recipes", "registry", "require_size", "style", "tensor", "torch", "trained"),
}
# Windows reserves these names for devices and cannot create files with them.
DEVICES = {"aux", "con", "nul", "prn"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(10)}


@dataclass(frozen=True)
class Kind:
    """A kind of plugin: its name prefix, a description, commands to try it, and more."""

    prefix: str
    description: str
    steps: tuple[str, ...]
    catalogue: Callable[[], registry.Catalogue[Any]]
    dashes: bool = False  # keep dashes in the registered name, as in commands
    needs: tuple[str, ...] = ()  # distributions besides cnn-core
    tests_need: tuple[str, ...] = ()


KINDS = {
    "arch": Kind(
        "cnn-arch-",
        "a convolutional network",
        ("show $word", "train $word --data digits", "check $distribution"),
        registry.models,
    ),
    "data": Kind(
        "cnn-data-",
        "a dataset",
        ("show-data $word", "verify-data $word", "check $distribution"),
        registry.datasets,
    ),
    "view": Kind(
        "cnn-viz-",
        "a figure of a run",
        ("viz $word RUN", "report RUN", "check $distribution"),
        registry.views,
        needs=("cnn-viz",),
        tests_need=("cnn-arch-lenet",),
    ),
    "command": Kind(
        "cnn-cmd-", "a command", ("$short", "check $distribution"), registry.commands, dashes=True
    ),
}


def write_plugin(name: str, kind: str = "", out: Path | None = None) -> Path:
    """Write a plugin called `name` to the new directory `out` (default: `name`); return its path.

    `kind` is a key of KINDS; if empty, the prefix of the name determines it.

    Raises:
        UsageError: the name is invalid or taken, or the directory already exists.
        ZooError: the directory cannot be written; no partial files are left behind.
    """
    kind = kind or _kind_of(name)
    words = _words(name, kind)
    _require_free(words, KINDS[kind])
    path = Path(name) if out is None else out
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} already exists", f"cnnzoo new {name} --out ANOTHER")
    try:
        folder_of(path)
        with new_folder(path, replace=False) as folder:  # renamed to `path` once it is complete
            for part, text in _files(kind, words):
                file = folder / part
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, text)
    except OSError as error:
        raise ZooError(f"cannot write {path}: {error.strerror}", "choose another --out") from error
    return path


def next_steps(path: Path, name: str, kind: str = "") -> list[str]:
    """Return the shell commands that install and try the plugin in `path`."""
    kind = kind or _kind_of(name)
    words = _words(name, kind)
    steps = [string.Template(step).substitute(words) for step in KINDS[kind].steps]
    return [shlex.join(["pip", "install", "-e", str(path)]), *(f"cnnzoo {s}" for s in steps)]


def _kind_of(name: str) -> str:
    """Return the kind that the prefix of a name indicates."""
    _require_name(name)
    for kind, facts in KINDS.items():
        if name.startswith(facts.prefix):
            return kind
    known = ", ".join(f"{facts.prefix}… ({kind})" for kind, facts in KINDS.items())
    raise UsageError(
        f"'{name}' does not start with the prefix of a kind: {known}",
        f"cnnzoo new {name} --kind KIND; to observe training, copy examples/cnn-track-csv",
    )


def _require_name(name: str) -> None:
    """Raise UsageError unless `name` is a valid, normalised distribution name."""
    if len(name) <= MAX_NAME and NAME.fullmatch(name) and name not in DEVICES:
        return
    normalised = re.sub(r"[-_.]+", "-", name).lower()
    valid = len(normalised) <= MAX_NAME and NAME.fullmatch(normalised)
    example = normalised if valid else "cnn-arch-foo"
    raise UsageError(
        f"name '{printable(name[:MAX_QUOTED])}': expected words of a-z and 0-9 joined by '-', "
        f"beginning with a letter, at most {MAX_NAME} characters",
        f"for example: cnnzoo new {example}",
    )


def _words(name: str, kind: str) -> dict[str, str]:
    """Return the template variables; raise UsageError if the name is not valid in Python."""
    _require_name(name)
    facts = KINDS[kind]
    short = name.removeprefix(facts.prefix)
    word = short.replace("-", "_")
    class_name = "".join(part.capitalize() for part in short.split("-"))
    if not word.isidentifier() or keyword.iskeyword(word) or keyword.iskeyword(class_name):
        raise UsageError(
            f"'{name}': '{word}' is not a valid Python name",
            f"for example: cnnzoo new {facts.prefix}my-{short}",
        )
    if word in RESERVED | DEVICES or hasattr(builtins, word):
        raise UsageError(
            f"'{name}': the name '{word}' is reserved",
            f"for example: cnnzoo new {facts.prefix}my-{short}",
        )
    title = " ".join(part.capitalize() for part in short.split("-"))
    series = ".".join(__version__.split(".")[:2])
    needs = [f"{needed}~={series}.0" for needed in ("cnn-core", *facts.needs)]
    return {
        "distribution": name,
        "package": name.replace("-", "_"),
        "plugin": name.removeprefix("cnn-arch-").removeprefix("cnn-"),
        "short": short,
        "word": word,
        "class_name": class_name,
        "title": title,
        "description": f"{title}: {facts.description} for cnnzoo",
        "dependencies": _quoted(needs),
        "test_dependencies": _quoted([*facts.tests_need, "pytest"]),
        "year": time.strftime("%Y"),
    }


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _require_free(words: dict[str, str], kind: Kind) -> None:
    """Raise UsageError if a name is taken; the message says which distribution has it."""
    name, package = words["distribution"], words["package"]
    registered = words["short" if kind.dashes else "word"]
    if conflict := _name_conflict(name, package, words["plugin"], registered, kind):
        other = f"{kind.prefix}my-{words['short']}"
        raise UsageError(conflict, f"for example: cnnzoo new {other}")


def _name_conflict(name: str, package: str, plugin: str, registered: str, kind: Kind) -> str:
    """Return a message if one of the names is already taken, or an empty string."""
    try:
        return f"'{name}' is already installed, version {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        pass
    if spec := util.find_spec(package):
        return f"the module '{package}' already exists: {printable(str(spec.origin))}"
    for other in discover():
        if other.name == plugin:
            return f"plugin '{plugin}' already belongs to {other.distribution} {other.version}"
    catalogue = kind.catalogue()
    for entry in catalogue.claims(registered):
        return f"{catalogue.kind} '{registered}' already belongs to {entry.plugin.distribution}"
    # The directory also lists names that are not installed; a conflict would appear later.
    if known := directory().get(catalogue.kind, {}).get(registered):
        return (
            f"{catalogue.kind} '{registered}' already belongs to {known}, which is {_state(known)}"
        )
    return ""


def _state(distribution: str) -> str:
    """Return why a distribution's names are not registered, as text."""
    for plugin in plugins().all:
        if plugin.distribution == distribution:
            reason = plugin.blocked or "; ".join(fault.cause for fault in plugin.faults)
            return f"{plugin.status}: {reason}" if reason else "installed in another version"
    return "not installed"


def _files(kind: str, words: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each file of the plugin."""
    templates = resources.files("cnn_core.scaffold") / "templates"
    for folder in ("any", kind):
        for part, file in _walk(templates / folder):
            path = part.replace("PACKAGE", words["package"]).replace("WORD", words["word"])
            text = string.Template(file.read_text("utf-8")).substitute(words)
            yield path.removesuffix(".txt"), text


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    """Yield the relative path and the file of each template, sorted; works in zipped wheels."""
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            yield from _walk(item, f"{prefix}{item.name}/")
        else:
            yield f"{prefix}{item.name}", item
