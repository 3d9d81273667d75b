"""Find images that occur twice, and images that are nearly the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.dataset import Dataset
from cnn_core.data.images import read_image
from cnn_core.data.splits import Files, Split
from cnn_core.errors import DatasetCorruptError
from cnn_core.text import counted

__all__ = ["digest_of", "duplicates", "near_duplicates"]

SIDE = 16  # of the thumbnails that are compared, in pixels
ALIKE = 0.99  # correlation of thumbnails
SHOWN = 20  # pairs to list
ROWS = 1024  # thumbnails to compare with all others at once


@dataclass(frozen=True)
class _Sample:
    """An image of a dataset: where it is, and its class, or None for masks."""

    split: str
    name: str
    label: int | None

    def relation(self, first: _Sample) -> str:
        """Return the words with which a message refers to `first`, an equal or similar image."""
        if self.split != first.split:
            return f"{first.name} of split '{first.split}'"
        return first.name + (", of another class" if self.label != first.label else "")


def duplicates(
    dataset: Dataset, pixels: Mapping[str, bytes] | None = None
) -> tuple[list[str], list[str]]:
    """Return faults and notes on images with the same file or the same pixels.

    `pixels` maps paths of files to digests of their decoded pixels, to find copies in another
    format. Images in memory do not need it.

    It is a fault if they are in several splits, since testing on training images is meaningless,
    or in several classes. Repetitions in one class are noted.
    """
    faults, repeated = [], dict[str, list[str]]()
    seen: dict[bytes, _Sample] = {}
    for sample, digest in _digests(dataset):
        same = (pixels or {}).get(sample.name, digest)
        first = seen.get(digest) or seen.get(same)
        seen.setdefault(digest, sample)
        seen.setdefault(same, sample)
        if first is None:
            continue
        line = f"{sample.name} is also {sample.relation(first)}"
        if (sample.split, sample.label) == (first.split, first.label):
            repeated.setdefault(sample.split, []).append(line)
        else:
            faults.append(f"split '{sample.split}': {line}")
    notes = [
        f"split '{name}': {counted(len(lines), 'image repeats another', 'images repeat others')}, "
        f"such as: {lines[0]}"
        for name, lines in repeated.items()
    ]
    return faults, notes


def near_duplicates(dataset: Dataset) -> list[str]:
    """Return notes on images that look like another one but are not its copy, at most SHOWN.

    Grey thumbnails of 16x16 pixels are compared by their correlation, which brightness, contrast,
    size and compression hardly change. Each line names an image and the most similar one before
    it; pairs in different splits come first. The time grows with the square of the number of
    images.
    """
    samples, digests = [], list[bytes]()
    for sample, digest in _digests(dataset):
        samples.append(sample)
        digests.append(digest)
    names = {(sample.split, sample.name): n for n, sample in enumerate(samples)}
    thumbnails = torch.zeros(len(samples), SIDE * SIDE)
    for split, name, image in _images(dataset):
        if (number := names.get((split, name))) is not None:
            thumbnails[number] = _thumbnail(image)
    order = [name for name, _ in _ordered(dataset)]
    splits = torch.tensor([order.index(sample.split) for sample in samples])
    found = [
        (samples[later].split == samples[first].split, -alike, later, first)
        for later, first, alike in _pairs(thumbnails, splits)
        if digests[later] != digests[first]
    ]
    lines = [
        f"split '{samples[later].split}': {samples[later].name} looks like "
        f"{samples[later].relation(samples[first])} (correlation {-alike:.3f})"
        for _, alike, later, first in sorted(found)
    ]
    rest = len(lines) - SHOWN
    more = counted(rest, "more image looks like another", "more images look like others")
    return [*lines[:SHOWN], *([more] if rest > 0 else [])]


def _ordered(dataset: Dataset) -> list[tuple[str, Split | Files]]:
    """Return the splits by name, the training split first."""
    return sorted(dataset.splits.items(), key=lambda pair: pair[0] != "train")


def _digests(dataset: Dataset) -> Iterator[tuple[_Sample, bytes]]:
    """Yield each image with a digest of its file or, in memory, of its pixels."""
    for name, split in _ordered(dataset):
        targets, labels = split.targets, [None] * len(split)
        if isinstance(targets, Tensor) and targets.ndim == 1:
            labels = targets.tolist()
        for number, (image, label) in enumerate(zip(split.images, labels, strict=True)):
            data = _bytes(image) if isinstance(image, Path) else image.numpy().tobytes()
            title = str(image) if isinstance(image, Path) else f"sample {number}"
            if data:
                yield _Sample(name, title, label), _digest(data)


def digest_of(image: Tensor) -> bytes:
    """Return a digest of the pixels and the shape of an image, C H W, uint8."""
    return _digest(str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _bytes(path: Path) -> bytes:
    """Return the contents of a file, or b"" if it cannot be read, which is reported elsewhere."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _images(dataset: Dataset) -> Iterator[tuple[str, str, Tensor]]:
    """Yield split, name and pixels, C H W, of each image that can be read."""
    for name, split in _ordered(dataset):
        for number, image in enumerate(split.images):
            if isinstance(image, Tensor):
                yield name, f"sample {number}", image
                continue
            try:
                yield name, str(image), read_image(image, 1)
            except DatasetCorruptError:
                continue  # reported when it was decoded


def _thumbnail(image: Tensor) -> Tensor:
    """Return a small grey image as a vector of mean 0 and length 1; zeros if it has one colour."""
    grey = image.float().mean(0)[None, None]
    small = F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True).flatten()
    centred = small - small.mean()
    length = centred.norm()
    return centred / length if length > 1 else torch.zeros_like(centred)


def _pairs(thumbnails: Tensor, splits: Tensor) -> Iterator[tuple[int, int, float]]:
    """Yield (later, first, correlation) of each image that is like one before it.

    `splits` are numbers of the splits, N. If several images are alike, the most similar one
    counts, but images of another split take precedence.
    """
    for start in range(0, len(thumbnails), ROWS):
        rows = slice(start, start + ROWS)
        # Only those before: the diagonal is the image itself.
        alike = (thumbnails[rows] @ thumbnails[: rows.stop].T).tril(start - 1)
        elsewhere = (alike > ALIKE) & (splits[rows, None] != splits[None, : rows.stop])
        first = (alike + elsewhere).argmax(1)
        best = alike.gather(1, first[:, None]).squeeze(1)
        for row in (best > ALIKE).nonzero().squeeze(1).tolist():
            yield start + row, int(first[row]), float(best[row])
