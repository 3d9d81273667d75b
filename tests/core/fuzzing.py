"""Readers on mutated files: each is read right or refused with the one error, in little memory."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cnn_core.errors import DatasetCorruptError

HUGE = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff\xff"]


def anywhere(rng: random.Random, size: int) -> int:
    return rng.randrange(size)


def mutated(
    rng: random.Random, sound: bytes, place: Callable[[random.Random, int], int] = anywhere
) -> bytes:
    """Flip bits, cut, splice or write huge numbers, at up to three places of so many bytes."""
    data = bytearray(sound)
    for _ in range(rng.randint(1, 3)):
        at = min(place(rng, len(data)), len(data) - 1)
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            value = rng.choice(HUGE)
            data[at : at + len(value)] = value
        elif kind == 3:
            start = rng.randrange(len(data))
            data[at:at] = data[start : start + rng.randrange(1, 40)]
        elif rng.random() < 0.3:
            del data[max(at, 1) :]
        else:
            del data[max(at, 1) : at + rng.randrange(1, 5)]
    return bytes(data)


def fuzz(
    count: int,
    case: Callable[[random.Random, int], tuple[Path, bytes]],
    read: Callable[[Path, int], bool],
) -> dict[str, int]:
    """Write and read mutated files; return how many are read and how many are refused.

    `case` gives a file and its mutated bytes, `read` whether it has read something right; both
    get the number of the case. Any error but `DatasetCorruptError` is raised.
    """
    rng, found = random.Random(0), {"read": 0, "refused": 0, "wrong": 0}
    for number in range(count):
        path, data = case(rng, number)
        path.write_bytes(data)
        try:
            outcome = "read" if read(path, number) else "wrong"
        except DatasetCorruptError:
            outcome = "refused"
        found[outcome] += 1
    return found


def check(
    found: Mapping[str, float], count: int, read: float = 1 / 50, refused: float = 1 / 5
) -> None:
    """Assert that nothing was read wrong, and that more than these fractions ended either way."""
    assert found["read"] + found["refused"] == count
    assert found["read"] > count * read
    assert found["refused"] > count * refused


def alone(script: str, job: str, folder: Path, count: int, *flags: str) -> dict[str, Any]:
    """Run a test file's job in a process of its own; return what it found and MB `grown`."""
    command = [sys.executable, *flags, script, job, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(jobs: Mapping[str, Callable[[Path, int], Mapping[str, Any]]]) -> None:
    """Be that process: a test file calls this where it is run as a script."""
    job, folder, count = sys.argv[1:]
    torch.empty(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = jobs[job](Path(folder), int(count))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({**found, "grown": grown}))
