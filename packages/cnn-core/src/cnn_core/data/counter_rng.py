"""Counter-based random numbers: a pure function of (key, index), without generator state.

An ordinary generator yields its numbers in sequence, so the augmentation of a sample would depend
on all draws before it, and thus on the batch size, the number of workers, and where the run was
resumed. Here the key is a hash of seed, epoch and purpose, and the counter comes from the sample's
index in its split. Any process can compute the numbers of any sample, in any order, and gets the
same ones: resuming in the middle of an epoch needs no saved generator state, and the number of
workers or ranks changes no pixel.

Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The mixing
function is SplitMix64's (G. Steele, D. Lea, C. Flood, OOPSLA 2014).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["key_of", "normal", "uniform"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio: SplitMix64's increment


def key_of(seed: int, epoch: int, purpose: str = "") -> int:
    """Return a 64-bit key for a seed, an epoch and a purpose such as "crop" or "jitter".

    Each purpose needs a key of its own: under one key, equal counters give equal numbers.
    """
    text = f"{seed}/{epoch}/{purpose}" if purpose else f"{seed}/{epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def uniform(key: int, indices: Indices, count: int) -> Floats:
    """Return `count` uniform numbers in [0, 1) for each index, N x count.

    Index i uses the counters n from i * count + 1 to i * count + count. Mixing maps the 64-bit
    integers key + n * GOLDEN one-to-one, so before rounding no two numbers of one key are equal.
    """
    first = indices.astype(np.uint64)[:, None] * np.uint64(count)
    counters = first + np.arange(1, count + 1, dtype=np.uint64)
    z: Any
    with np.errstate(over="ignore"):  # the method computes modulo 2^64
        z = np.asarray(np.uint64(key) + counters * GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    # A float64 holds 53 bits: with more, the largest numbers would round up to 1.
    return np.asarray((z >> np.uint64(11)).astype(np.float64) / 2**53)


def normal(key: int, indices: Indices, count: int) -> Floats:
    """Return `count` standard normal numbers for each index, N x count (Box-Muller)."""
    pairs = uniform(key, indices, 2 * count).reshape(len(indices), count, 2)
    # log(1 - u), not log(u): u can be 0 but never 1.
    radius = np.sqrt(-2 * np.log1p(-pairs[..., 0]))
    return np.asarray(radius * np.cos(2 * np.pi * pairs[..., 1]))
