"""Unpack archives that may be hostile: plain files and folders, or nothing at all.

An archive that one system could not hold, or would hold differently, is refused on all.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import functools
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn, cast

from cnn_core.errors import DatasetCorruptError, DatasetMissingError, ResourceError, UsageError
from cnn_core.text import printable

__all__ = ["extract", "stem"]

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")

BLOCK = 1 << 16  # bytes read and written at a time
HEADERS = 4 << 20  # bytes that the headers of a tar archive may take, beside ...
HEADER = 4 << 10  # ... those for each entry
DIRECTORY_ENTRY = 256  # bytes of a zip archive's directory for each entry
MAX_DEPTH = 32  # folders within folders
MAX_NAME = 255  # bytes of a file's name: the bound of every common file system
MAX_PATH = 1024  # bytes of a path in the archive

FORBIDDEN = '\\:<>"|?*'  # not in a name on Windows; a colon makes a drive or a hidden stream
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\.|$)", re.I)

FILE = "a file"
FOLDER = "a folder"
TAR_KINDS = {
    tarfile.REGTYPE: FILE,
    tarfile.AREGTYPE: FILE,
    tarfile.DIRTYPE: FOLDER,
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a FIFO",
}
ZIP_KINDS = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: FOLDER,
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}
OPENERS: dict[str, Callable[[Path], object]] = {
    ".tar": functools.partial(open, mode="rb"),
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.xz": lzma.open,
    ".tar.bz2": bz2.open,
}


@dataclass(frozen=True)
class Entry:
    """What an archive says it holds; `kind` is a file, a folder, or what is refused."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes]]


def extract(
    archive: Path,
    folder: Path,
    *,
    max_entries: int = 200_000,
    max_bytes: int = 4 * 2**30,
    max_ratio: int = 200,
) -> None:
    """Unpack a .tar, .tar.gz, .tgz, .tar.xz, .tar.bz2 or .zip into a new folder: all or nothing.

    Only files and folders are made, with the mode that the umask gives. `max_ratio` is the
    number of bytes written for each byte of the archive.

    Raises:
        DatasetCorruptError: names the archive, the entry, what was expected and what was found.
        UsageError: the folder is there already, or the archive is of no known kind.
    """
    _check(archive, folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # from a dead process that had our number
    writer = _Writer(archive, temporary, max_entries, max_bytes, max_ratio)
    try:
        temporary.mkdir()
        with writer.blamed():
            entries = _zip_entries if _suffix(archive.name) == ".zip" else _tar_entries
            with contextlib.closing(entries(archive, max_entries)) as found:
                for entry in found:
                    writer.add(entry)
        _move(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def stem(name: str) -> str:
    """Return the name of an archive without its suffix.

    Raises:
        UsageError: it has no suffix that we know, or nothing else.
    """
    whole = name[: len(name) - len(_suffix(name))]
    if whole == name or not whole.strip("."):
        known = ", ".join(SUFFIXES)
        raise UsageError(f"{printable(name)}: expected the name of an archive, NAME with {known}")
    return whole


def _suffix(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")


def _check(archive: Path, folder: Path) -> None:
    stem(archive.name)
    if not archive.is_file():
        raise DatasetMissingError(f"{archive}: expected an archive, found no file")
    if os.path.lexists(folder):
        raise _there(folder)
    if not folder.parent.is_dir():
        raise UsageError(f"{folder}: expected a folder to put it in, found no {folder.parent}")


def _there(folder: Path) -> UsageError:
    return UsageError(f"{folder}: expected nothing there, found a file or folder", "delete it")


def _move(temporary: Path, folder: Path) -> None:
    try:
        os.replace(temporary, folder)
    except OSError as error:
        if os.path.lexists(folder):  # another process was quicker
            raise _there(folder) from error
        raise


class _Writer:
    """Writes entries below `folder`, and holds what they say against the caps and each other."""

    def __init__(
        self, archive: Path, folder: Path, max_entries: int, max_bytes: int, max_ratio: int
    ) -> None:
        self.archive = archive
        self.folder = folder
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.max_ratio = max_ratio
        self.most = max_ratio * archive.stat().st_size
        self.entry = ""  # the one at work
        self.entries = 0
        self.written = 0
        self.seen: dict[str, tuple[str, str]] = {}  # by name without case: name, kind
        self.listed: set[str] = set()  # those that have an entry of their own

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Turn whatever a library makes of a broken archive into the one error."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(
                    f"{self.archive}: no space to unpack it below {self.folder.parent}",
                    "nothing was unpacked; free some space and try again",
                ) from error
            if error.errno in (None, errno.EINVAL, errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ):
                self.refuse("a sound archive", _said(error), error)
            raise
        except (DatasetCorruptError, ResourceError):
            raise
        except Exception as error:  # fed with garbage, tarfile and zipfile raise anything
            self.refuse("a sound archive", _said(error), error)

    def refuse(self, expected: str, found: str, cause: Exception | None = None) -> NoReturn:
        """Raise the one error, with the entry at work."""
        where = f": entry '{_short(self.entry)}'" if self.entry else ""
        raise DatasetCorruptError(
            f"{self.archive}{where}: expected {expected}, found {found}",
            "nothing was unpacked; delete it and fetch it again",
        ) from cause

    def add(self, entry: Entry) -> None:
        """Write one entry, or refuse it."""
        self.entry = entry.name
        self.entries += 1
        if self.entries > self.max_entries:
            self.refuse(f"at most {self.max_entries:,} entries", "more")
        if fault := _fault(entry):
            self.refuse("a relative path that every system can hold", fault)
        if entry.kind not in (FILE, FOLDER):
            self.refuse("a file or a folder", entry.kind)
        parts = _parts(entry.name)
        self._claim(parts, entry.kind)
        path = self.folder.joinpath(*parts)
        if entry.kind == FOLDER:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(path, entry)
        self.entry = ""

    def _claim(self, parts: list[str], kind: str) -> None:
        """Refuse a name that is taken, differs in case only, or goes through a file."""
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            wanted = kind if depth == len(parts) else FOLDER
            spelled, there = self.seen.setdefault(_folded(name), (name, wanted))
            if spelled != name:
                self.refuse("names that differ in more than case", f"'{_short(spelled)}' as well")
            if there != wanted:
                self.refuse(f"{wanted} '{_short(name)}'", f"that {there} has that name")
        if len(self.seen) > self.max_entries:
            self.refuse(f"at most {self.max_entries:,} files and folders", "more")
        whole = "/".join(parts)
        if whole in self.listed:
            self.refuse("each name once", "it twice")
        self.listed.add(whole)

    def _write(self, path: Path, entry: Entry) -> None:
        size = 0
        with entry.open() as source, path.open("xb") as file:
            while block := source.read(BLOCK):
                size += len(block)
                self._count(len(block))
                file.write(block)
        if size != entry.size:
            self.refuse(f"{entry.size:,} bytes", f"{size:,}")

    def _count(self, size: int) -> None:
        """Count bytes before they are written: what an archive says of them proves nothing."""
        self.written += size
        if self.written > self.max_bytes:
            self.refuse(f"at most {self.max_bytes:,} bytes in all", "more")
        if self.written > self.most:
            self.refuse(f"at most {self.max_ratio} bytes for each byte of the archive", "more")


def _fault(entry: Entry) -> str:
    """Return what keeps the name from being a path on every system, or ''."""
    name = entry.name
    if not name or name.startswith("/"):
        return "an absolute path" if name else "an empty name"
    if len(name.encode(errors="replace")) > MAX_PATH:
        return f"more than {MAX_PATH:,} bytes"
    if printable(name) != name:
        return "control characters, or bytes that are not UTF-8"
    parts = _parts(name)
    if entry.kind == FILE and (name.endswith("/") or not parts):
        return "a file with the name of a folder"
    if len(parts) > MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders within each other"
    return next(filter(None, map(_part_fault, parts)), "")


def _part_fault(part: str) -> str:
    if part == "..":
        return "'..'"
    if len(part.encode()) > MAX_NAME:
        return f"a name of more than {MAX_NAME} bytes"
    if found := [c for c in FORBIDDEN if c in part]:
        return f"the character {found[0]}"
    if RESERVED.match(part):
        return f"'{part}', a device on Windows"
    if part.endswith((".", " ")):
        return "a name that ends in a dot or a space"
    return ""


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _folded(name: str) -> str:
    """Return what names have in common that some file system takes for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _short(name: str) -> str:
    return printable(name if len(name) <= 100 else name[:99] + "…")


def _said(error: Exception) -> str:
    return _short(str(error)) or type(error).__name__


class _Forward:
    """What tarfile reads from: it never steps back, and headers take no more than they may.

    tarfile stops without a word at a header that is broken; `last` is what it read there.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.at = 0
        self.allowance = HEADERS
        self.last = b""

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self.at

    def seek(self, offset: int) -> None:
        """Go forward."""
        if offset < self.at:
            raise tarfile.ReadError("a step back")
        while self.at < offset and self.read(min(offset - self.at, BLOCK)):
            pass

    def read(self, size: int) -> bytes:
        """Return the next bytes: fewer at the end."""
        if not 0 <= size <= self.allowance:
            raise tarfile.ReadError("headers without end")
        self.last = self.file.read(size)
        self.at += len(self.last)
        self.allowance -= len(self.last)
        return self.last


def _tar_entries(archive: Path, max_entries: int) -> Generator[Entry, None, None]:
    with cast(IO[bytes], OPENERS[_suffix(archive.name)](archive)) as file:
        forward = _Forward(file)
        with tarfile.TarFile(fileobj=cast(IO[bytes], forward)) as tar:
            while (member := tar.next()) is not None:
                forward.allowance += HEADER
                content = functools.partial(_tar_content, tar, member, forward)
                yield Entry(member.name, _tar_kind(member), member.size, content)
                tar.members = []  # type: ignore[attr-defined]  # it keeps them all
        _check_end(forward)


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"
    kind = TAR_KINDS.get(member.type, f"type {_short(member.type.decode('latin-1'))}")
    if member.size < 0 or (member.size and kind == FOLDER):
        return f"{kind} of {member.size:,} bytes"
    return kind


def _tar_content(tar: tarfile.TarFile, member: tarfile.TarInfo, forward: _Forward) -> IO[bytes]:
    forward.allowance += member.size
    return cast(IO[bytes], tar.extractfile(member))


def _check_end(forward: _Forward) -> None:
    """An archive ends in blocks of zeros, and so does what is compressed."""
    if forward.last != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("no end, or a broken header")
    while block := forward.read(tarfile.BLOCKSIZE):
        if any(block):
            raise tarfile.ReadError("something after its end")


class _Frugal(io.FileIO):
    """What zipfile reads from: it reads a whole directory at once, of the size that it claims."""

    most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes, never more than an honest directory has."""
        if size is not None and size > self.most:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes")
        return super().read(-1 if size is None else size)


def _zip_entries(archive: Path, max_entries: int) -> Generator[Entry, None, None]:
    with _Frugal(archive) as file:
        file.most = HEADERS + max_entries * DIRECTORY_ENTRY
        with zipfile.ZipFile(cast(IO[bytes], file)) as opened:
            for info in opened.infolist():
                content = functools.partial(opened.open, info)
                yield Entry(info.orig_filename, _zip_kind(info), info.file_size, content)


def _zip_kind(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "an encrypted file"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {info.compress_type}, neither stored nor deflated"
    kind = FOLDER if info.orig_filename.endswith("/") else FILE
    mode = stat.S_IFMT(info.external_attr >> 16)
    if kind == FOLDER and info.file_size:
        return f"a folder of {info.file_size:,} bytes"
    found = ZIP_KINDS.get(mode, "an unknown kind of file") if mode else kind
    return found if found == kind or found not in (FILE, FOLDER) else f"{found} named as {kind}"
