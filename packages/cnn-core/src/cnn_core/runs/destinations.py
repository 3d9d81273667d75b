"""Folders for output: tried out before anything is computed, and created."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from cnn_core.errors import ResourceError, UsageError, ZooError

__all__ = ["folder_of", "make_folder", "require_writable"]


def require_writable(folder: Path, given: Path | None = None) -> None:
    """Raise an error unless files can be written into a folder, which need not exist yet.

    Creates nothing. Errors name `given`, by default the folder.

    Raises:
        UsageError: the folder or a parent is a file, or cannot be written.
        ResourceError: the disk is full.
    """
    given = folder if given is None else given
    for place in (folder, *folder.parents):
        if place.is_dir():
            break
        if place.exists():
            raise UsageError(f"{given}: cannot be written: {place} is not a folder")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise _refused(given, error) from error


def make_folder(folder: Path, given: Path | None = None) -> Path:
    """Create a folder with its parents, if it does not exist, and return it.

    Raises the errors of `require_writable`.
    """
    require_writable(folder, given)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def folder_of(file: Path) -> Path:
    """Create the folder of a file, and return it; errors name the file."""
    return make_folder(file.parent, file)


def _refused(given: Path, error: OSError) -> ZooError:
    """Return the error with the path that the user gave, not that of a temporary file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{given}: cannot be written: {error.strerror}", "free some space")
    # For /proc, whose folders take no files, the system says that there is no such file.
    reason = "no files can be created there" if error.errno == errno.ENOENT else error.strerror
    return UsageError(f"{given}: cannot be written: {reason}", "choose another path")
