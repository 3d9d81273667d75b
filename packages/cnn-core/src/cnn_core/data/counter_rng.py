"""Random numbers that are counted, not drawn from a state: (key, index) decides each of them.

A sample's numbers depend on the seed, the epoch, the purpose and the sample's index, and on
nothing else: not on the batch it is in, on the number of workers, or on where a run was resumed.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["key_of", "normal", "uniform"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio


def key_of(seed: int, epoch: int, purpose: str = "") -> int:
    """Return 64 bits that stand for a seed, an epoch and what the numbers are for."""
    text = f"{seed}/{epoch}/{purpose}" if purpose else f"{seed}/{epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def uniform(key: int, indices: Indices, count: int) -> Floats:
    """Return `count` numbers in [0, 1) for each index, N x count.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): the n-th number is a bijection of
    key + n * GOLDEN, so no two of one key are equal in all 64 bits.
    """
    first = indices.astype(np.uint64)[:, None] * np.uint64(count)
    places = first + np.arange(1, count + 1, dtype=np.uint64)
    z: Any
    with np.errstate(over="ignore"):
        z = np.asarray(np.uint64(key) + places * GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.asarray((z >> np.uint64(11)).astype(np.float64) / 2**53)


def normal(key: int, indices: Indices, count: int) -> Floats:
    """Return `count` numbers of the standard normal distribution for each index (Box-Muller)."""
    pairs = uniform(key, indices, 2 * count).reshape(len(indices), count, 2)
    radius = np.sqrt(-2 * np.log1p(-pairs[..., 0]))
    return np.asarray(radius * np.cos(2 * np.pi * pairs[..., 1]))
