"""Read CIFAR's pickled batches with an unpickler that knows five names and builds no array.

NumPy's own functions, given numbers from a hostile file, allocate or crash. So stand-ins take
their places here, and the array is made from the bytes once its type and shape are checked.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnn_core.data.readers.pickle_scan import PickleScan
from cnn_core.errors import DatasetCorruptError
from cnn_core.text import printable

__all__ = ["PIXELS", "corrupt", "read_pickled"]

PIXELS = 3 * 32 * 32
MAX_STEPS = 1_000_000  # about twice the opcodes of CIFAR-100's train, written by Python 3


class _Part:
    """Stands in for an array or its element type: keeps what NumPy would be given."""

    def __init__(self, *arguments: object) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _latin1(text: object, encoding: object) -> object:
    """Return a text whose letters are bytes as it is: a copy of each repetition would add up."""
    if encoding != "latin1":
        raise ValueError(f"bytes written as {encoding!r}")
    return text


KNOWN: dict[str, Callable[..., object]] = {
    "numpy.core.multiarray _reconstruct": _Part,
    "numpy._core.multiarray _reconstruct": _Part,
    "numpy ndarray": _Part,
    "numpy dtype": _Part,
    "_codecs encode": _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return KNOWN[f"{module} {name}"]


def read_pickled(path: Path, labels: Mapping[str, int], rows: np.ndarray) -> Tensor:
    """Read the images of a batch into the first of `rows`, uint8 N 3072; return its targets.

    `labels` has the keys of the lists of labels and the number of classes of each; the last
    one's are returned, int64.

    Raises:
        DatasetCorruptError: not a pickle of such a batch, of protocol 2 to 4.
    """
    batch = _unpickled(path)
    count = _copy(path, _value(path, batch, "data"), rows)
    found: list[int] = []
    for key, classes in labels.items():
        found = _labels(path, key, _value(path, batch, key), count, classes)
    names = batch.get("filenames")
    if isinstance(names, list) and len(names) != count:
        raise corrupt(path, f"{count:,} file names", f"{len(names):,}")
    return torch.tensor(found, dtype=torch.int64)


def corrupt(path: Path, expected: str, found: str, at: int | None = None) -> DatasetCorruptError:
    """Return the error for a file; `at` is the byte where it breaks its format, if known."""
    where = "" if at is None else f"at byte {at}: "
    return DatasetCorruptError(
        f"{path}: {where}expected {expected}, found {found}", "delete it and fetch it again"
    )


def _unpickled(path: Path) -> dict[str, Any]:
    """Return a batch by its keys, which Python 2 wrote as bytes."""
    stream = io.BytesIO(path.read_bytes())
    try:
        PickleScan(KNOWN, MAX_STEPS).run(stream)
        if stream.read(1):
            raise ValueError("it goes on after its pickle")
        stream.seek(0)
        batch = _Unpickler(stream, encoding="bytes").load()
        if not isinstance(batch, dict):
            raise ValueError(f"a pickled {type(batch).__name__}")
        keys = [k.decode("latin-1") if isinstance(k, bytes) else str(k) for k in batch]
        return dict(zip(keys, batch.values(), strict=True))
    except Exception as error:  # a hostile file can make an unpickler raise anything
        found = printable(" ".join(str(error)[:200].split())) or type(error).__name__
        raise corrupt(path, "a pickled batch of images", found, stream.tell()) from error


def _value(path: Path, batch: Mapping[str, Any], key: str) -> Any:
    if key not in batch:
        keys = ", ".join(printable(key[:80]) for key in list(batch)[:8])
        raise corrupt(path, f"a batch with {key}", keys or "an empty one")
    return batch[key]


def _labels(path: Path, key: str, found: object, count: int, classes: int) -> list[int]:
    """Return a list of labels, checked."""
    if not isinstance(found, list) or len(found) != count:
        what = f"{len(found):,}" if isinstance(found, list) else type(found).__name__
        raise corrupt(path, f"{key}, a list of {count:,}", what)
    for label in found:
        if type(label) is not int or not 0 <= label < classes:
            what = str(label) if type(label) is int else type(label).__name__
            raise corrupt(path, f"{key} from 0 to {classes - 1}", what)
    return found


def _copy(path: Path, array: object, rows: np.ndarray) -> int:
    """Copy an array's pixels into the first rows; return how many images there are."""
    match array:
        case _Part(
            state=(
                _,
                tuple(shape),
                _Part(arguments=("u1" | b"u1", *_)),
                order,
                bytes() | str() as pixels,
            )
        ):
            pass
        case _:
            found = "another array" if isinstance(array, _Part) else type(array).__name__
            raise corrupt(path, "a numpy array of uint8", found)
    match shape:
        case (int(count), width) if 1 <= count <= len(rows) and width == PIXELS:
            pass
        case _:
            expected = f"a numpy array of 1 to {len(rows):,} x {PIXELS:,}"
            raise corrupt(path, expected, " x ".join(str(n)[:20] for n in shape[:8]))
    try:
        data = pixels.encode("latin-1") if isinstance(pixels, str) else pixels
        flat = np.frombuffer(data, np.uint8)
        rows[:count] = flat.reshape(count, PIXELS, order="F" if order else "C")
    except ValueError as error:
        raise corrupt(path, f"{count * PIXELS:,} bytes of pixels", str(error)[:200]) from error
    return count
