"""Fetch files from mirrors and keep them only if their checksum is right."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnn_core.errors import DatasetMissingError
from cnn_core.files import write_atomically

__all__ = ["Remote", "fetch"]

TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Where a data set's files are published: base addresses, and MD5 by file name."""

    mirrors: Sequence[str]
    md5: Mapping[str, str]


def fetch(remote: Remote, root: Path) -> None:
    """Bring every file that is missing into `root`, from the first mirror that has it.

    Raises:
        DatasetMissingError: no mirror gave a file with the right checksum; says why for each.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name, md5 in remote.md5.items():
        path = root / name
        if not path.is_file() or _md5(path) != md5:
            _fetch_one(path, md5, remote.mirrors)


def _fetch_one(path: Path, md5: str, mirrors: Sequence[str]) -> None:
    reasons = []
    for mirror in mirrors:
        address = mirror + path.name
        try:
            with (
                urllib.request.urlopen(address, timeout=TIMEOUT) as answer,
                write_atomically(path) as file,
            ):
                shutil.copyfileobj(answer, file)
                file.flush()
                if (found := _md5(Path(file.name))) != md5:
                    raise ValueError(f"MD5 {found}, expected {md5}")
            return
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ValueError) as e:
            reasons.append(f"{address}: {e}")
    raise DatasetMissingError(
        f"cannot download {path.name}: {'; '.join(reasons)}",
        f"put the file into {path.parent} by hand, or try again",
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
