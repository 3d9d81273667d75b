"""Write a plugin that works as it is: what `cnnzoo new` does. No torch here.

The files are in templates/, those of every kind in templates/any: PACKAGE and WORD in their names
and `$package`, `$word` and others in their text are replaced.
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
from cnn_core.text import printable
from cnn_core.version import __version__

__all__ = ["KINDS", "Kind", "next_steps", "write_plugin"]

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # as PEP 503 writes it: also in addresses
LONGEST = 48  # characters, so that names made of it fit 64
SHOWN = 80  # characters of a name that is refused
TAKEN = {  # names that the files themselves use
    *("annotations", "classifier", "command", "conv_bn", "figure", "nn", "plugin", "predictions"),
    *("recipes", "registry", "require_size", "run", "style", "tensor", "torch"),
}
DEVICES = {"aux", "con", "nul", "prn"} | {f"{d}{n}" for d in ("com", "lpt") for n in range(10)}


@dataclass(frozen=True)
class Kind:
    """One kind of plugin: how names of it begin, what it is, what to try it with."""

    prefix: str
    what: str
    steps: tuple[str, ...]
    catalogue: Callable[[], registry.Catalogue[Any]]
    dashes: bool = False  # in the name that it is called by
    needs: tuple[str, ...] = ()
    tests_need: tuple[str, ...] = ()


KINDS = {
    "arch": Kind(
        "cnn-arch-",
        "A convolutional network",
        ("show $word", "train $word --data digits", "check $distribution"),
        registry.models,
    ),
    "data": Kind(
        "cnn-data-",
        "A dataset",
        ("show-data $word", "verify-data $word", "check $distribution"),
        registry.datasets,
    ),
    "view": Kind(
        "cnn-viz-",
        "A figure of a run",
        ("viz $word RUN", "report RUN", "check $distribution"),
        registry.views,
        needs=("cnn-viz",),
        tests_need=("cnn-arch-lenet",),
    ),
    "command": Kind(
        "cnn-cmd-", "A command", ("$short", "check $distribution"), registry.commands, dashes=True
    ),
}


def write_plugin(name: str, kind: str = "", out: Path | None = None) -> Path:
    """Write the plugin called `name` into the new folder `out`, ./`name` if not given; return it.

    `kind` is one of KINDS; without it the beginning of the name says it.

    Raises:
        UsageError: the name is none, or is taken; or the folder is there already.
        ZooError: the folder cannot be written. Nothing is left of it.
    """
    kind = kind or _kind_of(name)
    words = _words(name, kind)
    _require_free(words, KINDS[kind])
    path = Path(name) if out is None else out
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path}: is there already", f"cnnzoo new {name} --out ANOTHER")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(path, replace=False) as folder:
            for part, text in _files(kind, words):
                file = folder / part
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, text)
    except OSError as error:
        raise ZooError(f"cannot write {path}: {error.strerror}", "choose another --out") from error
    return path


def next_steps(path: Path, name: str, kind: str = "") -> list[str]:
    """Return the commands to try the plugin with that was written into `path`."""
    kind = kind or _kind_of(name)
    words = _words(name, kind)
    steps = [string.Template(step).substitute(words) for step in KINDS[kind].steps]
    return [shlex.join(["pip", "install", "-e", str(path)]), *(f"cnnzoo {s}" for s in steps)]


def _kind_of(name: str) -> str:
    """Return the kind that a name's beginning says."""
    _require_name(name)
    for kind, facts in KINDS.items():
        if name.startswith(facts.prefix):
            return kind
    known = ", ".join(f"{facts.prefix}… ({kind})" for kind, facts in KINDS.items())
    raise UsageError(
        f"'{name}' begins like no kind of plugin: {known}",
        f"cnnzoo new {name} --kind KIND; to observe training, copy examples/cnn-track-csv",
    )


def _require_name(name: str) -> None:
    """Raise UsageError unless a distribution can have this name, written in one way only."""
    if len(name) <= LONGEST and NAME.fullmatch(name) and name not in DEVICES:
        return
    near = re.sub(r"[-_.]+", "-", name).lower()
    good = near if len(near) <= LONGEST and NAME.fullmatch(near) else "cnn-arch-foo"
    raise UsageError(
        f"name '{printable(name[:SHOWN])}': expected words of a-z and 0-9 with '-' between them, "
        f"a letter first, at most {LONGEST} characters",
        f"for example: cnnzoo new {good}",
    )


def _words(name: str, kind: str) -> dict[str, str]:
    """Return what stands for what in the templates, for a name that Python can take, too."""
    _require_name(name)
    facts = KINDS[kind]
    short = name.removeprefix(facts.prefix)
    word = short.replace("-", "_")
    class_name = "".join(part.capitalize() for part in short.split("-"))
    if not word.isidentifier() or keyword.iskeyword(word) or keyword.iskeyword(class_name):
        raise UsageError(
            f"'{name}': '{word}' cannot be a name in Python",
            f"for example: cnnzoo new {facts.prefix}my-{short}",
        )
    if word in TAKEN | DEVICES or hasattr(builtins, word):
        raise UsageError(
            f"'{name}': a file or a function called '{word}' would be in the way",
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
        "description": f"{title}: {facts.what[0].lower()}{facts.what[1:]} for cnnzoo",
        "dependencies": _quoted(needs),
        "test_dependencies": _quoted([*facts.tests_need, "pytest"]),
        "year": time.strftime("%Y"),
    }


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _require_free(words: dict[str, str], kind: Kind) -> None:
    """Raise UsageError if something has one of the names already; says what."""
    name, package = words["distribution"], words["package"]
    offered = words["short" if kind.dashes else "word"]
    if owner := _owner(name, package, words["plugin"], offered, kind):
        other = f"{kind.prefix}my-{words['short']}"
        raise UsageError(owner, f"for example: cnnzoo new {other}")


def _owner(name: str, package: str, plugin: str, offered: str, kind: Kind) -> str:
    """Return what has one of the names already, in words, or an empty string."""
    try:
        return f"'{name}' is installed already, version {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        pass
    if spec := util.find_spec(package):
        return f"'{package}' is a module already: {printable(str(spec.origin))}"
    for other in discover():
        if other.name == plugin:
            return f"plugin '{plugin}' is {other.distribution}'s already ({other.version})"
    catalogue = kind.catalogue()
    for entry in catalogue.claims(offered):
        return f"{catalogue.kind} '{offered}' is {entry.plugin.distribution}'s already"
    if known := directory().get(catalogue.kind, {}).get(offered):
        return f"{catalogue.kind} '{offered}' is {known}'s already, which is {_how(known)}"
    return ""


def _how(distribution: str) -> str:
    """Return how a distribution is whose offers are not there."""
    for plugin in plugins().all:
        if plugin.distribution == distribution:
            why = plugin.blocked or "; ".join(fault.cause for fault in plugin.faults)
            return f"{plugin.status}: {why}" if why else "installed in another version"
    return "not installed"


def _files(kind: str, words: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each file's path and text."""
    templates = resources.files("cnn_core.scaffold") / "templates"
    for folder in ("any", kind):
        for part, file in _walk(templates / folder):
            path = part.replace("PACKAGE", words["package"]).replace("WORD", words["word"])
            text = string.Template(file.read_text("utf-8")).substitute(words)
            yield path.removesuffix(".txt"), text


def _walk(folder: Traversable, above: str = "") -> Iterator[tuple[str, Traversable]]:
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.is_dir():
            yield from _walk(item, f"{above}{item.name}/")
        else:
            yield f"{above}{item.name}", item
