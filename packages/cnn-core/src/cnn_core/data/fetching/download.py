"""Fetch files from mirrors and keep them only if their checksum is right.

What is interrupted goes on where it stopped; of several processes one downloads.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import http.client
import os
import re
import shutil
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
from cnn_core.text import printable

__all__ = ["Remote", "fetch", "fetch_and_extract"]

TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 16  # bytes read and written at a time
MAX_BYTES = 8 * 2**30  # of a file whose size is not known
PLAIN = re.compile(r"[^/\\:\0]+")  # a name that is no path

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Where a dataset's files are published: base addresses, and checksums by file name.

    Every file has an MD5 or a SHA-256; sizes are in bytes. Whatever is given is verified.

    Raises:
        SpecError: an address is not http or https, or a file has no checksum or no plain name.
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
            if not PLAIN.fullmatch(name) or name in (".", ".."):
                raise SpecError(f"file '{printable(name)}': expected a plain name, found a path")
            if name not in self.names:
                raise SpecError(f"file '{name}': expected an MD5 or SHA-256, found neither")

    @property
    def names(self) -> tuple[str, ...]:
        """The files, in the order that they are listed in."""
        return tuple({**self.md5, **self.sha256})

    def fault(self, name: str, path: Path) -> str:
        """Return what is wrong with a file that should be `name`, or ''."""
        size = path.stat().st_size
        if size != self.size.get(name, size):
            return f"{size:,} bytes, expected {self.size[name]:,}"
        for label, sums in (("MD5", self.md5), ("SHA-256", self.sha256)):
            if name in sums and (found := _digest(path, label)) != sums[name].lower():
                return f"{label} {found}, expected {sums[name]}"
        return ""


class _UnusableError(Exception):
    """An answer that is of no use; what is there so far may still be."""


class _WrongError(Exception):
    """The bytes are wrong; if the first of them are from before, they may be at fault."""

    def __init__(self, message: str, *, resumed: bool) -> None:
        super().__init__(message)
        self.resumed = resumed


def fetch(remote: Remote, root: Path) -> None:
    """Bring every file that is missing into `root`, from the first mirror that has it.

    A file that is not whole yet is NAME.part, which the next call completes.

    Raises:
        DatasetMissingError: no mirror gave a file with the right checksum; says why for each.
        ResourceError: the disk is full; what has come so far is kept.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name in remote.names:
        if not _is_sound(remote, root / name):
            with _locked(root, name):
                _fetch_one(remote, root / name)


def fetch_and_extract(remote: Remote, name: str, root: Path) -> Path:
    """Fetch the archive `name` and unpack it, unless that is done; return its folder.

    The folder is in `root`, and has the archive's name without the suffix.

    Raises:
        UnknownNameError, UsageError: the remote has no such file, or it is no archive.
        DatasetCorruptError: the archive holds what no dataset should.
        DatasetMissingError, ResourceError: as `fetch`.
    """
    if name not in remote.names:
        raise UnknownNameError("file", name, remote.names)
    folder = root / stem(name)
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root, name):
            _sweep(folder)
            if not folder.is_dir():
                _fetch_one(remote, root / name)
                extract(root / name, folder)
    return folder


def _fetch_one(remote: Remote, path: Path) -> None:
    """Bring one file; the caller holds its lock."""
    if _is_sound(remote, path):  # another process was quicker
        return
    part = path.with_name(f"{path.name}.part")
    with _disk_full_is_said(part), _Progress(path.name) as progress:
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
        except _WrongError as error:
            part.unlink(missing_ok=True)
            reasons.append(f"{address}: {error}")
    raise DatasetMissingError(
        f"cannot download {name}: {'; '.join(reasons) or 'no mirrors'}",
        f"put the file into {part.parent} by hand, or try again",
    )


def _complete(remote: Remote, name: str, address: str, part: Path, progress: _Progress) -> None:
    """Download what `part` lacks; if that does not fit what is there, everything."""
    try:
        _download(remote, name, address, part, progress, _size(part))
    except _WrongError as error:
        if not error.resumed:
            raise
        _download(remote, name, address, part, progress, 0)


def _download(
    remote: Remote, name: str, address: str, part: Path, progress: _Progress, start: int
) -> None:
    """Download from byte `start` on, or from 0 if that is what the server sends."""
    limit = remote.size.get(name, MAX_BYTES)
    if start and start >= limit:
        raise _WrongError("nothing is left to download", resumed=True)
    with _open(address, start) as answer:
        start, total = _span(answer, start)
        if total is not None and (total > limit or total != remote.size.get(name, total)):
            raise _UnusableError(f"{total:,} bytes, expected {_expected(remote, name)}")
        advance = progress.begin(address, start, total or remote.size.get(name))
        reached = _save(answer, part, start, limit + 1, advance)
    if total is not None and reached < total:
        raise _UnusableError(f"the connection ended after {reached:,} of {total:,} bytes")
    if reached > limit:
        raise _WrongError(f"more than {limit:,} bytes", resumed=start > 0)
    if fault := remote.fault(name, part):
        raise _WrongError(fault, resumed=start > 0)


def _expected(remote: Remote, name: str) -> str:
    size = remote.size.get(name)
    return f"at most {MAX_BYTES:,}" if size is None else f"{size:,}"


def _open(address: str, start: int) -> http.client.HTTPResponse:
    """Ask for a file from that byte on. Nothing but http and https, redirected or not."""
    headers = {"User-Agent": "cnnzoo", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(address, headers=headers)
    try:
        return cast(http.client.HTTPResponse, _opener().open(request, timeout=TIMEOUT))
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            raise _WrongError(str(error), resumed=True) from error
        raise _UnusableError(str(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _UnusableError(str(error) or type(error).__name__) from error


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
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


def _span(answer: http.client.HTTPResponse, start: int) -> tuple[int, int | None]:
    """Return the first byte that is sent, and the size of the whole file where it is said."""
    if answer.status == http.HTTPStatus.OK:
        return 0, answer.length
    found = answer.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", found.strip())
    if answer.status != http.HTTPStatus.PARTIAL_CONTENT or not start:
        raise _UnusableError(f"HTTP status {answer.status}, expected 200")
    if match is None or int(match[1]) != start:
        found = f"Content-Range '{printable(found)}', expected bytes {start}-"
        raise _WrongError(found, resumed=True)
    return start, None if match[3] == "*" else int(match[3])


def _save(
    answer: http.client.HTTPResponse, part: Path, reached: int, end: int, advance: Advance
) -> int:
    """Write what comes into `part`, from `reached` and up to `end`; return how far it got."""
    with part.open("ab" if reached else "wb") as file:
        while block := _read(answer, min(BLOCK, end - reached)):
            file.write(block)
            reached += len(block)
            advance(len(block))
    return reached


def _read(answer: http.client.HTTPResponse, size: int) -> bytes:
    try:
        return answer.read1(size) if size else b""
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _UnusableError(str(error) or type(error).__name__) from error


class _Progress(contextlib.ExitStack):
    """Says on stderr what is on its way: a bar on a terminal, else one line for each file."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = printable(name)
        self.said = False

    def begin(self, address: str, start: int, total: int | None) -> Advance:
        """Say that a mirror answers; return what to call with each number of bytes."""
        if sys.stderr is not None and sys.stderr.isatty():
            return self._bar(start, total)
        if sys.stderr is not None and not self.said:
            size = f" ({total / 1e6:.1f} MB)" if total else ""
            host = printable(urlsplit(address).netloc.rpartition("@")[2])
            print(f"downloading {self.name}{size} from {host}", file=sys.stderr, flush=True)
        self.said = True
        return lambda size: None

    def _bar(self, start: int, total: int | None) -> Advance:
        from rich import progress
        from rich.console import Console

        self.close()  # the bar of the mirror before
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
def _disk_full_is_said(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"{part}: no space left after {_size(part):,} bytes",
            "free some space and try again: it goes on from there",
        ) from error


@contextlib.contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    """Hold the lock of a file of `root`; wait for a process that has it."""
    path = root / f".{name}.lock"
    handle = _acquire(path)
    try:
        yield
    finally:
        if os.name != "nt":
            path.unlink(missing_ok=True)
        os.close(handle)
        if os.name == "nt":  # deletes no open file
            with contextlib.suppress(OSError):
                path.unlink()


def _acquire(path: Path) -> int:
    """Return the locked lock file.

    It is deleted while it is held, so a lock is worth something only if its file is there.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
            if _is_same(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
                return
            except OSError as error:
                if error.errno != errno.EDEADLK:  # it gives up after ten seconds
                    raise
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sweep(folder: Path) -> None:
    """Delete what processes that were killed left of unpacking into `folder`."""
    for path in folder.parent.iterdir():
        match = re.fullmatch(re.escape(f".{folder.name}.") + r"(\d{1,9})\.tmp", path.name)
        if match and path.is_dir() and not _is_alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    if os.name == "nt":  # os.kill would end it; whoever holds the lock is alone
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _is_sound(remote: Remote, path: Path) -> bool:
    return path.is_file() and not remote.fault(path.name, path)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _digest(path: Path, label: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, label.replace("-", "").lower()).hexdigest()
