"""Splits on disk: decoded into memory at once, or by worker processes while training runs.

Before training every file is decoded once, whichever way it is read later. A broken file is thus
reported at the start, together with all others, instead of ending a run in its third hour. Bad
files that may be left out are dropped before the first epoch, so that all epochs and ranks see
the same samples under the same indices.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cnn_core.data.augment import IGNORED, Draws
from cnn_core.data.dataset import Dataset, Files, Split
from cnn_core.data.images import read_image, read_mask
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.windows import shifted
from cnn_core.errors import DatasetCorruptError, UsageError

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
]

IN_MEMORY = 2 * 2**30  # bytes of images that pipeline = "auto" keeps in memory
BLOCK = 4_000_000  # image values that `statistics` takes at once, to bound its memory
SHOWN = 5  # bad files that an error names
SAMPLE = 5000  # files that `statistics` reads at most, evenly spread

Sample = tuple[Tensor, Tensor]
Size = tuple[int, int]  # height, width
Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Decoder:
    """Read single samples of a split on disk: an image as uint8, C H W, and its target.

    Images are scaled to `size`, if given, and masks likewise without new values. With `draws`
    the random crop is cut first and then scaled. With `exact` every image must have that size.
    """

    files: Files
    size: Size | None
    draws: Draws | None = None
    exact: Size | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        path = self.files.images[index]
        image = read_image(path, self.files.channels)
        if self.exact is not None and tuple(image.shape[-2:]) != self.exact:
            expected = "x".join(map(str, self.exact))
            raise DatasetCorruptError(f"{path}: {_size(image)} pixels, expected {expected}")
        if isinstance(self.files.targets, Tensor):
            return self._resize(self._crop(image, index)), self.files.targets[index]
        mask = _read_classes(self.files, index)
        if mask.shape != image.shape[1:]:
            raise DatasetCorruptError(
                f"{self.files.targets[index]}: mask is {_size(mask)}, its image is {_size(image)}"
            )
        return self._resize(self._crop(image, index)), self._resize_mask(self._crop(mask, index))

    def _crop(self, image: Tensor, index: int) -> Tensor:
        """Return the random crop of an image, … H W, rounded to whole pixels."""
        if self.draws is None:
            return image
        height, width = image.shape[-2:]
        box = self.draws.crop_boxes(np.array([index]))[0].tolist()
        tall, wide = max(round(box[2] * height), 1), max(round(box[3] * width), 1)
        top, left = min(round(box[0] * height), height - tall), round(box[1] * width)
        left = min(left, width - wide)
        # An image that will be mirrored gets the mirrored box: in memory, mirroring comes first.
        if self.draws.shifts(np.array([index])).flipped[0]:
            left = width - wide - left
        return image[..., top : top + tall, left : left + wide]

    def _resize(self, image: Tensor) -> Tensor:
        if self.size is None or image.shape[-2:] == self.size:
            return image
        scaled = F.interpolate(image[None].float(), self.size, mode="bilinear", antialias=True)
        return scaled[0].round().clamp(0, 255).to(torch.uint8)

    def _resize_mask(self, mask: Tensor) -> Tensor:
        if self.size is None or mask.shape == self.size:
            return mask
        scaled = F.interpolate(mask[None, None].float(), self.size, mode="nearest-exact")
        return scaled[0, 0].to(torch.uint8)


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"


def _read_classes(files: Files, index: int) -> Tensor:
    """Return a mask with its values replaced by class numbers, uint8, H W."""
    path = files.targets[index]
    assert not isinstance(path, Tensor)
    mask = read_mask(path)
    # int16, so that 256 can mark a value without a class: all of uint8 is in use.
    table = torch.full((256,), IGNORED + 1, dtype=torch.int16)
    for value, number in files.values.items():
        table[value] = number
    numbers = table[mask.long()]
    if (wrong := numbers > IGNORED).any():
        value, (row, column) = int(mask[wrong][0]), wrong.nonzero()[0].tolist()
        allowed = ", ".join(map(str, sorted(files.values)))
        raise DatasetCorruptError(
            f"{path}: value {value} at row {row}, column {column}, expected one of {allowed}"
        )
    return numbers.to(torch.uint8)


def stream(
    files: Files,
    parts: Sequence[Tensor],
    preprocessing: Preprocessing,
    draws: Draws | None,
    workers: int,
) -> Iterator[Sample]:
    """Yield images and targets of each part, decoded by worker processes, shifted and mirrored.

    Workers decode, crop and scale. Random numbers are counter-based, so the number of workers
    cannot change a pixel.
    """
    from torch.utils.data import DataLoader

    exact = preprocessing.image_size if any(preprocessing.image_size) else None
    cropping = draws if crops_while_decoding(preprocessing, draws) else None
    size = preprocessing.resize_to if cropping is not None or exact is None else None
    loader: Iterable[Sample] = DataLoader(
        Decoder(files, size, cropping, exact),  # type: ignore[arg-type]
        batch_sampler=[part.tolist() for part in parts],
        num_workers=workers,
        collate_fn=_stack,
        worker_init_fn=_init_worker,
        prefetch_factor=4 if workers else None,
    )
    for part, samples in zip(parts, loader, strict=True):
        if draws is None or not (draws.augmentation.shift or draws.augmentation.flip):
            yield samples
        else:
            yield shifted(*samples, torch.arange(len(part)), part, draws)


def crops_while_decoding(preprocessing: Preprocessing, draws: Draws | None) -> bool:
    """Return whether workers cut the random crop from the original, before scaling it.

    They do where images are scaled anyway: the crop then keeps the original's detail.
    """
    cropped = draws is not None and bool(draws.augmentation.crop)
    return cropped and preprocessing.image_size != preprocessing.resize_to


def _stack(samples: list[Sample]) -> Sample:
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(targets)


def _init_worker(worker: int) -> None:
    """Give a worker one thread, and leave signals to the parent.

    Ctrl-C goes to the whole process group. A worker that it ended would look like a crash to the
    parent, which is about to save a checkpoint and then stops its workers itself.
    """
    torch.set_num_threads(1)  # workers already fill the cores
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)


@dataclass
class BadSamples:
    """Files that cannot be decoded: a message for each, and how many may be left out."""

    allowed: int = 0
    found: list[str] = field(default_factory=list)

    def require_few(self) -> None:
        """Raise DatasetCorruptError if there are more bad files than allowed."""
        if len(self.found) > self.allowed:
            shown = "; ".join(self.found[:SHOWN]) + ("; …" if len(self.found) > SHOWN else "")
            raise DatasetCorruptError(
                f"{len(self.found)} samples cannot be used: {shown}",
                f"fix them, or leave them out: --on-bad-sample skip:{len(self.found)}",
            )


def decode_to_memory(
    files: Files,
    size: Size | None,
    threads: int = 1,
    bad: BadSamples | None = None,
    progress: Progress | None = None,
    exact: Size | None = None,
) -> Split:
    """Decode all files into one tensor, scaled to `size`; without it, all must have one size.

    Raises:
        DatasetCorruptError: a file cannot be decoded and there is no `bad` to record it, or no
            file can be decoded, or sizes differ.
    """
    # Allocated once the first sample shows the shapes: stacking a list would need twice the room.
    room, count, record = None, 0, bad or BadSamples()
    decoder = Decoder(files, size, None, exact)
    for _, (image, target) in _usable(decoder, threads, record, progress):
        if room is None:
            room = tuple(part.new_empty((len(files), *part.shape)) for part in (image, target))
        if image.shape != room[0].shape[1:]:
            raise DatasetCorruptError(f"images differ in size: {_size(image)}, {_size(room[0])}")
        room[0][count], room[1][count] = image, target
        count += 1
    if bad is None or room is None:
        record.require_few()
    if room is None:
        raise DatasetCorruptError("no sample can be decoded")
    return Split(room[0][:count], room[1][:count])


def drop_bad_files(
    files: Files,
    threads: int = 1,
    bad: BadSamples | None = None,
    progress: Progress | None = None,
    exact: Size | None = None,
) -> Files:
    """Decode every file once, discard the pixels, and return the split without the bad files.

    Raises:
        DatasetCorruptError: a file cannot be decoded and there is no `bad` to record it.
    """
    record = bad or BadSamples()
    decoder = Decoder(files, None, None, exact)
    kept = [number for number, _ in _usable(decoder, threads, record, progress)]
    if bad is None:
        record.require_few()
    return files.subset(torch.tensor(kept, dtype=torch.int64))


def _usable(
    decoder: Decoder, threads: int, bad: BadSamples, progress: Progress | None
) -> Iterator[tuple[int, Sample]]:
    """Yield the samples that can be decoded, with their indices; record the others in `bad`."""
    for number, sample in enumerate(_decode_all(decoder, threads, progress)):
        if isinstance(sample, DatasetCorruptError):
            bad.found.append(sample.message)
        else:
            yield number, sample


def _decode_all(
    decoder: Decoder, threads: int, progress: Progress | None
) -> Iterator[Sample | DatasetCorruptError]:
    """Decode all samples in order, in threads: Pillow releases the interpreter lock."""
    # In blocks: `pool.map` starts all its work at once, and decoded images would pile up.
    count, block = len(decoder), 64 * threads
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, block):
            yield from pool.map(partial(_decode, decoder), range(start, min(start + block, count)))
            if progress is not None:
                progress(min(start + block, count), count)


def _decode(decoder: Decoder, index: int) -> Sample | DatasetCorruptError:
    # Returned, not raised: the other samples of the block are still wanted.
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
    """Check the files of a dataset and return it, decoded into memory if the pipeline asks for it.

    `pipeline` is "memory", "streaming" or "auto": memory up to IN_MEMORY bytes of images.

    Raises:
        UsageError: streaming a dataset that has no files.
        DatasetCorruptError: there are more bad files than `bad` allows.
    """
    record = bad or BadSamples()
    on_disk = {n: s for n, s in dataset.splits.items() if isinstance(s, Files)}
    if pipeline == "streaming" and not on_disk:
        raise UsageError(f"dataset '{dataset.spec.name}' is in memory and cannot be streamed")
    channels, height, width = dataset.spec.image
    exact = (height, width) if height else None
    size = None if exact else preprocessing.resize_to
    height, width = size or (height, width)
    # All splits together: they are in memory at the same time.
    total = sum(map(len, on_disk.values())) * channels * height * width
    streaming = pipeline == "streaming" or (pipeline == "auto" and total > IN_MEMORY)
    splits = dict(dataset.splits)
    for name, files in on_disk.items():
        if streaming:
            splits[name] = drop_bad_files(files, threads, record, progress, exact)
        else:
            splits[name] = decode_to_memory(
                files, size, threads=threads, bad=record, progress=progress, exact=exact
            )
    record.require_few()  # of all splits at once, so that one run reports every bad file
    return Dataset(dataset.spec, splits)


def statistics(split: Split | Files) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of images in [0, 1].

    Of a split on disk, at most SAMPLE files are read, evenly spread.
    """
    sums, squares, count = torch.zeros(0), torch.zeros(0), 0
    for images in _blocks(split):
        values = images.double().flatten(2) / 255
        total, square = values.sum((0, 2)), values.square().sum((0, 2))
        sums, squares = (total, square) if count == 0 else (sums + total, squares + square)
        count += len(images) * values.shape[2]
    mean = sums / count
    std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
    return tuple(_rounded(mean)), tuple(_rounded(std))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _blocks(split: Split | Files) -> Iterator[Tensor]:
    """Yield blocks of images, N C H W; single ones from files, which may differ in size."""
    if isinstance(split, Split):
        pixels = split.images[0].numel()
        yield from split.images.split(max(BLOCK // pixels, 1))
        return
    step = -(-len(split) // SAMPLE)
    for path in split.images[::step]:
        yield read_image(path, split.channels)[None]
