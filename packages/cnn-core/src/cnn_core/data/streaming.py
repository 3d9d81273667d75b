"""Read splits on disk: decode them into memory first, or in worker processes during training.

Either way, every file is decoded once before training. Broken files are thus all reported at the
start, instead of ending a run after hours. Bad files that may be skipped are dropped before the
first epoch, so that all epochs and ranks see the same samples under the same indices.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import IGNORED, Draws
from cnn_core.data.dataset import Dataset, Files, Split, read_pixels
from cnn_core.data.images import resize_images
from cnn_core.data.mask_image import DEPTH, exif_orientation, hexadecimal, read_mask, turned
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.windows import shifted
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.text import counted

__all__ = [
    "BadSamples",
    "Decoder",
    "IN_MEMORY",
    "crops_while_decoding",
    "decode_to_memory",
    "drop_bad_files",
    "load_splits",
    "statistics",
    "stream",
    "usable_samples",
]

IN_MEMORY = 2 * 2**30  # pipeline = "auto" keeps at most this many bytes of images in memory
BLOCK = 4_000_000  # image values that `statistics` processes at once, to bound its memory
MAX_LISTED = 12  # values that an error names
CONSTANT = 1 / 255  # a standard deviation of less than a grey level is noise
MAX_NAMED = 5  # bad files that an error names
MAX_STATISTICS_FILES = 5000  # files that `statistics` reads at most, evenly spaced

Sample = tuple[Tensor, Tensor]
Size = tuple[int, int]  # height, width
Progress = Callable[[int, int], None]  # done, total
Center = Callable[[Tensor], Tensor]  # cuts out a part of an image, uint8 C H W


@dataclass(frozen=True)
class Decoder:
    """Read single samples of a split on disk: an image, uint8 C H W, and its target.

    Images are resized to `size`, if given; masks too, by nearest neighbour. With `draws`, images
    are randomly cropped before they are resized, with aspect ratios in pixels if `true_aspect`. If
    `required_size` is given, an image of another size raises DatasetCorruptError. A `center`, such
    as `Preprocessing.center_cropped`, replaces the resizing.
    """

    files: Files
    size: Size | None
    draws: Draws | None = None
    required_size: Size | None = None
    center: Center | None = None
    true_aspect: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.files.images[index]
        image = read_pixels(path, self.files.channels, self.files.reading)
        if self.required_size is not None and tuple(image.shape[-2:]) != self.required_size:
            expected = "x".join(map(str, self.required_size))
            raise DatasetCorruptError(f"{path}: {_size(image)} pixels, expected {expected}")
        if isinstance(self.files.targets, Tensor):
            return self._resize(self._crop(image, index)), self.files.targets[index]
        mask = _read_classes(self.files, index)
        if mask.shape != image.shape[1:]:
            raise DatasetCorruptError(
                f"{self.files.targets[index]}: mask is {_size(mask)}, its image is {_size(image)}"
                f"{_exif_note(path)}"
            )
        return self._resize(self._crop(image, index)), self._resize_mask(self._crop(mask, index))

    def _crop(self, image: Tensor, index: int) -> Tensor:
        """Return the random crop of an image, … H W, rounded to whole pixels."""
        if self.draws is None:
            return image
        height, width = image.shape[-2:]
        aspect = height / width if self.true_aspect else 1.0
        box = self.draws.crop_boxes(np.array([index]), aspect)[0].tolist()
        tall, wide = max(round(box[2] * height), 1), max(round(box[3] * width), 1)
        top, left = min(round(box[0] * height), height - tall), round(box[1] * width)
        left = min(left, width - wide)
        # The in-memory pipeline mirrors before it crops. Here mirroring comes after, so mirror the
        # box to cut out the same region.
        if self.draws.shifts(np.array([index])).flipped[0]:
            left = width - wide - left
        return image[..., top : top + tall, left : left + wide]

    def _resize(self, image: Tensor) -> Tensor:
        if self.center is not None:
            return self.center(image)
        if self.size is None or image.shape[-2:] == self.size:
            return image
        return resize_images(image[None], self.size)[0]

    def _resize_mask(self, mask: Tensor) -> Tensor:
        if self.size is None or mask.shape == self.size:
            return mask
        scaled = F.interpolate(mask[None, None].float(), self.size, mode="nearest-exact")
        return scaled[0, 0].to(torch.uint8)


def _exif_note(path: Path) -> str:
    """Return a hint if EXIF turns an image, so that its mask may have another size, else ""."""
    turns = exif_orientation(path) != 1
    return " after EXIF turned it; see turn_masks in dataset.toml" if turns else ""


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"


def _read_classes(files: Files, index: int) -> Tensor:
    """Return a mask, uint8 H W, with its values replaced by class numbers."""
    path = files.targets[index]
    assert not isinstance(path, Tensor)
    mask = read_mask(path, files.in_colour)
    if files.turn_masks and exif_orientation(path) == 1:
        mask = turned(mask, exif_orientation(files.images[index]))
    numbers = _class_numbers(mask, files)
    if (unknown := numbers > IGNORED).any():
        value, (row, column) = int(mask[unknown][0]), unknown.nonzero()[0].tolist()
        name = hexadecimal if files.in_colour else str
        allowed = ", ".join(name(known) for known in sorted(files.values)[:MAX_LISTED])
        more = ", …" if len(files.values) > MAX_LISTED else ""
        raise DatasetCorruptError(
            f"{path}: value {name(value)} at row {row}, column {column}, expected one of "
            f"{allowed}{more}"
        )
    return numbers.to(torch.uint8)


def _class_numbers(mask: Tensor, files: Files) -> Tensor:
    """Return class numbers, int16 H W; 256 marks values without a class."""
    if not files.in_colour:
        # Not uint8, which ends at 255.
        table = torch.full((DEPTH if mask.dtype != torch.uint8 else 256,), IGNORED + 1)
        for value, number in files.values.items():
            if value < len(table):
                table[value] = number
        return table.to(torch.int16)[mask.long()]
    keys = torch.tensor(sorted(files.values), dtype=torch.int32)
    numbers = torch.tensor([files.values[int(key)] for key in keys], dtype=torch.int16)
    place = torch.searchsorted(keys, mask.contiguous()).clamp(max=len(keys) - 1)
    return numbers[place].where(keys[place] == mask, IGNORED + 1)


def stream(
    files: Files,
    index_batches: Sequence[Tensor],
    preprocessing: Preprocessing,
    draws: Draws | None,
    workers: int,
) -> Iterator[Sample]:
    """Yield the images and targets of each batch of indices, shifted and mirrored by `draws`.

    Worker processes decode, crop and resize. Random numbers are counter-based, so the number of
    workers changes no pixel.
    """
    from torch.utils.data import DataLoader

    required_size = preprocessing.image_size if any(preprocessing.image_size) else None
    crop_draws = draws if crops_while_decoding(preprocessing, draws) else None
    size = preprocessing.resize_to if crop_draws is not None or required_size is None else None
    centers = preprocessing.crops and crop_draws is None
    center = preprocessing.center_cropped if centers else None
    decoder = Decoder(files, size, crop_draws, required_size, center, preprocessing.crops)
    loader: Iterable[Sample] = DataLoader(
        decoder,  # type: ignore[arg-type]
        batch_sampler=[indices.tolist() for indices in index_batches],
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=_init_worker,
        prefetch_factor=4 if workers else None,
    )
    for indices, samples in zip(index_batches, loader, strict=True):
        if draws is None or not (draws.augmentation.shift or draws.augmentation.flip):
            yield samples
        else:
            yield shifted(*samples, torch.arange(len(indices)), indices, draws)


def crops_while_decoding(preprocessing: Preprocessing, draws: Draws | None) -> bool:
    """Return whether workers apply the random crop to the original image, before resizing it.

    They do if images are resized anyway: the crop then keeps the original's detail.
    """
    cropped = draws is not None and bool(draws.augmentation.crop)
    resized = preprocessing.crops or preprocessing.image_size != preprocessing.resize_to
    return cropped and resized


def _stack(samples: list[Sample]) -> Sample:
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(targets)


def _init_worker(worker: int) -> None:
    """Limit a worker to one thread, and let it ignore signals.

    Ctrl-C goes to the whole process group. If it ended a worker, the parent would take that for a
    crash. The parent saves a checkpoint and then stops its workers itself.
    """
    torch.set_num_threads(1)  # the workers together already use all cores
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)


@dataclass
class BadSamples:
    """The error messages of files that cannot be decoded, and how many such files are allowed."""

    allowed: int = 0
    messages: list[str] = field(default_factory=list)

    def raise_if_too_many(self) -> None:
        """Raise DatasetCorruptError if there are more bad files than allowed."""
        count = len(self.messages)
        if count > self.allowed:
            listed = "; ".join(self.messages[:MAX_NAMED]) + ("; …" if count > MAX_NAMED else "")
            raise DatasetCorruptError(
                f"{counted(count, 'sample')} cannot be used: {listed}",
                f"fix them, or skip them: --on-bad-sample skip:{count}",
            )


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
    buffers, record = None, bad or BadSamples()
    usable: list[int] = []
    decoder = Decoder(files, size, None, required_size, center)
    for number, (image, target) in usable_samples(decoder, threads, record, progress):
        if buffers is None:
            buffers = tuple(part.new_empty((len(files), *part.shape)) for part in (image, target))
        if image.shape != buffers[0].shape[1:]:
            sizes = f"{_size(image)}, {_size(buffers[0])}"
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
    for number, sample in enumerate(_decode_all(decoder, threads, progress)):
        if isinstance(sample, DatasetCorruptError):
            bad.messages.append(sample.message)
        else:
            yield number, sample


def _decode_all(
    decoder: Decoder, threads: int, progress: Progress | None
) -> Iterator[Sample | DatasetCorruptError]:
    """Yield all samples in order, decoded by threads: Pillow releases the GIL."""
    # In blocks: `pool.map` submits everything at once, and decoded images would fill the memory.
    count, block = len(decoder), 64 * threads
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, block):
            yield from pool.map(partial(_decode, decoder), range(start, min(start + block, count)))
            if progress is not None:
                progress(min(start + block, count), count)


def _decode(decoder: Decoder, index: int) -> Sample | DatasetCorruptError:
    # Return the error, so that the other samples of the block are not lost.
    try:
        return decoder[index]
    except DatasetCorruptError as error:
        return error


def load_splits(
    dataset: Dataset,
    preprocessing: Preprocessing,
    pipeline: str = "auto",
    threads: int = 1,
    bad: BadSamples | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Decode every file of a dataset once; return the dataset, in memory unless it is streamed.

    `pipeline` is "memory", "streaming" or "auto", which streams more than IN_MEMORY bytes of
    images.

    Raises:
        UsageError: the dataset is to be streamed but has no files.
        DatasetCorruptError: there are more bad files than `bad` allows (by default none), no file
            can be decoded, or the sizes of images to keep in memory differ.
    """
    record = bad or BadSamples()
    on_disk = {n: s for n, s in dataset.splits.items() if isinstance(s, Files)}
    if pipeline == "streaming" and not on_disk:
        raise UsageError(f"dataset '{dataset.spec.name}' is in memory and cannot be streamed")
    channels, height, width = dataset.spec.image
    required_size = (height, width) if height else None
    size, center = None if required_size else preprocessing.resize_to, None
    # Small images are kept as they are: enlarged ones would only take more memory.
    if preprocessing.crops and (size or min(height, width) > preprocessing.resize):
        size, center = (preprocessing.resize, preprocessing.resize), preprocessing.center_square
    height, width = size or (height, width)
    # The total over all splits: they are in memory at the same time.
    total = sum(map(len, on_disk.values())) * channels * height * width
    streaming = pipeline == "streaming" or (pipeline == "auto" and total > IN_MEMORY)
    splits = dict(dataset.splits)
    for name, files in on_disk.items():
        if streaming:
            splits[name] = drop_bad_files(files, threads, record, progress, required_size)
        else:
            splits[name] = decode_to_memory(
                files,
                size,
                threads=threads,
                bad=record,
                progress=progress,
                required_size=required_size,
                center=center,
            )
    record.raise_if_too_many()  # after all splits, so that one error covers them all
    return replace(dataset, splits=splits)


def statistics(split: Split | Files) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and standard deviation of each channel, for images scaled to [0, 1].

    Of a channel that is nearly constant, the deviation is 1: noise must not be scaled up.
    From a split on disk, at most MAX_STATISTICS_FILES files are read, evenly spaced.
    """
    sums, squares, count = torch.zeros(0), torch.zeros(0), 0
    for images in _blocks(split):
        values = images.double().flatten(2) / 255
        total, square = values.sum((0, 2)), values.square().sum((0, 2))
        sums, squares = (total, square) if count == 0 else (sums + total, squares + square)
        count += len(images) * values.shape[2]
    mean = sums / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std < CONSTANT, 1.0, std)
    return tuple(_rounded(mean)), tuple(_rounded(std))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _blocks(split: Split | Files) -> Iterator[Tensor]:
    """Yield blocks of images, N C H W; from files, single images, because sizes may differ."""
    if isinstance(split, Split):
        pixels = split.images[0].numel()
        yield from split.images.split(max(BLOCK // pixels, 1))
        return
    step = -(-len(split) // MAX_STATISTICS_FILES)
    for path in split.images[::step]:
        yield read_pixels(path, split.channels, split.reading)[None]
