"""Download files from mirrors, and keep them only if their checksums match.

An interrupted download resumes where it stopped. If several processes need a file, only one of
them downloads it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import http.client
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import quote, urlsplit

from cnn_core.data.fetching.archive import extract, stem
from cnn_core.errors import DatasetMissingError, ResourceError, SpecError, UnknownNameError
from cnn_core.files import sweep
from cnn_core.text import printable

__all__ = ["Remote", "fetch", "fetch_and_extract"]

TIMEOUT = 30  # seconds without data
BLOCK = 1 << 16  # bytes read and written at a time
MAX_BYTES = 8 * 2**30  # limit for a file of unknown size
PLAIN_NAME = re.compile(r"[^/\\:\0]+")  # a name, not a path

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Remote:
    """The published files of a dataset: base URLs of mirrors, and checksums by file name.

    Every file needs an MD5 or a SHA-256, or the first digits of a SHA-256, at least 8. Sizes, in
    bytes, are optional. All given values are verified.

    Raises:
        SpecError: a mirror is not http or https, a file has no checksum, or its name is a path.
    """

    mirrors: Sequence[str]
    md5: Mapping[str, str] = field(default_factory=dict)
    sha256: Mapping[str, str] = field(default_factory=dict)
    size: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for mirror in self.mirrors:
            if urlsplit(mirror).scheme not in ("http", "https"):
                raise SpecError(f"mirror '{printable(mirror)}': expected an http or https address")
        for name in {**self.md5, **self.sha256, **self.size}:
            if not PLAIN_NAME.fullmatch(name) or name in (".", ".."):
                raise SpecError(f"file '{printable(name)}': expected a plain name, found a path")
            if name not in self.names:
                raise SpecError(f"file '{name}': expected an MD5 or SHA-256, found neither")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files, in the order of the checksums."""
        return tuple({**self.md5, **self.sha256})

    def fault(self, name: str, path: Path) -> str:
        """Return how a local file differs from the published file `name`, or an empty string."""
        size = path.stat().st_size
        if size != self.size.get(name, size):
            return f"{size:,} bytes, expected {self.size[name]:,}"
        if name in self.md5 and (found := _digest(path, "MD5")) != self.md5[name].lower():
            return f"MD5 {found}, expected {self.md5[name]}"
        if name in self.sha256:
            found, expected = _digest(path, "SHA-256"), self.sha256[name].lower()
            if len(expected) < 8 or not found.startswith(expected):
                return f"SHA-256 {found}, expected {expected}"
        return ""


class _UnusableError(Exception):
    """The response is unusable; the bytes downloaded so far may still be correct."""


class _WrongBytesError(Exception):
    """The bytes are wrong; if the download was resumed, the earlier bytes may be the cause."""

    def __init__(self, message: str, *, resumed: bool) -> None:
        super().__init__(message)
        self.resumed = resumed


def fetch(remote: Remote, root: Path) -> None:
    """Download every missing or wrong file into `root`, from the first mirror that works.

    An incomplete file is kept as NAME.part, which the next call resumes.

    Raises:
        DatasetMissingError: no mirror has a file with the right checksum; the message gives the
            reason for each mirror.
        ResourceError: the disk is full; the bytes downloaded so far are kept.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name in remote.names:
        if not _is_valid(remote, root / name):
            with _locked(root, name):
                _fetch_one(remote, root / name)


def fetch_and_extract(remote: Remote, name: str, root: Path) -> Path:
    """Download the archive `name` and unpack it, unless its folder exists; return the folder.

    The folder is in `root` and has the archive's name without the suffix.

    Raises:
        UnknownNameError: the remote has no such file.
        UsageError: the file is not an archive.
        DatasetCorruptError: the archive has an entry that is unsafe or broken.
        DatasetMissingError: as `fetch`.
        ResourceError: as `fetch`.
    """
    if name not in remote.names:
        raise UnknownNameError("file", name, remote.names)
    folder = root / stem(name)
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root, name):
            # Leftovers are from a process that was killed: a live one would hold the lock.
            sweep(root, f".{glob.escape(folder.name)}.[0-9]*.tmp")
            if not folder.is_dir():
                _fetch_one(remote, root / name)
                extract(root / name, folder)
    return folder


def _fetch_one(remote: Remote, path: Path) -> None:
    """Download one file; the caller holds its lock."""
    if _is_valid(remote, path):  # another process was faster
        return
    part = path.with_name(f"{path.name}.part")
    with _reporting_full_disk(part), _Progress(path.name) as progress:
        if not part.is_file() or remote.fault(path.name, part):
            _try_mirrors(remote, path.name, part, progress)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)


def _try_mirrors(remote: Remote, name: str, part: Path, progress: _Progress) -> None:
    reasons = []
    for mirror in remote.mirrors:
        address = mirror + quote(name)
        try:
            _complete(remote, name, address, part, progress)
            return
        except _UnusableError as error:
            reasons.append(f"{address}: {error}")
        except _WrongBytesError as error:
            part.unlink(missing_ok=True)
            reasons.append(f"{address}: {error}")
    raise DatasetMissingError(
        f"cannot download {name}: {'; '.join(reasons) or 'no mirrors'}",
        f"put the file into {part.parent} by hand, or try again",
    )


def _complete(remote: Remote, name: str, address: str, part: Path, progress: _Progress) -> None:
    """Download the rest of `part`; if the result is wrong, download everything again."""
    try:
        _download(remote, name, address, part, progress, _size(part))
    except _WrongBytesError as error:
        if not error.resumed:
            raise
        _download(remote, name, address, part, progress, 0)


def _download(
    remote: Remote, name: str, address: str, part: Path, progress: _Progress, start: int
) -> None:
    """Download from byte `start` on, or from 0 if the server ignores ranges."""
    limit = remote.size.get(name, MAX_BYTES)
    if start and start >= limit:
        raise _WrongBytesError("nothing is left to download", resumed=True)
    with _open(address, start) as response:
        start, total = _span(response, start)
        if total is not None and (total > limit or total != remote.size.get(name, total)):
            raise _UnusableError(f"{total:,} bytes, expected {_expected(remote, name)}")
        advance = progress.begin(address, start, total or remote.size.get(name))
        reached = _save(response, part, start, limit + 1, advance)
    if total is not None and reached < total:
        raise _UnusableError(f"the connection ended after {reached:,} of {total:,} bytes")
    if reached > limit:
        raise _WrongBytesError(f"more than {limit:,} bytes", resumed=start > 0)
    if fault := remote.fault(name, part):
        raise _WrongBytesError(fault, resumed=start > 0)


def _expected(remote: Remote, name: str) -> str:
    size = remote.size.get(name)
    return f"at most {MAX_BYTES:,}" if size is None else f"{size:,}"


def _open(address: str, start: int) -> http.client.HTTPResponse:
    """Request a file from byte `start` on; redirects, too, may use only http or https."""
    headers = {"User-Agent": "cnnzoo", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(address, headers=headers)
    try:
        return cast(http.client.HTTPResponse, _opener().open(request, timeout=TIMEOUT))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            raise _WrongBytesError(str(error), resumed=True) from error
        raise _UnusableError(str(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _UnusableError(str(error) or type(error).__name__) from error


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that cannot open file:, ftp: and data: URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _span(response: http.client.HTTPResponse, start: int) -> tuple[int, int | None]:
    """Return the position of the first byte sent, and the size of the whole file if known."""
    if response.status == http.HTTPStatus.OK:
        return 0, response.length
    found = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", found.strip())
    if response.status != http.HTTPStatus.PARTIAL_CONTENT or not start:
        raise _UnusableError(f"HTTP status {response.status}, expected 200")
    if match is None or int(match[1]) != start:
        message = f"Content-Range '{printable(found)}', expected bytes {start}-"
        raise _WrongBytesError(message, resumed=True)
    return start, None if match[3] == "*" else int(match[3])


def _save(
    response: http.client.HTTPResponse, part: Path, reached: int, end: int, advance: Advance
) -> int:
    """Write the response to `part`, from byte `reached` to at most `end`; return the new size."""
    with part.open("ab" if reached else "wb") as file:
        while block := _read(response, min(BLOCK, end - reached)):
            file.write(block)
            reached += len(block)
            advance(len(block))
    return reached


def _read(response: http.client.HTTPResponse, size: int) -> bytes:
    try:
        return response.read1(size) if size else b""
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _UnusableError(str(error) or type(error).__name__) from error


class _Progress(contextlib.ExitStack):
    """Report downloads on stderr: a progress bar on a terminal, otherwise one line per file."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = printable(name)
        self.reported = False

    def begin(self, address: str, start: int, total: int | None) -> Advance:
        """Report that a download starts; return a function to call with each block's size."""
        if sys.stderr is not None and sys.stderr.isatty():
            return self._bar(start, total)
        if sys.stderr is not None and not self.reported:
            size = f" ({total / 1e6:.1f} MB)" if total else ""
            host = printable(urlsplit(address).netloc.rpartition("@")[2])
            print(f"downloading {self.name}{size} from {host}", file=sys.stderr, flush=True)
        self.reported = True
        return lambda size: None

    def _bar(self, start: int, total: int | None) -> Advance:
        from rich import progress
        from rich.console import Console

        self.close()  # the previous mirror's bar
        bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=20),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
        )
        task = self.enter_context(bar).add_task(self.name, total=total, completed=start)
        return functools.partial(bar.advance, task)


@contextlib.contextmanager
def _reporting_full_disk(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"{part}: no space left after {_size(part):,} bytes",
            "free some space and try again: the download resumes there",
        ) from error


@contextlib.contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    """Hold the lock of one file of `root`; wait for another process or thread that holds it.

    The system releases the lock of a process that dies. The lock file is never deleted: otherwise
    two processes could hold locks on two files of the same name.
    """
    from filelock import FileLock  # late: it imports asyncio, which no other command needs

    with FileLock(root / f".{name}.lock"):
        yield


def _is_valid(remote: Remote, path: Path) -> bool:
    return path.is_file() and not remote.fault(path.name, path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, label: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, label.replace("-", "").lower()).hexdigest()
