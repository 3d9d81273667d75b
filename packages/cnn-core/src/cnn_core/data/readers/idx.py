"""Read IDX files, MNIST's format, gzipped or not.

A file is two zero bytes, the element type, the number of dimensions, the dimensions as big-endian
32-bit integers, then the elements. The header is checked against the file's size before memory is
allocated, since sixteen bytes can claim terabytes. Datasets use unsigned bytes; other element
types are rejected.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from cnn_core.errors import DatasetCorruptError

__all__ = ["read_idx"]

UINT8 = 0x08
MAX_BYTES = 2**31  # over 30 times the largest MNIST file; a limit for malicious gzip files


class Readable(Protocol):
    """A file or a gzip file."""

    def read(self, size: int, /) -> bytes: ...


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the contents of a file as a uint8 tensor with `dimensions` dimensions.

    Raises:
        DatasetCorruptError: the file is broken; the message names the file, the byte, and the
            expected and the actual value.
    """
    zipped = path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            shape = _read_header(file, path, dimensions)
            size = math.prod(shape)
            header = 4 + 4 * dimensions
            # The size of a gzip file tells nothing about its contents: count them while reading.
            if not zipped and path.stat().st_size != header + size:
                found = path.stat().st_size - header
                raise _corrupt(path, header, f"{size:,} bytes for {_join(shape)}", f"{found:,}")
            if size > MAX_BYTES:
                raise _corrupt(path, 4, f"at most {MAX_BYTES:,} bytes", f"{size:,}")
            return _read_elements(file, path, shape)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _corrupt(path, 0, "a valid gzip file", str(error)) from error


def _read_header(file: Readable, path: Path, dimensions: int) -> tuple[int, ...]:
    magic = file.read(4)
    expected = bytes((0, 0, UINT8, dimensions))
    if magic != expected:
        raise _corrupt(path, 0, f"the bytes {expected.hex(' ')}", magic.hex(" ") or "nothing")
    sizes = file.read(4 * dimensions)
    if len(sizes) != 4 * dimensions:
        raise _corrupt(path, 4, f"{dimensions} dimensions", f"{len(sizes)} bytes")
    return struct.unpack(f">{dimensions}I", sizes)


def _read_elements(file: Readable, path: Path, shape: tuple[int, ...]) -> Tensor:
    """Read the elements, and try one byte more to detect a file that is too long.

    The buffer grows with the bytes that arrive, never with the size that the header claims.
    """
    size = math.prod(shape)
    header = 4 + 4 * len(shape)
    data = bytearray()
    while block := file.read(min(size + 1 - len(data), 1 << 20)):
        data += block
    if len(data) != size:
        found = "more" if len(data) > size else f"{len(data):,}"
        raise _corrupt(path, header, f"{size:,} bytes for {_join(shape)}", found)
    if not data:
        return torch.empty(shape, dtype=torch.uint8)
    return torch.frombuffer(data, dtype=torch.uint8).view(shape)


def _join(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _corrupt(path: Path, offset: int, expected: str, found: str) -> DatasetCorruptError:
    return DatasetCorruptError(
        f"{path}: at byte {offset}: expected {expected}, found {found}",
        "delete it and fetch it again",
    )
