"""Unpack archives: plain files and folders inside the target folder, or nothing at all.

An archive that one operating system could not hold, or would hold differently, is refused on all.
`tarfile` and `zipfile` unpack; the rules here are checked before they write an entry.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn, Self, cast

from cnn_core.errors import DatasetCorruptError, DatasetMissingError, ResourceError, UsageError
from cnn_core.files import new_folder
from cnn_core.text import printable

__all__ = ["extract", "stem"]

TAR_MODES = {
    ".tar": "r:",
    ".tar.gz": "r:gz",
    ".tgz": "r:gz",
    ".tar.xz": "r:xz",
    ".tar.bz2": "r:bz2",
}
SUFFIXES = (*TAR_MODES, ".zip")

BLOCK = 1 << 16  # bytes read at a time
MAX_PADDING = 1 << 20  # bytes of zeros after the end of a tar archive: tar pads to its block size
MAX_DEPTH = 32  # folders within folders
MAX_NAME = 255  # bytes of a file's name: the limit of every common file system
MAX_PATH = 1024  # bytes of a path in the archive

# A name that Windows accepts, too: a colon makes a drive or a hidden stream there.
PORTABLE = re.compile(r'[^\\:<>"|?*]*[^\\:<>"|?*. ]')
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$) *(\.|$)", re.I)

FILE, FOLDER = "a file", "a folder"
TAR_KINDS = {
    tarfile.REGTYPE: FILE,
    tarfile.AREGTYPE: FILE,
    tarfile.DIRTYPE: FOLDER,
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
}
ZIP_KINDS = {stat.S_IFREG: FILE, stat.S_IFDIR: FOLDER, stat.S_IFLNK: "a symbolic link"}

# The archive's fault; others, such as a disk that fails, are not. Libraries set no number.
CORRUPT = (None, errno.EINVAL, errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ)


def extract(
    archive: Path,
    folder: Path,
    *,
    max_entries: int = 200_000,
    max_bytes: int = 4 * 2**30,
    max_ratio: int = 200,
) -> None:
    """Unpack a .tar, .tar.gz, .tgz, .tar.xz, .tar.bz2 or .zip into a new folder: all or nothing.

    Only files and folders are made, with the mode that the umask gives. `max_ratio` limits the
    bytes written for each byte of the archive.

    Raises:
        DatasetCorruptError: names the archive, the entry, what was expected and what was found.
        UsageError: the folder exists already, or the archive is of no known kind.
    """
    _check(archive, folder)
    rules = _Rules(archive, max_entries, max_bytes, max_ratio)
    unpack = _unpack_zip if _suffix(archive.name) == ".zip" else _unpack_tar
    try:
        with new_folder(folder, replace=False) as inside, rules.enforced():
            unpack(archive, inside, rules)
    except OSError as error:
        if os.path.lexists(folder):  # another process was faster
            raise _exists(folder) from error
        raise


def stem(name: str) -> str:
    """Return the name of an archive without its suffix.

    Raises:
        UsageError: it has no known suffix, or nothing but a suffix.
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
        raise _exists(folder)
    if not folder.parent.is_dir():
        raise UsageError(f"{folder}: expected a folder to put it in, found no {folder.parent}")
    if not hasattr(tarfile, "data_filter"):
        raise UsageError("Python 3.11.4 or newer is needed to unpack archives safely")


def _exists(folder: Path) -> UsageError:
    return UsageError(f"{folder}: expected nothing there, found a file or folder", "delete it")


class _Rules:
    """The caps on an archive, and the entries that were admitted so far."""

    def __init__(self, archive: Path, max_entries: int, max_bytes: int, max_ratio: int) -> None:
        self.archive = archive
        self.max_entries, self.max_bytes, self.max_ratio = max_entries, max_bytes, max_ratio
        self.entry = ""  # the current one's name, for error messages
        self.entries = 0
        self.bytes = 0
        self.seen: dict[str, tuple[str, str]] = {}  # by name without case: name, kind

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Turn any error that a library raises at a broken archive into DatasetCorruptError."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(
                    f"{self.archive}: no space to unpack it",
                    "nothing was unpacked; free some space and try again",
                ) from error
            if error.errno not in CORRUPT:
                raise
            self.refuse("a sound archive", _describe(error), error)
        except DatasetCorruptError:
            raise
        except Exception as error:  # fed with garbage, tarfile and zipfile raise anything
            self.refuse("a sound archive", _describe(error), error)

    def refuse(self, expected: str, found: str, cause: Exception | None = None) -> NoReturn:
        """Raise DatasetCorruptError for the current entry."""
        where = f": entry '{_short(self.entry)}'" if self.entry else ""
        raise DatasetCorruptError(
            f"{self.archive}{where}: expected {expected}, found {found}",
            "nothing was unpacked; delete it and fetch it again",
        ) from cause

    def admit(self, name: str, kind: str, size: int) -> None:
        """Refuse an entry unless it is a file or folder, has a safe name and keeps the caps.

        Neither library writes more bytes than `size`, the number that the archive gives.
        """
        self.entry = name
        if fault := _name_fault(name, kind):
            self.refuse("a relative path that every system can hold", fault)
        if kind not in (FILE, FOLDER):
            self.refuse("a file or a folder", kind)
        if size < 0 or (size and kind == FOLDER):
            self.refuse("a file or a folder", f"{kind} of {size:,} bytes")
        self._add_names(_parts(name), kind)
        self.entries += 1
        self.bytes += size
        if max(self.entries, len(self.seen)) > self.max_entries:
            self.refuse(f"at most {self.max_entries:,} files and folders", "more")
        if self.bytes > self.max_bytes:
            self.refuse(f"at most {self.max_bytes:,} bytes in all", "more")
        if self.bytes > self.max_ratio * self.archive.stat().st_size:
            self.refuse(f"at most {self.max_ratio} bytes for each byte of the archive", "more")

    def _add_names(self, parts: list[str], kind: str) -> None:
        """Refuse a name that is taken, differs in case only, or leads through a file."""
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            wanted = kind if depth == len(parts) else FOLDER
            key, known = _folded(name), (name, wanted)
            if key in self.seen and (self.seen[key] != known or wanted == FILE):
                spelled, there = self.seen[key]
                self.refuse(f"no other '{_short(name)}', in any case", f"{there} '{spelled}'")
            self.seen[key] = known


def _name_fault(name: str, kind: str) -> str:
    """Return the reason why a name is no path on every system, or an empty string."""
    if name.startswith("/"):
        return "an absolute path"
    if printable(name) != name:
        return "control characters, or bytes that are not UTF-8"
    if len(name.encode()) > MAX_PATH:
        return f"more than {MAX_PATH:,} bytes"
    parts = _parts(name)
    if not name or (kind == FILE and (name.endswith("/") or not parts)):
        return "no name of a file"
    if len(parts) > MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders within each other"
    return next((f"'{_short(part)}'" for part in parts if not _is_portable(part)), "")


def _is_portable(part: str) -> bool:
    """Whether every system can hold a file of this name; none can of '..', which ends in a dot."""
    fits = len(part.encode()) <= MAX_NAME and PORTABLE.fullmatch(part) is not None
    return fits and not RESERVED.match(part)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _folded(name: str) -> str:
    """Return the form of a name that file systems which ignore case or composition compare."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _short(name: str) -> str:
    return printable(name if len(name) <= 100 else name[:99] + "…")


def _describe(error: Exception) -> str:
    return _short(str(error)) or type(error).__name__


class _StrictTarInfo(tarfile.TarInfo):
    """A header that must be sound: tarfile takes a broken one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """Read the next header; raise ReadError where it is broken, or the archive is cut."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end, or a broken header: {error}") from error


def _unpack_tar(archive: Path, folder: Path, rules: _Rules) -> None:
    mode = TAR_MODES[_suffix(archive.name)]
    with tarfile.open(archive, mode, tarinfo=_StrictTarInfo, errorlevel=2) as tar:  # type: ignore[call-overload]
        for member in tar:
            kind = TAR_KINDS.get(member.type, f"an entry of type {member.type!r}")
            rules.admit(member.name, "a sparse file" if member.issparse() else kind, member.size)
            tar.extract(member, folder, filter=_with_default_mode)
        rules.entry = ""
        _read_padding(cast("IO[bytes]", tar.fileobj))


def _with_default_mode(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Check a member as tarfile's "data" filter does; its mode and times are not taken over."""
    checked = tarfile.data_filter(member, folder)
    return checked.replace(mode=None, mtime=None, deep=False)  # type: ignore[arg-type]


def _read_padding(file: IO[bytes]) -> None:
    """Read on to the end, which checks the checksum of gzip and xz; only zeros may be there."""
    size = 0
    while block := file.read(BLOCK):
        size += len(block)
        if any(block) or size > MAX_PADDING:
            raise tarfile.ReadError("something after its end")


def _unpack_zip(archive: Path, folder: Path, rules: _Rules) -> None:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            rules.admit(info.orig_filename, _zip_kind(info), info.file_size)
            path = Path(opened.extract(info, folder))
            if not info.is_dir() and path.stat().st_size != info.file_size:
                rules.refuse(f"{info.file_size:,} bytes", f"{path.stat().st_size:,}")


def _zip_kind(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "an encrypted file"
    # The others unpack as much at once as the archive likes, before it can be counted.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {info.compress_type}, neither stored nor deflated"
    named = FOLDER if info.orig_filename.endswith("/") else FILE
    mode = stat.S_IFMT(info.external_attr >> 16)
    kind = ZIP_KINDS.get(mode, "a special file") if mode else named
    return f"{kind} named as {named}" if {kind, named} == {FILE, FOLDER} else kind
