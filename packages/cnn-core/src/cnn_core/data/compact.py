"""Sequences of paths and images that take little memory, also in worker processes.

A worker process shares the memory of the main process until one of them writes to it. Reading a
tuple of a million `Path` objects writes to each of them, since Python counts references there, so
every worker would soon hold a copy. An array of bytes stays shared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

__all__ = ["Compact", "compact_paths"]


@dataclass(frozen=True)
class Compact(Sequence[Any]):
    """A sequence whose items, `make(row)` for each of `rows`, exist only while they are used."""

    make: Callable[[int], Any]
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index])
        return self.make(int(self.rows[index]))

    def __iter__(self) -> Iterator[Any]:
        return (self.make(row) for row in self.rows.tolist())

    def take(self, indices: Tensor) -> Compact:
        """Return the items at `indices`."""
        return replace(self, rows=self.rows[indices.numpy()])


@dataclass(frozen=True)
class _Names:
    """Paths in one string of bytes; `ends` are where each ends."""

    names: bytes
    ends: npt.NDArray[np.int64]

    def __call__(self, row: int) -> Path:
        start = int(self.ends[row - 1]) if row else 0
        return Path(os.fsdecode(self.names[start : int(self.ends[row])]))


def compact_paths(paths: Sequence[Path]) -> Compact:
    """Return paths as a sequence that takes little memory."""
    names = [os.fsencode(path) for path in paths]
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    return Compact(_Names(b"".join(names), ends), np.arange(len(names)))
