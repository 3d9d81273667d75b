"""Unpack archives safely: only files and folders, only inside the target, all or nothing.

An archive that some operating system could not store, or would store differently, is rejected on
every system. `tarfile` and `zipfile` do the unpacking; this module checks its rules before each
entry is written.
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
MAX_DEPTH = 32  # nested folders
MAX_NAME = 255  # bytes of a file's name: the limit of every common file system
MAX_PATH = 1024  # bytes of a path in an archive

# Names that Windows accepts, too: there, a colon marks a drive or an alternate data stream.
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

# Error numbers that an archive can cause; others mean, for example, a failing disk. Errors that
# tarfile and zipfile raise themselves have none.
ARCHIVE_ERRNOS = (None, errno.EINVAL, errno.EEXIST, errno.ENAMETOOLONG, errno.EILSEQ)


def extract(
    archive: Path,
    folder: Path,
    *,
    max_entries: int = 200_000,
    max_bytes: int = 4 * 2**30,
    max_ratio: int = 200,
) -> None:
    """Unpack a .tar, .tar.gz, .tgz, .tar.xz, .tar.bz2 or .zip into a new folder: all or nothing.

    Only files and folders are created, with permissions from the umask. `max_ratio` limits the
    unpacked bytes per byte of the archive.

    Raises:
        DatasetCorruptError: the archive is broken or breaks a rule; the message names the archive,
            the entry, and the expected and the actual value.
        DatasetMissingError: there is no such archive.
        ResourceError: the disk is full.
        UsageError: the folder already exists or has no parent, or the archive's suffix is unknown.
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
        UsageError: the name has no known suffix, or consists only of a suffix.
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
        raise UsageError(f"cannot unpack into {folder}: found no folder {folder.parent}")
    if not hasattr(tarfile, "data_filter"):
        raise UsageError("Python 3.11.4 or newer is needed to unpack archives safely")


def _exists(folder: Path) -> UsageError:
    return UsageError(f"{folder}: already exists", "delete it")


class _Rules:
    """The limits on an archive, and the entries admitted so far."""

    def __init__(self, archive: Path, max_entries: int, max_bytes: int, max_ratio: int) -> None:
        self.archive = archive
        self.max_entries, self.max_bytes, self.max_ratio = max_entries, max_bytes, max_ratio
        self.entry = ""  # the name of the current entry, for error messages
        self.entries = 0
        self.bytes = 0
        self.seen: dict[str, tuple[str, str]] = {}  # from case-folded name to (name, kind)

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Turn any error that a library raises on a broken archive into DatasetCorruptError."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceError(
                    f"{self.archive}: no space to unpack it",
                    "nothing was unpacked; free some space and try again",
                ) from error
            if error.errno not in ARCHIVE_ERRNOS:
                raise
            self.refuse("a valid archive", _describe(error), error)
        except DatasetCorruptError:
            raise
        except Exception as error:  # tarfile and zipfile can raise anything on garbage
            self.refuse("a valid archive", _describe(error), error)

    def refuse(self, expected: str, found: str, cause: Exception | None = None) -> NoReturn:
        """Raise DatasetCorruptError for the current entry."""
        entry = f": entry '{_short(self.entry)}'" if self.entry else ""
        raise DatasetCorruptError(
            f"{self.archive}{entry}: expected {expected}, found {found}",
            "nothing was unpacked; delete it and fetch it again",
        ) from cause

    def admit(self, name: str, kind: str, size: int) -> None:
        """Refuse an entry unless it is a file or folder, has a safe name and is within the limits.

        `size` is the size that the archive declares; neither library writes more bytes.
        """
        self.entry = name
        if fault := _name_fault(name, kind):
            self.refuse("a relative path that is valid on every system", fault)
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
        """Refuse a path that exists, even in other case, or that uses a file as a folder."""
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            wanted = kind if depth == len(parts) else FOLDER
            key, known = _fold_case(name), (name, wanted)
            if key in self.seen and (self.seen[key] != known or wanted == FILE):
                other, other_kind = self.seen[key]
                self.refuse(f"no other '{_short(name)}', in any case", f"{other_kind} '{other}'")
            self.seen[key] = known


def _name_fault(name: str, kind: str) -> str:
    """Return why a name is not a valid path on every system, or an empty string."""
    if name.startswith("/"):
        return "an absolute path"
    if printable(name) != name:
        return "control characters, or bytes that are not UTF-8"
    if len(name.encode()) > MAX_PATH:
        return f"more than {MAX_PATH:,} bytes"
    parts = _parts(name)
    if not name or (kind == FILE and (name.endswith("/") or not parts)):
        return "not a file name"
    if len(parts) > MAX_DEPTH:
        return f"more than {MAX_DEPTH} nested folders"
    return next((f"'{_short(part)}'" for part in parts if not _is_portable(part)), "")


def _is_portable(part: str) -> bool:
    """Return whether every system allows this file name; '..' fails, as it ends in a dot."""
    fits = len(part.encode()) <= MAX_NAME and PORTABLE.fullmatch(part) is not None
    return fits and not RESERVED.match(part)


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _fold_case(name: str) -> str:
    """Return a name as compared by file systems that ignore case and Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _short(name: str) -> str:
    return printable(name if len(name) <= 100 else name[:99] + "…")


def _describe(error: Exception) -> str:
    return _short(str(error)) or type(error).__name__


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header that must be valid: tarfile would take a broken one for the archive's end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        """Read the next header; raise ReadError if it is broken or the archive is truncated."""
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no end marker, or a broken header: {error}") from error


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
    """Check a member with tarfile's "data" filter, and ignore its mode and times."""
    checked = tarfile.data_filter(member, folder)
    return checked.replace(mode=None, mtime=None, deep=False)  # type: ignore[arg-type]


def _read_padding(file: IO[bytes]) -> None:
    """Read to the end, so that gzip and xz verify their checksums; only zeros may follow."""
    size = 0
    while block := file.read(BLOCK):
        size += len(block)
        if any(block) or size > MAX_PADDING:
            raise tarfile.ReadError("data after its end")


def _unpack_zip(archive: Path, folder: Path, rules: _Rules) -> None:
    with zipfile.ZipFile(archive) as zip_file:
        for info in zip_file.infolist():
            rules.admit(info.orig_filename, _zip_kind(info), info.file_size)
            path = Path(zip_file.extract(info, folder))
            if not info.is_dir() and path.stat().st_size != info.file_size:
                rules.refuse(f"{info.file_size:,} bytes", f"{path.stat().st_size:,}")


def _zip_kind(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & 1:
        return "an encrypted file"
    # Other methods can decompress any amount in one call, before it could be counted.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {info.compress_type}, neither stored nor deflated"
    named = FOLDER if info.orig_filename.endswith("/") else FILE
    mode = stat.S_IFMT(info.external_attr >> 16)
    kind = ZIP_KINDS.get(mode, "a special file") if mode else named
    return f"{kind} named as {named}" if {kind, named} == {FILE, FOLDER} else kind
