"""Read CIFAR's pickled batches with an unpickler that allows five names and builds no array.

With values from a malicious file, NumPy's own functions could crash or fill the memory. Stand-ins
replace them here; the array is made from its bytes after its dtype and shape have been checked.
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


class _StandIn:
    """Stand-in for an array or a dtype that keeps the arguments and state NumPy would get."""

    def __init__(self, *arguments: object) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _latin1(text: object, encoding: object) -> object:
    """Stand-in for `codecs.encode`: return text unchanged, since many copies could fill memory."""
    if encoding != "latin1":
        raise ValueError(f"bytes written as {encoding!r}")
    return text


ALLOWED: dict[str, Callable[..., object]] = {
    "numpy.core.multiarray _reconstruct": _StandIn,
    "numpy._core.multiarray _reconstruct": _StandIn,
    "numpy ndarray": _StandIn,
    "numpy dtype": _StandIn,
    "_codecs encode": _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Look up one of ALLOWED: the scan has already refused every other name."""
        return ALLOWED[f"{module} {name}"]


def read_pickled(path: Path, labels: Mapping[str, int], rows: np.ndarray) -> Tensor:
    """Read the images of a batch into the first rows of `rows`, uint8 N 3072; return its targets.

    `labels` maps the key of each list of labels to its number of classes. The last list is
    returned, int64.

    Raises:
        DatasetCorruptError: the file is not a batch pickled with protocol 2 to 4.
    """
    batch = _unpickled(path)
    count = _copy(path, _value(path, batch, "data"), rows)
    targets: list[int] = []
    for key, classes in labels.items():
        targets = _labels(path, key, _value(path, batch, key), count, classes)
    names = batch.get("filenames")
    if isinstance(names, list) and len(names) != count:
        raise corrupt(path, f"{count:,} file names", f"{len(names):,}")
    return torch.tensor(targets, dtype=torch.int64)


def corrupt(
    path: Path, expected: str, found: str, offset: int | None = None
) -> DatasetCorruptError:
    """Return the error for a broken file; `offset` is the position of the fault, if known."""
    position = "" if offset is None else f"at byte {offset}: "
    return DatasetCorruptError(
        f"{path}: {position}expected {expected}, found {found}", "delete it and fetch it again"
    )


def _unpickled(path: Path) -> dict[str, Any]:
    """Return the batch as a dictionary with string keys; Python 2 wrote them as bytes."""
    stream = io.BytesIO(path.read_bytes())
    try:
        PickleScan(ALLOWED, MAX_STEPS).run(stream)
        if stream.read(1):
            raise ValueError("data after the end of the pickle")
        stream.seek(0)
        batch = _Unpickler(stream, encoding="bytes").load()
        if not isinstance(batch, dict):
            raise ValueError(f"a pickled {type(batch).__name__}")
        keys = [k.decode("latin-1") if isinstance(k, bytes) else str(k) for k in batch]
        return dict(zip(keys, batch.values(), strict=True))
    except Exception as error:  # a malicious file can make an unpickler raise anything
        found = printable(" ".join(str(error)[:200].split())) or type(error).__name__
        raise corrupt(path, "a pickled batch of images", found, stream.tell()) from error


def _value(path: Path, batch: Mapping[str, Any], key: str) -> Any:
    if key not in batch:
        keys = ", ".join(printable(key[:80]) for key in list(batch)[:8])
        raise corrupt(path, f"a batch with {key}", keys or "an empty one")
    return batch[key]


def _labels(path: Path, key: str, found: object, count: int, classes: int) -> list[int]:
    """Return a list of labels after checking its length and values."""
    if not isinstance(found, list) or len(found) != count:
        actual = f"{len(found):,}" if isinstance(found, list) else type(found).__name__
        raise corrupt(path, f"{key}, a list of {count:,}", actual)
    for label in found:
        if type(label) is not int or not 0 <= label < classes:
            actual = str(label) if type(label) is int else type(label).__name__
            raise corrupt(path, f"{key} from 0 to {classes - 1}", actual)
    return found


def _copy(path: Path, array: object, rows: np.ndarray) -> int:
    """Copy an array's pixels into the first rows; return the number of images."""
    match array:
        case _StandIn(
            state=(
                _,
                tuple(shape),
                _StandIn(arguments=("u1" | b"u1", *_)),
                order,
                bytes() | str() as pixels,
            )
        ):
            pass
        case _:
            found = "another array" if isinstance(array, _StandIn) else type(array).__name__
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
