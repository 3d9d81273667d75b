"""Whether what is on disk is sound: every file read, every count and label held to its claim."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from cnn_core.data.dataset import Dataset, Files, Split, load_dataset
from cnn_core.data.images import probe_image
from cnn_core.data.streaming import BadSamples, Progress, sound
from cnn_core.errors import CorruptError, DatasetCorruptError

__all__ = ["verify"]

GREY = ("1", "L", "LA")
SLACK = 1 << 16  # bytes that cameras and editors add behind the end


def verify(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[str]:
    """Return what is wrong with a dataset on disk, a line for each fault; none if it is sound.

    Raises:
        DatasetMissingError: its files are not there.
    """
    try:
        dataset = load_dataset(name, data_dir=data_dir)
    except CorruptError as error:
        return [error.message]
    found = [*_counts(dataset)]
    for split in dataset.splits.values():
        if isinstance(split, Files):
            bad = BadSamples(allowed=len(split))
            sound(split, threads, bad, progress)
            found += bad.found
            named = {line.partition(": ")[0] for line in bad.found}
            more = [*_odd_modes(split), *_without_end(split)]
            found += [line for line in more if line.partition(": ")[0] not in named]
    found += _sizes(dataset)
    return [*found, *_repeated(dataset)]


def _counts(dataset: Dataset) -> Iterator[str]:
    """Say which splits are not as long as they should be, and which classes are empty."""
    for name, split in dataset.splits.items():
        claimed = dataset.spec.splits.get(name, len(split))
        if len(split) != claimed:
            yield f"split '{name}': {len(split):,} samples, expected {claimed:,}"
        if isinstance(split.targets, Tensor) and split.targets.ndim == 1:
            there = set(split.targets.unique().tolist())
            for number, label in enumerate(dataset.spec.classes):
                if number not in there:
                    yield f"split '{name}': no sample of class '{label}'"


def _odd_modes(files: Files) -> Iterator[str]:
    """Say which images have other channels than most."""
    modes = {}
    for path in files.images:
        try:
            modes[path] = probe_image(path)[2]
        except DatasetCorruptError:
            continue  # found already
    kinds = Counter("grey" if mode in GREY else mode for mode in modes.values())
    most = kinds.most_common(1)[0][0] if kinds else ""
    for path, mode in modes.items():
        kind = "grey" if mode in GREY else mode
        if kind != most:
            yield f"{path}: mode {mode}, most are {most}"


def _without_end(files: Files) -> Iterator[str]:
    """Say which files stop before their format's last bytes, though all pixels can be read."""
    for path in files.images:
        if not _whole(data := _bytes(path)):
            yield f"{path}: cut off after {len(data):,} bytes"


def _whole(data: bytes) -> bool:
    """Whether an image file has the end that its format has; others are taken to be whole."""
    if data.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in data[-SLACK:]
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    return not data.startswith(b"GIF8") or data.rstrip(b"\0").endswith(b";")


def _bytes(path: Path) -> bytes:
    """Return a file's contents; nothing of one that cannot be read, which is found elsewhere."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _sizes(dataset: Dataset) -> Iterator[str]:
    """Say which images are not of the size that all of a dataset's are said to have."""
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


def _repeated(dataset: Dataset) -> Iterator[str]:
    """Say which test images are training images too."""
    seen: dict[bytes, tuple[str, str]] = {}
    for name, split in sorted(dataset.splits.items(), key=lambda pair: pair[0] != "train"):
        for what, digest in _digests(split):
            first, where = seen.setdefault(digest, (what, name))
            if where != name:
                yield f"split '{name}': {what} is also {first} of split '{where}'"


def _digests(split: Split | Files) -> Iterator[tuple[str, bytes]]:
    """Yield a name of each image and a digest of its pixels, or of its file."""
    if isinstance(split, Files):
        for path in split.images:
            if data := _bytes(path):
                yield str(path), _digest(data)
    else:
        for number, image in enumerate(split.images.numpy()):
            yield f"sample {number}", _digest(image.tobytes())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
