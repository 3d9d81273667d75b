"""Read splits on disk: decode them into memory first, or in worker processes during training.

Before training in memory, every file is decoded, and all broken files are reported together. A
stream would take hours for that: only headers are read before its first step, and what else is
broken is found when it is read. Files that may be skipped are then replaced, in training, by the
image before them in the split, so that all ranks and all numbers of workers see the same samples.
In evaluation they are left out.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cnn_core.data.augment import Draws
from cnn_core.data.bad_samples import BadSamples
from cnn_core.data.decoder import Center, Decoder, Sample, Size, sides
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.splits import Files, Split, read_pixels
from cnn_core.data.windows import shifted
from cnn_core.errors import DatasetCorruptError

log: logging.Logger = logging.getLogger("cnn_core")

__all__ = [
    "crops_while_decoding",
    "decode",
    "decode_all",
    "decode_to_memory",
    "drop_bad_files",
    "statistics",
    "stream",
    "usable_samples",
]

BLOCK = 4_000_000  # image values that `statistics` processes at once, to bound its memory
CONSTANT = 1 / 255  # a standard deviation of less than a grey level is noise
MAX_STATISTICS_FILES = 5000  # files that `statistics` reads at most, evenly spaced

Progress = Callable[[int, int], None]  # done, total


class Decoded(NamedTuple):
    """A decoded batch: images, uint8 N C H W, targets, and the samples' indices in the split, N.

    Where another sample takes the place of one that is skipped, the index is the other's.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor


def stream(
    files: Files,
    index_batches: Sequence[Tensor],
    preprocessing: Preprocessing,
    draws: Draws | None,
    workers: int,
) -> Iterator[Decoded | None]:
    """Yield each batch of indices decoded, shifted and mirrored by `draws`; None if it is empty.

    Worker processes decode, crop and resize. Random numbers are counter-based, so the number of
    workers changes no pixel. Samples that are skipped are replaced if there are `draws`, which
    are those of training, and left out otherwise.

    Raises:
        DatasetCorruptError: more samples cannot be decoded than `files.bad` allows.
    """
    from torch.utils.data import DataLoader

    required_size = preprocessing.image_size if any(preprocessing.image_size) else None
    crop_draws = draws if crops_while_decoding(preprocessing, draws) else None
    size = preprocessing.resize_to if crop_draws is not None or required_size is None else None
    centers = preprocessing.crops and crop_draws is None
    center = preprocessing.center_cropped if centers else None
    decoder = Decoder(files, size, crop_draws, required_size, center, preprocessing.crops)
    loader: Iterable[tuple[Decoded | None, list[str]]] = DataLoader(
        _Tolerant(decoder, replaces=draws is not None),  # type: ignore[arg-type]
        batch_sampler=[indices.tolist() for indices in index_batches],
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=_init_worker,
        prefetch_factor=4 if workers else None,
    )
    bad = files.bad or BadSamples()
    for indices, (decoded, errors) in zip(index_batches, loader, strict=True):
        _record(bad, errors, "; the image before it takes its place" * (draws is not None))
        moves = draws is not None and (draws.augmentation.shift or draws.augmentation.flip)
        if decoded is None or draws is None or not moves:
            yield decoded
        else:
            positions = torch.arange(len(indices))
            images, targets = shifted(decoded.images, decoded.targets, positions, indices, draws)
            yield Decoded(images, targets, decoded.indices)


def crops_while_decoding(preprocessing: Preprocessing, draws: Draws | None) -> bool:
    """Return whether workers apply the random crop to the original image, before resizing it.

    They do if images are resized anyway: the crop then keeps the original's detail.
    """
    cropped = draws is not None and bool(draws.augmentation.crop)
    resized = preprocessing.crops or preprocessing.image_size != preprocessing.resize_to
    return cropped and resized


class _Read(NamedTuple):
    """A sample, or None if it is left out, and its index in the split."""

    sample: Sample | None
    number: int
    errors: list[str]


@dataclass(frozen=True)
class _Tolerant:
    """Read samples; those that cannot be decoded become errors, and others take their place.

    Errors are returned, not raised: the main process counts them, and a worker's exception would
    reach it as text.
    """

    decoder: Decoder
    replaces: bool

    def __len__(self) -> int:
        return len(self.decoder)

    def __getitem__(self, index: int) -> _Read:
        bad, errors = self.decoder.files.bad or BadSamples(), list[str]()
        while True:
            sample = decode(self.decoder, index)
            if not isinstance(sample, DatasetCorruptError):
                return _Read(sample, index, errors)
            errors.append(sample.message)
            if not self.replaces or len(errors) > bad.allowed:
                return _Read(None, index, errors)
            index = (index - 1) % len(self.decoder)


def _stack(reads: list[_Read]) -> tuple[Decoded | None, list[str]]:
    """Return the samples as a batch, or None if there are none, and all errors."""
    errors = [error for read in reads for error in read.errors]
    found = [
        (*read.sample, torch.tensor(read.number)) for read in reads if read.sample is not None
    ]
    if not found:
        return None, errors
    return Decoded(*(torch.stack(column) for column in zip(*found, strict=True))), errors


def _record(bad: BadSamples, errors: Iterable[str], note: str = "") -> None:
    """Record samples that cannot be decoded; say so once, or raise if there are too many."""
    for error in errors:
        if error not in bad.messages:
            bad.messages.append(error)
            bad.raise_if_too_many()
            log.warning("skipped: %s%s", error, note)


def _init_worker(worker: int) -> None:
    """Limit a worker to one thread, and let it ignore signals.

    Ctrl-C goes to the whole process group. If it ended a worker, the parent would take that for a
    crash. The parent saves a checkpoint and then stops its workers itself.
    """
    torch.set_num_threads(1)  # the workers together already use all cores
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)


def decode_to_memory(
    files: Files,
    size: Size | None,
    threads: int = 1,
    bad: BadSamples | None = None,
    progress: Progress | None = None,
    required_size: Size | None = None,
    center: Center | None = None,
) -> Split:
    """Decode all files into a Split, resized to `size`; without it, all images need the same size.

    A `center` replaces the resizing, as in `Decoder`.

    Raises:
        DatasetCorruptError: a file cannot be decoded and there is no `bad` to record it, no file
            can be decoded, or the sizes differ.
    """
    # Allocate when the first sample gives the shapes: stacking a list would take twice the memory.
    buffers, record = None, bad or files.bad or BadSamples()
    usable: list[int] = []
    decoder = Decoder(files, size, None, required_size, center)
    for number, (image, target) in usable_samples(decoder, threads, record, progress):
        if buffers is None:
            buffers = tuple(part.new_empty((len(files), *part.shape)) for part in (image, target))
        if image.shape != buffers[0].shape[1:]:
            sizes = f"{sides(image.shape)}, {sides(buffers[0].shape)}"
            raise DatasetCorruptError(f"images differ in size: {sizes}")
        buffers[0][len(usable)], buffers[1][len(usable)] = image, target
        usable.append(number)
    if bad is None or buffers is None:
        record.raise_if_too_many()
    if buffers is None:
        raise DatasetCorruptError("no sample can be decoded")
    images, targets = (buffer[: len(usable)] for buffer in buffers)
    weights, groups = (
        None if values is None else values[usable] for values in (files.weights, files.groups)
    )
    return Split(images, targets, weights, groups)


def drop_bad_files(
    files: Files,
    threads: int = 1,
    bad: BadSamples | None = None,
    progress: Progress | None = None,
    required_size: Size | None = None,
) -> Files:
    """Decode every file once, discard the pixels, and return the split without bad files.

    Raises:
        DatasetCorruptError: a file cannot be decoded and there is no `bad` to record it.
    """
    record = bad or BadSamples()
    decoder = Decoder(files, None, None, required_size)
    kept = [number for number, _ in usable_samples(decoder, threads, record, progress)]
    if bad is None:
        record.raise_if_too_many()
    return files.subset(torch.tensor(kept, dtype=torch.int64))


def usable_samples(
    decoder: Decoder, threads: int, bad: BadSamples, progress: Progress | None
) -> Iterator[tuple[int, Sample]]:
    """Yield the samples that can be decoded, with their indices; record the others in `bad`."""
    for number, sample in enumerate(decode_all(decoder, threads, progress)):
        if isinstance(sample, DatasetCorruptError):
            bad.messages.append(sample.message)
        else:
            yield number, sample


def decode_all(
    decoder: Decoder, threads: int, progress: Progress | None, first: int = 0
) -> Iterator[Sample | DatasetCorruptError]:
    """Yield the samples from `first` on, in order, decoded by threads: Pillow releases the GIL."""
    # In blocks: `pool.map` submits everything at once, and decoded images would fill the memory.
    count, block = len(decoder), 64 * threads
    with ThreadPoolExecutor(threads) as pool:
        for start in range(first, count, block):
            yield from pool.map(partial(decode, decoder), range(start, min(start + block, count)))
            if progress is not None:
                progress(min(start + block, count), count)


def decode(decoder: Decoder, index: int) -> Sample | DatasetCorruptError:
    """Return a sample, or the error, so that the other samples of the block are not lost."""
    try:
        return decoder[index]
    except DatasetCorruptError as error:
        return error


def statistics(split: Split | Files) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, for images scaled to [0, 1].

    Of a channel that is nearly constant, the deviation is 1: noise must not be scaled up.
    From a split on disk, at most MAX_STATISTICS_FILES files are read, evenly spaced.
    """
    sums, squares, count = np.zeros(0), np.zeros(0), 0
    for images in _blocks(split):
        # In integers: exact, and much faster than in float64.
        values = images.transpose(0, 1).flatten(1).numpy()
        total = values.sum(1, dtype=np.uint64) / 255
        square = np.square(values, dtype=np.uint16).sum(1, dtype=np.uint64) / 255**2
        sums, squares = (total, square) if count == 0 else (sums + total, squares + square)
        count += values.shape[1]
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std = np.where(std < CONSTANT, 1.0, std)
    return tuple(_rounded(mean)), tuple(_rounded(std))


def _rounded(values: npt.NDArray[np.float64]) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _blocks(split: Split | Files) -> Iterator[Tensor]:
    """Yield blocks of images, N C H W; from files, single images, because sizes may differ."""
    if isinstance(split, Split):
        pixels = split.images[0].numel()
        yield from split.images.split(max(BLOCK // pixels, 1))
        return
    step = -(-len(split) // MAX_STATISTICS_FILES)
    for path in split.images[::step]:
        try:
            yield read_pixels(path, split.channels, split.reading)[None]
        except DatasetCorruptError as error:
            _record(split.bad or BadSamples(), [error.message])
