"""Find the image of each row of a table, and count the images that it does not list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cnn_core.data.readers.columns import Table
from cnn_core.data.readers.listing import sorted_files
from cnn_core.errors import DatasetCorruptError
from cnn_core.text import counted, printable

__all__ = ["files_of", "unlisted"]

SHOWN = 3  # folders in an error


def files_of(table: Table, column: str, root: Path) -> tuple[list[Path], list[str]]:
    """Return the file of each row, and lines about files that were found elsewhere."""
    values = table.values(column)
    paths: list[Path | None] = [_beside(root, value) for value in values]
    missing = [row for row, path in enumerate(paths) if path is None]
    if not missing:
        return [path for path in paths if path is not None], []
    found = _found_by_name(root, [values[row] for row in missing])
    _require_one(table, root, {row: values[row] for row in missing}, found)
    for row in missing:
        (paths[row],) = found[values[row]]
    images = {path for same in found.values() for path in same}
    folders = sorted({str(path.parent.relative_to(root)) for path in images})
    found_by = "images were found by their names"
    line = (
        f"{counted(len(images), 'image was found by its name', found_by)} in "
        f"{', '.join(folders[:3])}{', …' if len(folders) > 3 else ''}"
    )
    return [path for path in paths if path is not None], [line]


def _require_one(
    table: Table, root: Path, values: Mapping[int, str], found: Mapping[str, list[Path]]
) -> None:
    """Raise DatasetCorruptError unless exactly one file was found for the path in each row."""
    if lost := [row for row, value in values.items() if not found[value]]:
        raise DatasetCorruptError(
            table.at_rows(lost, "no such file", [values[row] for row in lost]),
            f"{_elsewhere(root, values[lost[0]])}paths are relative to {printable(str(root))}; "
            "correct them, or remove the rows",
        )
    if several := [row for row, value in values.items() if len(found[value]) > 1]:
        same = [path.relative_to(root) for path in found[values[several[0]]]]
        folders, missing = [str(path.parent) for path in same], "folder"
        if len(set(folders)) < len(same):
            folders, missing = list(map(str, same)), "whole name"
        where = printable(" and ".join(folders[:SHOWN]))
        raise DatasetCorruptError(
            table.at_rows(several, f"found in {where}", [values[row] for row in several]),
            f"give the {missing}, such as {printable(str(same[0]))}",
        )


def _elsewhere(root: Path, value: str) -> str:
    """Return a line on a file of the same name in other folders than a path names, or ""."""
    *folders, name = value.replace("\\", "/").split("/")
    found = next((path for path in sorted_files(root) if name in (path.name, path.stem)), None)
    if found is None:
        return ""
    named = printable("/".join(folder for folder in folders if folder))
    return (
        f"there is {printable(str(found))}, but not in a folder {named}: if it is meant, write "
        f"only {printable(name)}\n"
    )


def _beside(root: Path, value: str) -> Path | None:
    """Return the file of a path relative to `root`, or None; \\ may separate folders."""
    for name in dict.fromkeys((value, value.replace("\\", "/"))):
        if name and (path := root / Path(name).expanduser()).is_file():
            return path
    return None


def _found_by_name(root: Path, values: Iterable[str]) -> dict[str, list[Path]]:
    """Return the images below `root` of each name, with or without its suffix.

    If the value names folders, those of the image must be the same.
    """
    by_name: dict[str, list[Path]] = {}
    for path in sorted_files(root):
        for name in {path.name, path.stem}:
            by_name.setdefault(name, []).append(path)
    found = {}
    for value in values:
        *folders, name = value.replace("\\", "/").split("/")
        same = by_name.get(name, [])
        found[value] = [path for path in same if _in_folders(path, root, folders)]
    return found


def _in_folders(path: Path, root: Path, folders: list[str]) -> bool:
    """Return whether a file lies in these folders: one list of folders ends with the other."""
    named = [folder for folder in folders if folder not in ("", ".")]
    own = list(path.absolute().parent.parts)
    # The folders may be those of another machine: then they end with the file's folders below
    # that of the table.
    inner = own[len(root.absolute().parts) :] or own[-1:]
    return not named or own[-len(named) :] == named or named[-len(inner) :] == inner


def unlisted(table: Table, paths: Sequence[Path], root: Path) -> Iterator[str]:
    """Count the images that lie beside those of the table, but are not in it."""
    listed = {os.path.realpath(path) for path in paths}
    others = 0
    for folder in {path.parent for path in paths}:
        if folder.is_relative_to(root):
            files = (file for file in sorted_files(folder) if file.parent == folder)
            others += sum(os.path.realpath(file) not in listed for file in files)
    if others:
        beside = counted(others, "image beside them is", "images beside them are")
        yield f"{beside} not in {printable(Path(table.name).name)}"
