"""Write files and directories atomically: readers never find half-written contents."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

__all__ = [
    "expanded",
    "new_folder",
    "remove_folder",
    "sweep",
    "write_atomically",
    "write_bytes",
    "write_new",
    "write_text",
]

CHUNK = 2**20  # bytes per read or write
Data = bytes | memoryview


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder in place of a leading "~" or "~user".

    Shells do not do this after a colon or an equals sign, as in imagefolder:~/photos.
    """
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`; on exit, sync it and rename it to `path`.

    If the block raises or the machine stops, `path` is unchanged. The file gets the default
    permissions of new files.
    """
    # In the same directory, because a rename cannot cross file systems.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            # Sync before the rename; otherwise a power cut could leave `path` empty.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, *parts: Data) -> None:
    """Replace the contents of a file atomically."""
    with write_atomically(path) as file:
        for part in parts:
            file.write(part)


def write_text(path: Path, text: str) -> None:
    """Replace the contents of a file with UTF-8 text atomically."""
    write_bytes(path, text.encode())


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary directory to fill; on exit, sync it and rename it to `path`.

    If the block raises, `path` is unchanged. If `replace` is false and `path` has meanwhile become
    a file or a non-empty directory, an OSError is raised.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process with our id
    try:
        os.mkdir(temporary)
        yield temporary
        _sync_folder(temporary)
        if replace:
            remove_folder(path)
        os.rename(temporary, path)  # raises unless `path` is free or an empty directory
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def write_new(path: Path, *parts: Data) -> None:
    """Write a new file, sync it, read it back and compare.

    Raises:
        OSError: the file exists, cannot be written, or reads back different bytes.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        for part in parts:
            remaining = memoryview(part)
            while remaining:
                remaining = remaining[os.write(descriptor, remaining[:CHUNK]) :]
        os.fsync(descriptor)
        # Detect disk faults now, while the older files still exist.
        _require_equal(path, descriptor, parts)
    finally:
        os.close(descriptor)


def _require_equal(path: Path, descriptor: int, parts: tuple[Data, ...]) -> None:
    """Raise OSError unless a file contains exactly these parts."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    buffer = bytearray(CHUNK)
    equal = os.fstat(descriptor).st_size == sum(map(len, parts))
    for part in parts:
        whole = memoryview(part)
        for start in range(0, len(whole), CHUNK):
            expected = whole[start : start + CHUNK]
            if len(buffer) != len(expected):
                buffer = bytearray(len(expected))
            count = os.readv(descriptor, [buffer])
            equal = equal and count == len(expected) and buffer == expected  # fast: memcmp
    if not equal:
        raise OSError(errno.EIO, "reading the file back gives different bytes", str(path))


def remove_folder(path: Path) -> None:
    """Remove a directory if it exists; rename it first, so that no reader finds half of it."""
    if path.is_dir():
        gone = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path, pattern: str = ".*.tmp") -> None:
    """Remove the temporary files and directories that killed processes left in `folder`."""
    for path in folder.glob(pattern):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; Windows has no way to do this."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
