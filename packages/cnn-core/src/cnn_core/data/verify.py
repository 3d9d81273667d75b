"""Verify a dataset: decode every file, compare it with the spec, and look for duplicates."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cnn_core.data.bad_samples import BadSamples
from cnn_core.data.dataset import Dataset, load_dataset
from cnn_core.data.decoder import Decoder
from cnn_core.data.duplicates import digest_of, duplicates, near_duplicates
from cnn_core.data.headers import probe_image
from cnn_core.data.splits import Files
from cnn_core.data.streaming import Progress, usable_samples
from cnn_core.errors import CorruptError, DatasetCorruptError
from cnn_core.text import counted

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

    Lines on how the files were understood, and on what is unusual but sound, go to `notes`: also
    images that repeat others of their class, and with `near` those that look like others.

    Raises:
        UsageError: there is no such dataset or folder.
        DatasetMissingError: the files were not found.
    """
    try:
        dataset = load_dataset(name, data_dir=data_dir)
    except CorruptError as error:
        return [str(error).replace("\n", "; ")]
    notes = [] if notes is None else notes
    notes += dataset.notes
    faults = [*dataset.faults, *_wrong_counts(dataset)]
    if dataset.survey is not None:
        some = dataset.survey.faults(dataset.reading)
        faults = [line for line in faults if line not in some]
        faults += dataset.survey.faults(dataset.reading, every=True)
    pixels: dict[str, bytes] = {}
    for split_name, split in dataset.splits.items():
        values = _Values()
        if isinstance(split, Files):
            bad = BadSamples(allowed=len(split))
            for number, (image, _) in usable_samples(Decoder(split, None), threads, bad, progress):
                path = split.images[number]
                # Images of one colour repeat without being copies.
                if not values.add(image, path):
                    pixels[str(path)] = digest_of(image)
            faults += bad.messages
            # One line per file: a file that cannot be decoded is often truncated as well.
            reported = {line.partition(": ")[0] for line in bad.messages}
            more = [*_odd_modes(split), *_truncated(split)]
            faults += [line for line in more if line.partition(": ")[0] not in reported]
        else:
            for number, image in enumerate(split.images):
                values.add(image, Path(f"sample {number}"))
        notes += values.lines(split_name)
    faults += _wrong_sizes(dataset)
    copies, unusual = duplicates(dataset, pixels)
    notes += [*unusual, *(near_duplicates(dataset) if near else ())]
    return list(dict.fromkeys([*faults, *copies]))


class _Values:
    """The lowest and highest value of each channel, and the images of a single colour."""

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self.plain: list[Path] = []
        self.count = 0

    def add(self, image: Tensor, path: Path) -> bool:
        """Add an image, C H W; return whether it has a single colour."""
        low, high = image.flatten(1).amin(1), image.flatten(1).amax(1)
        if plain := bool((low == high).all()):
            self.plain.append(path)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self.count += 1
        return plain

    def lines(self, split: str) -> Iterator[str]:
        """Yield a line for each channel that is constant, and one for images of one colour."""
        if self.low is None or self.high is None:
            return
        for number, (low, high) in enumerate(zip(self.low, self.high, strict=True), 1):
            if low == high:
                yield f"split '{split}': channel {number} is {int(low)} in every pixel"
        if self.plain:
            of = f"of {self.count:,} images"
            yield (
                f"split '{split}': {counted(len(self.plain), f'{of} has', f'{of} have')} a single "
                f"colour, such as {self.plain[0]}"
            )


def _wrong_counts(dataset: Dataset) -> Iterator[str]:
    """Report splits with another number of samples than the spec, and classes without samples."""
    absent: dict[tuple[str, ...], list[str]] = {}  # splits by the classes that they lack
    for name, split in dataset.splits.items():
        expected = dataset.spec.splits.get(name, len(split))
        if len(split) != expected:
            yield f"split '{name}': {counted(len(split), 'sample')}, expected {expected:,}"
        if isinstance(split.targets, Tensor) and split.targets.ndim < 3:
            several = split.targets.ndim == 2  # images x classes
            own = split.targets.any(0).nonzero() if several else split.targets.unique()
            present = set(own.flatten().tolist())
            lacking = (c for n, c in enumerate(dataset.spec.classes) if n not in present)
            absent.setdefault(tuple(lacking), []).append(name)
    for classes, splits in absent.items():
        where = ", ".join(f"'{name}'" for name in splits)
        what = ", ".join(f"'{label}'" for label in classes)
        if classes:
            of = "class" if len(classes) == 1 else f"{len(classes)} classes:"
            yield f"split{'s' * (len(splits) > 1)} {where}: no sample of {of} {what}"


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
