"""List the images in a folder, and account for every other file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cnn_core.data.formats import (
    HEAD,
    SUFFIXES,
    conversion,
    is_archive,
    is_other_image,
    is_readable,
)
from cnn_core.text import printable

__all__ = [
    "BESIDE",
    "LeftOut",
    "OBJECTS",
    "UNLABELLED",
    "UNMASKED",
    "UNUSED",
    "count_loose",
    "has_images",
    "is_hidden",
    "sorted_files",
    "subfolders",
]

# What systems and programs leave in folders.
SYSTEM = ("thumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "$recycle.bin")
COPIES = (".part", ".crdownload", ".download", ".tmp", ".bak", ".orig", ".old", "~")
HIDDEN = "hidden files and folders"
UNREADABLE = "unreadable files and folders"
REPEATED = "links to folders that are read already, or that contain this one"
NOT_READ = "images of a format that is not read"
COPY = "unfinished or old copies"
LOOSE = "images beside the class folders"
BESIDE = "images beside the folders of the splits"
UNLABELLED = "images without class folders"
UNMASKED = "images without masks"
UNUSED = "images that belong to no pair of image and mask"
OBJECTS = "masks of single objects, which are not needed for classes"
ARCHIVE = "archives"
OTHER = "other files"
# Kinds that may hold what a user means to train on. Text, for example, does not.
MISSED = (
    LOOSE,
    BESIDE,
    UNLABELLED,
    UNMASKED,
    UNUSED,
    NOT_READ,
    COPY,
    "empty files",
    UNREADABLE,
    "links that lead nowhere",
    REPEATED,
    ARCHIVE,
)


@dataclass
class LeftOut:
    """The files that a reader leaves out: for each kind their number, and the first of them.

    `known` are files that it reads for another purpose, such as dataset.toml.
    """

    found: dict[str, tuple[int, Path]] = field(default_factory=dict)
    known: set[Path] = field(default_factory=set)

    def add(self, kind: str, path: Path, count: int = 1) -> None:
        """Count `count` more files of a kind."""
        if path in self.known:
            return
        before, first = self.found.get(kind, (0, path))
        self.found[kind] = (before + count, first)

    def lines(self, *, missed: bool) -> tuple[str, ...]:
        """Return a line for each kind that may hold images (`missed`), or for each other kind."""
        return tuple(
            f"left out {count:,}: {kind}, such as {path}{_advice(kind, path)}"
            for kind, (count, path) in sorted(self.found.items())
            if (kind.split(" (")[0] in MISSED) == missed
        )


def _advice(kind: str, path: Path) -> str:
    return f" ({conversion(b'', path)})" if kind.startswith(NOT_READ) else ""


def is_hidden(name: str) -> bool:
    """Return whether a name is hidden, or one that systems give to folders of their own."""
    return name.startswith(".") or name.lower() in SYSTEM


def subfolders(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones, which are counted."""
    with os.scandir(folder) as entries:  # knows folders from files without asking for each
        found = sorted(folder / entry.name for entry in entries if entry.is_dir())
    for entry in found:
        if is_hidden(entry.name) and left_out is not None:
            left_out.add(HIDDEN, entry)
    return [entry for entry in found if not is_hidden(entry.name)]


def sorted_files(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted; count the others.

    A file is an image if its first bytes or its suffix are those of a format that is read. Linked
    folders are entered once, and not at all if they contain `folder`.

    Sorted, since file systems list files in different orders, and random splits depend on it.
    """
    others = LeftOut() if left_out is None else left_out
    return sorted(path for path in _files(folder, others) if _is_image(path, others))


def has_images(folder: Path) -> bool:
    """Return whether there is an image file in a folder or its subfolders."""
    return any(_is_image(path, LeftOut()) for path in _files(folder, LeftOut()))


def count_loose(folder: Path, left_out: LeftOut) -> None:
    """Count the files directly in a folder of classes or splits: they belong to no class."""
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name) and not path.is_dir():
            left_out.add(HIDDEN, path)
        elif not path.is_dir():
            rest = LeftOut()
            if _is_image(path, rest):
                left_out.add(LOOSE, path)
            for kind in rest.found:
                # The archive that the folders were extracted from is often beside them.
                left_out.add(OTHER if kind == ARCHIVE else kind, path)


def _files(folder: Path, others: LeftOut) -> Iterator[Path]:
    """Yield the visible files in a folder and its subfolders."""
    # A link to a folder above leads to the images of other classes.
    above = {*folder.absolute().parents, *folder.resolve().parents}
    entered = {_identity(parent) for parent in above}

    def unreadable(error: OSError) -> None:
        others.add(UNREADABLE, Path(error.filename))

    for name, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        here = Path(name)
        if (identity := _identity(here)) in entered:
            others.add(REPEATED, here)
            folders.clear()
            continue
        entered.add(identity)
        for hidden in [entry for entry in (*folders, *files) if is_hidden(entry)]:
            others.add(HIDDEN, here / hidden)
        folders[:] = sorted(entry for entry in folders if not is_hidden(entry))
        yield from (here / entry for entry in sorted(files) if not is_hidden(entry))


def _identity(folder: Path) -> tuple[int, int]:
    info = folder.stat()
    return info.st_dev, info.st_ino


def _is_image(path: Path, others: LeftOut) -> bool:
    """Return whether a file is one to read; otherwise count it."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES and path.is_file():
        return True
    if kind := _kind(path):
        suffix = printable(suffix) or "no suffix"
        # The suffix tells what to convert.
        others.add(f"{kind} ({suffix})" if kind == NOT_READ else kind, path)
    return not kind


def _kind(path: Path) -> str:
    """Return what a file without the suffix of an image is, or "" if it is an image."""
    if path.is_symlink() and not path.exists():
        return "links that lead nowhere"
    if not path.is_file():
        return OTHER  # a pipe or a device, which must not be opened
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return UNREADABLE
    if is_readable(head, path):
        # Even a complete copy is not the original.
        return COPY if path.name.lower().endswith(COPIES) else ""
    if is_other_image(head, path):
        return NOT_READ
    if is_archive(head):
        return ARCHIVE
    return OTHER if head else "empty files"
