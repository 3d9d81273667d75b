"""Pack a dataset: decode its files once, into a file from which training maps its images.

Images are stored as `pipeline = "streaming"` would evaluate them: with their shorter side resized
if `fit` is "crop", else at the size that the network needs. Masks are stored as class numbers.

A pack is a folder in the cache, named by what its pixels depend on. `samples.bin` has the pixels
of one sample after the other, `index.bin` a row for each: where it ends, its height and its width,
which are 0 if its file cannot be decoded. A killed process leaves whole rows, and the next one
continues behind them. `pack.json` is written at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cnn_core.data.compact import Compact
from cnn_core.data.dataset import Dataset
from cnn_core.data.decoder import Decoder, Sample
from cnn_core.data.fetching.cache import cache_dir
from cnn_core.data.pixels import Reading
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.splits import Files, Item, below_common_folder
from cnn_core.data.streaming import Progress, decode, decode_all
from cnn_core.errors import DatasetCorruptError, ResourceError, UsageError
from cnn_core.files import write_text

__all__ = ["Pack", "Packed", "pack", "pack_folder"]

SAMPLES, INDEX, DONE = "samples.bin", "index.bin", "pack.json"
ROW = 3 * 8  # bytes of a row of the index: int64 end, height, width
FLUSH = 256  # samples after which the files are flushed: a kill costs at most these


@dataclass(frozen=True)
class Pack:
    """A finished pack: its folder, and the channels of its images."""

    folder: Path
    channels: int
    errors: Mapping[int, str] = field(default_factory=dict)  # of samples, by row

    @cached_property
    def index(self) -> npt.NDArray[np.int64]:
        """End, height and width of each sample, N x 3."""
        return np.fromfile(self.folder / INDEX, np.int64).reshape(-1, 3)

    @cached_property
    def samples(self) -> npt.NDArray[np.uint8]:
        """All pixels. Mapped copy-on-write: PyTorch expects memory that it may write to."""
        return np.memmap(self.folder / SAMPLES, np.uint8, mode="c")

    def image(self, row: int) -> Tensor:
        """Return an image, uint8 C H W in channels-last memory.

        Raises:
            DatasetCorruptError: its file could not be decoded.
        """
        start, height, width = self._place(row)
        values = self.samples[start : start + height * width * self.channels]
        return torch.from_numpy(values).view(height, width, self.channels).permute(2, 0, 1)

    def mask(self, row: int) -> Tensor:
        """Return the class numbers of an image's pixels, uint8 H W."""
        start, height, width = self._place(row)
        start += height * width * self.channels
        return torch.from_numpy(self.samples[start : start + height * width]).view(height, width)

    def _place(self, row: int) -> tuple[int, int, int]:
        _, height, width = self.index[row].tolist()
        if not height:
            raise DatasetCorruptError(self.errors[row])
        return int(self.index[row - 1, 0]) if row else 0, height, width


@dataclass(frozen=True)
class Packed:
    """Make the items of a split, in place of its paths: images of a pack, or their masks."""

    pack: Pack
    masks: bool = False

    def __call__(self, row: int) -> Item:
        read = self._mask if self.masks else self._image
        return Item(read, row, self.pack.folder.name)

    def _image(self, row: int, channels: int, reading: Reading) -> Tensor:
        return self.pack.image(row)

    def _mask(self, row: int, channels: int, reading: Reading) -> Tensor:
        return self.pack.mask(row)


def pack(
    dataset: Dataset,
    preprocessing: Preprocessing,
    threads: int = 1,
    progress: Progress | None = None,
) -> tuple[Dataset, list[str]]:
    """Return the dataset with its splits on disk packed; pack them first if they are not yet.

    Files that cannot be decoded keep their places, and raise errors when they are read. The
    errors are returned, too.

    Raises:
        UsageError: a split holds images of a Python object, which cannot be known again.
        ResourceError: the disk is full or cannot be written.
    """
    folder = pack_folder(dataset, preprocessing)
    parts = _parts(dataset)
    channels = dataset.spec.image[0]
    try:
        _fill(folder, parts, preprocessing, dataset, threads, progress)
        facts = json.loads((folder / DONE).read_text())
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot be written: {error.strerror or error}",
            "free space, or let CNNZOO_CACHE name a folder on another disk",
        ) from error
    errors = {int(row): message for row, message in facts["errors"].items()}
    made, start = Pack(folder, channels, errors), 0
    splits = dict(dataset.splits)
    for name, files in parts.items():
        rows = np.arange(start, start + len(files))
        start += len(files)
        targets: Any = files.targets
        if not isinstance(targets, Tensor):
            targets = Compact(Packed(made, masks=True), rows)
        splits[name] = replace(files, images=Compact(Packed(made), rows), targets=targets)
    return replace(dataset, splits=splits), list(errors.values())


def pack_folder(dataset: Dataset, preprocessing: Preprocessing) -> Path:
    """Return the folder of a dataset's pack, whether it exists or not.

    Its name is a hash of all that its pixels depend on: how images are resized, and the name, the
    size and the time of change of each file.
    """
    digest = hashlib.sha256(repr((1, _resizing(preprocessing), dataset.spec.image)).encode())
    for name, files in _parts(dataset).items():
        reading = (files.channels, files.reading, files.in_colour, files.turn_masks)
        digest.update(repr((name, len(files), reading, sorted(files.values.items()))).encode())
        for paths in (files.images, files.targets):
            if isinstance(paths, Tensor):
                continue
            for path, short in zip(paths, below_common_folder(paths), strict=True):
                digest.update(f"{short}\0{_changed(path)}\n".encode("utf-8", "surrogateescape"))
    return cache_dir() / "packed" / digest.hexdigest()[:16]


def _changed(path: Path) -> str:
    """Return size and time of change of a file; "" if it is missing, which decoding reports."""
    try:
        info = os.stat(path)
    except OSError:
        return ""
    return f"{info.st_size} {info.st_mtime_ns}"


def _resizing(preprocessing: Preprocessing) -> tuple[object, ...]:
    if preprocessing.crops:
        return "shorter side", preprocessing.resize, preprocessing.interpolation
    return "size", preprocessing.resize_to


def _parts(dataset: Dataset) -> dict[str, Files]:
    """Return the splits that are on disk, in the order of their names."""
    found = {n: s for n, s in sorted(dataset.splits.items()) if isinstance(s, Files)}
    if not found:
        raise UsageError(f"dataset '{dataset.spec.name}' is in memory and cannot be packed")
    if any(isinstance(image, Item) for files in found.values() for image in files.images[:1]):
        raise UsageError("images of a Python object cannot be packed", "--pipeline streaming")
    return found


def _fill(
    folder: Path,
    parts: Mapping[str, Files],
    preprocessing: Preprocessing,
    dataset: Dataset,
    threads: int,
    progress: Progress | None,
) -> None:
    """Write what is missing of a pack; wait for another process that writes the same one."""
    if (folder / DONE).is_file():
        return
    from filelock import FileLock  # late: it imports asyncio, which no other command needs

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if (folder / DONE).is_file():
            return
        decoders = [_decoder(files, preprocessing, dataset) for files in parts.values()]
        errors: dict[int, str] = {}
        with _Writer(folder) as writer:
            first = writer.rows
            for row, sample in enumerate(_decoded(decoders, first, threads, progress), first):
                if isinstance(sample, DatasetCorruptError):
                    errors[row] = sample.message
                writer.add(sample)
        errors |= _earlier_errors(folder, decoders, first)
        write_text(folder / DONE, json.dumps({"errors": errors}))


def _decoder(files: Files, preprocessing: Preprocessing, dataset: Dataset) -> Decoder:
    """Return the decoder of what is stored; images that are small enough stay as they are."""
    _, height, width = dataset.spec.image
    own_size = (height, width) if height else None
    if preprocessing.crops:
        small = height and min(height, width) <= preprocessing.resize
        center = None if small else preprocessing.by_shorter_side
        return Decoder(files, None, required_size=own_size, center=center)
    size = preprocessing.resize_to if any(preprocessing.resize_to) else None
    return Decoder(files, size, required_size=own_size)


def _decoded(
    decoders: Sequence[Decoder], first: int, threads: int, progress: Progress | None
) -> Iterator[Sample | DatasetCorruptError]:
    """Yield the samples of all decoders, from the row `first` on."""
    for decoder in decoders:
        if first < len(decoder):
            yield from decode_all(decoder, threads, progress, first)
        first = max(first - len(decoder), 0)


def _earlier_errors(folder: Path, decoders: Sequence[Decoder], end: int) -> dict[int, str]:
    """Return the errors of rows before `end`, which a killed process wrote, by row."""
    index = np.fromfile(folder / INDEX, np.int64).reshape(-1, 3)[:end]
    bad = set(np.flatnonzero(index[:, 1] == 0).tolist())
    places = ((d, number) for d in decoders for number in range(len(d)))
    found = {row: decode(*place) for row, place in enumerate(places) if row in bad}
    return {row: e.message for row, e in found.items() if isinstance(e, DatasetCorruptError)}


class _Writer:
    """Append samples to a pack, behind the whole rows that are there."""

    def __init__(self, folder: Path) -> None:
        self.samples, self.index = ((folder / name).open("ab") for name in (SAMPLES, INDEX))
        self.rows = os.path.getsize(folder / INDEX) // ROW
        rows = np.fromfile(folder / INDEX, np.int64, 3 * self.rows).reshape(-1, 3)
        # Pixels are flushed before their rows, so those of all rows are there.
        self.end = int(rows[-1, 0]) if self.rows else 0
        self.index.truncate(self.rows * ROW)
        self.samples.truncate(self.end)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._flush()
        finally:
            self.samples.close()
            self.index.close()

    def add(self, sample: Sample | DatasetCorruptError) -> None:
        """Append a sample."""
        height = width = 0
        if not isinstance(sample, DatasetCorruptError):
            image, target = sample
            height, width = image.shape[1:]
            self._write(image.permute(1, 2, 0))
            if target.ndim:
                self._write(target)
        self.index.write(np.array([self.end, height, width], np.int64).tobytes())
        self.rows += 1
        if self.rows % FLUSH == 0:
            self._flush()

    def _write(self, values: Tensor) -> None:
        self.samples.write(values.contiguous().numpy().tobytes())
        self.end += values.numel()

    def _flush(self) -> None:
        self.samples.flush()
        self.index.flush()
