"""Verify a dataset: decode every file, compare it with the spec, and look for duplicates."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from cnn_core.data.dataset import Dataset, Files, load_dataset
from cnn_core.data.duplicates import duplicates, near_duplicates
from cnn_core.data.images import probe_image
from cnn_core.data.streaming import BadSamples, Progress, drop_bad_files
from cnn_core.errors import CorruptError, DatasetCorruptError

__all__ = ["verify"]

GREY = ("1", "L", "LA")
TRAILER = 1 << 16  # most bytes that cameras and editors append after the end of a PNG image


def verify(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    threads: int = 1,
    progress: Progress | None = None,
    near: bool = False,
    notes: list[str] | None = None,
) -> list[str]:
    """Return the faults of a dataset, one line each; an empty list if there are none.

    Lines on what is unusual but sound go to `notes`: images that repeat others of their class, and
    with `near` those that look like others.

    Raises:
        DatasetMissingError: the files were not found.
    """
    try:
        dataset = load_dataset(name, data_dir=data_dir)
    except CorruptError as error:
        return [error.message]
    faults = [*_wrong_counts(dataset)]
    for split in dataset.splits.values():
        if isinstance(split, Files):
            bad = BadSamples(allowed=len(split))
            drop_bad_files(split, threads, bad, progress)
            faults += bad.messages
            # One line per file: a file that cannot be decoded is often truncated as well.
            reported = {line.partition(": ")[0] for line in bad.messages}
            more = [*_odd_modes(split), *_truncated(split)]
            faults += [line for line in more if line.partition(": ")[0] not in reported]
    faults += _wrong_sizes(dataset)
    copies, unusual = duplicates(dataset)
    if notes is not None:
        notes += [*unusual, *(near_duplicates(dataset) if near else ())]
    return [*faults, *copies]


def _wrong_counts(dataset: Dataset) -> Iterator[str]:
    """Report splits with another number of samples than the spec, and classes without samples."""
    for name, split in dataset.splits.items():
        expected = dataset.spec.splits.get(name, len(split))
        if len(split) != expected:
            yield f"split '{name}': {len(split):,} samples, expected {expected:,}"
        if isinstance(split.targets, Tensor) and split.targets.ndim == 1:
            present = set(split.targets.unique().tolist())
            for number, label in enumerate(dataset.spec.classes):
                if number not in present:
                    yield f"split '{name}': no sample of class '{label}'"


def _odd_modes(files: Files) -> Iterator[str]:
    """Report images in another colour mode than most: readers would convert them silently."""
    modes = {}
    for path in files.images:
        try:
            modes[path] = probe_image(path)[2]
        except DatasetCorruptError:
            continue  # reported when it was decoded
    kinds = Counter("grey" if mode in GREY else mode for mode in modes.values())
    most = kinds.most_common(1)[0][0] if kinds else ""
    for path, mode in modes.items():
        kind = "grey" if mode in GREY else mode
        if kind != most:
            yield f"{path}: mode {mode}, most are {most}"


def _truncated(files: Files) -> Iterator[str]:
    """Report files without the end marker of their format, even if their pixels decode."""
    for path in files.images:
        if not _complete(data := _bytes(path)):
            yield f"{path}: cut off after {len(data):,} bytes"


def _complete(data: bytes) -> bool:
    """Return whether PNG, JPEG or GIF data has an end marker; True for other formats."""
    if data.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in data[-TRAILER:]
    if data.startswith(b"\xff\xd8"):
        # The last "end of image" must follow the last "start of scan": thumbnails have both, too.
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    return not data.startswith(b"GIF8") or data.rstrip(b"\0").endswith(b";")


def _bytes(path: Path) -> bytes:
    """Return the contents of a file, or b"" if it cannot be read, which is reported elsewhere."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _wrong_sizes(dataset: Dataset) -> Iterator[str]:
    """Report image files of another size than the spec's, if the spec has one size for all."""
    height, width = dataset.spec.image[1:]
    if dataset.spec.folder or height == 0:
        return
    for split in dataset.splits.values():
        for path in split.images if isinstance(split, Files) else ():
            try:
                found = probe_image(path)[:2]
            except DatasetCorruptError:
                continue
            if found != (height, width):
                yield f"{path}: {found[0]}x{found[1]} pixels, expected {height}x{width}"
