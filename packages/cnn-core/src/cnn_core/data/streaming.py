"""Splits on disk: decoded when needed by workers, or all at once into memory."""

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
    "cuts_on_disk",
    "in_memory",
    "place",
    "sound",
    "statistics",
    "stream",
]

IN_MEMORY = 2 * 2**30  # bytes of images that are kept in memory, where the choice is ours
BLOCK = 4_000_000  # values whose mean is taken at once
SHOWN = 5  # bad files that an error names
SAMPLE = 5000  # files that means and deviations are computed of, evenly spread

Sample = tuple[Tensor, Tensor]
Progress = Callable[[int, int], None]  # done, of


@dataclass(frozen=True)
class Decoder:
    """Reads one sample of a split on disk: an image as uint8, C H W, and its target.

    Images that are not of one size are scaled to `size`, masks without new values; with
    `draws` what is scaled is the window that those cut. With `exact` all have to be of that size.
    """

    files: Files
    size: tuple[int, int] | None
    draws: Draws | None = None
    exact: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        path = self.files.images[index]
        picture = read_image(path, self.files.channels)
        if self.exact is not None and tuple(picture.shape[-2:]) != self.exact:
            expected = "x".join(map(str, self.exact))
            raise DatasetCorruptError(f"{path}: {_by(picture)} pixels, expected {expected}")
        if isinstance(self.files.targets, Tensor):
            return self._fitted(self._cut(picture, index)), self.files.targets[index]
        mask = _numbered(self.files, index)
        if mask.shape != picture.shape[1:]:
            raise DatasetCorruptError(
                f"{self.files.targets[index]}: mask of {_by(mask)}, its image has {_by(picture)}"
            )
        return self._fitted(self._cut(picture, index)), self._fitted_mask(self._cut(mask, index))

    def _cut(self, image: Tensor, index: int) -> Tensor:
        """Return the window of an image, ... H W, to whole pixels."""
        if self.draws is None:
            return image
        height, width = image.shape[-2:]
        box = self.draws.boxes(np.array([index]))[0].tolist()
        tall, wide = max(round(box[2] * height), 1), max(round(box[3] * width), 1)
        top, left = min(round(box[0] * height), height - tall), round(box[1] * width)
        left = min(left, width - wide)
        if self.draws.windows(np.array([index]))[2][0]:  # what is mirrored later is cut mirrored
            left = width - wide - left
        return image[..., top : top + tall, left : left + wide]

    def _fitted(self, picture: Tensor) -> Tensor:
        if self.size is None or picture.shape[-2:] == self.size:
            return picture
        scaled = F.interpolate(picture[None].float(), self.size, mode="bilinear", antialias=True)
        return scaled[0].round().clamp(0, 255).to(torch.uint8)

    def _fitted_mask(self, mask: Tensor) -> Tensor:
        if self.size is None or mask.shape == self.size:
            return mask
        scaled = F.interpolate(mask[None, None].float(), self.size, mode="nearest-exact")
        return scaled[0, 0].to(torch.uint8)


def _by(image: Tensor) -> str:
    return f"{image.shape[-2]}x{image.shape[-1]}"


def _numbered(files: Files, index: int) -> Tensor:
    """Return a mask with class numbers for its values."""
    path = files.targets[index]
    assert not isinstance(path, Tensor)
    mask = read_mask(path)
    table = torch.full((256,), IGNORED + 1, dtype=torch.int16)
    for value, number in files.values.items():
        table[value] = number
    numbered = table[mask.long()]
    if (wrong := numbered > IGNORED).any():
        value, (row, column) = int(mask[wrong][0]), wrong.nonzero()[0].tolist()
        allowed = ", ".join(map(str, sorted(files.values)))
        raise DatasetCorruptError(
            f"{path}: value {value} at row {row}, column {column}, expected one of {allowed}"
        )
    return numbered.to(torch.uint8)


def stream(
    files: Files,
    parts: Sequence[Tensor],
    preprocessing: Preprocessing,
    draws: Draws | None,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and targets of each part, decoded by worker processes, moved and mirrored.

    Workers decode, cut and scale; draws are counted, so their number cannot change a pixel.
    """
    from torch.utils.data import DataLoader

    exact = preprocessing.image_size if any(preprocessing.image_size) else None
    cut = draws if cuts_on_disk(preprocessing, draws) else None
    size = preprocessing.target if cut is not None or exact is None else None
    loader: Iterable[Sample] = DataLoader(
        Decoder(files, size, cut, exact),  # type: ignore[arg-type]
        batch_sampler=[part.tolist() for part in parts],
        num_workers=workers,
        collate_fn=_stacked,
        worker_init_fn=_one_thread,
        prefetch_factor=4 if workers else None,
    )
    for part, taken in zip(parts, loader, strict=True):
        if draws is None or not (draws.what.shift or draws.what.flip):
            yield taken
        else:
            yield shifted(*taken, torch.arange(len(part)), part, draws)


def cuts_on_disk(preprocessing: Preprocessing, draws: Draws | None) -> bool:
    """Whether a random crop is cut before an image is scaled: where it is scaled at all."""
    cropped = draws is not None and bool(draws.what.crop)
    return cropped and preprocessing.image_size != preprocessing.target


def _stacked(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    pictures, targets = zip(*samples, strict=True)
    return torch.stack(pictures), torch.stack(targets)


def _one_thread(worker: int) -> None:
    """Begin a worker: one thread, deaf to signals to the whole group, which are the parent's."""
    torch.set_num_threads(1)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)


@dataclass
class BadSamples:
    """Files that cannot be used: how many may be left out, and those that were found."""

    allowed: int = 0
    found: list[str] = field(default_factory=list)

    def require_few(self) -> None:
        """Raise DatasetCorruptError if more were found than may be left out."""
        if len(self.found) > self.allowed:
            shown = "; ".join(self.found[:SHOWN]) + ("; …" if len(self.found) > SHOWN else "")
            raise DatasetCorruptError(
                f"{len(self.found)} samples cannot be used: {shown}",
                f"fix them, or leave them out: --on-bad-sample skip:{len(self.found)}",
            )


def in_memory(
    files: Files,
    size: tuple[int, int] | None,
    threads: int = 1,
    bad: BadSamples | None = None,
    progress: Progress | None = None,
    exact: tuple[int, int] | None = None,
) -> Split:
    """Decode all files into one tensor, scaled to `size`; without one they have to be alike.

    Raises:
        DatasetCorruptError: a file cannot be used, unless `bad` is there to note it.
    """
    room, count, noted = None, 0, bad or BadSamples()
    decoder = Decoder(files, size, None, exact)
    for _, (picture, target) in _decoded(decoder, threads, noted, progress):
        if room is None:
            room = tuple(part.new_empty((len(files), *part.shape)) for part in (picture, target))
        if picture.shape != room[0].shape[1:]:
            raise DatasetCorruptError(f"images of {_by(picture)} and of {_by(room[0])}")
        room[0][count], room[1][count] = picture, target
        count += 1
    if bad is None or room is None:
        noted.require_few()
    if room is None:
        raise DatasetCorruptError("no sample can be used")
    return Split(room[0][:count], room[1][:count])


def sound(
    files: Files,
    threads: int = 1,
    bad: BadSamples | None = None,
    progress: Progress | None = None,
    exact: tuple[int, int] | None = None,
) -> Files:
    """Decode every file once, keeping nothing; return the split without those that are bad.

    Raises:
        DatasetCorruptError: a file cannot be used, unless `bad` is there to note it.
    """
    noted = bad or BadSamples()
    kept = [n for n, _ in _decoded(Decoder(files, None, None, exact), threads, noted, progress)]
    if bad is None:
        noted.require_few()
    return files.subset(torch.tensor(kept, dtype=torch.int64))


def _decoded(
    decoder: Decoder, threads: int, bad: BadSamples, progress: Progress | None
) -> Iterator[tuple[int, Sample]]:
    """Yield the samples that can be used, with their places; note the others."""
    for number, sample in enumerate(_tried(decoder, threads, progress)):
        if isinstance(sample, DatasetCorruptError):
            bad.found.append(sample.message)
        else:
            yield number, sample


def _tried(
    decoder: Decoder, threads: int, progress: Progress | None
) -> Iterator[Sample | DatasetCorruptError]:
    """Decode in order, several at once: Pillow works outside of Python's lock."""
    count, block = len(decoder), 64 * threads  # so that no more than that waits
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, block):
            yield from pool.map(partial(_try, decoder), range(start, min(start + block, count)))
            if progress is not None:
                progress(min(start + block, count), count)


def _try(decoder: Decoder, index: int) -> Sample | DatasetCorruptError:
    try:
        return decoder[index]
    except DatasetCorruptError as error:
        return error


def place(
    dataset: Dataset,
    preprocessing: Preprocessing,
    pipeline: str = "auto",
    threads: int = 1,
    bad: BadSamples | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Return the dataset with its files decoded into memory, where they fit or that is wanted.

    `pipeline` is "memory", "streaming" or "auto": memory up to IN_MEMORY bytes of images. Every
    file is decoded once either way: what is wrong is found here, not in the middle of training.

    Raises:
        UsageError: a dataset that is in memory cannot be streamed.
        DatasetCorruptError: more files cannot be used than may be left out.
    """
    noted = bad or BadSamples()
    on_disk = {n: s for n, s in dataset.splits.items() if isinstance(s, Files)}
    if pipeline == "streaming" and not on_disk:
        raise UsageError(f"dataset '{dataset.spec.name}' is in memory: it cannot be streamed")
    channels, height, width = dataset.spec.image
    exact = (height, width) if height else None
    size = None if exact else preprocessing.target
    height, width = size or (height, width)
    total = sum(map(len, on_disk.values())) * channels * height * width
    splits = dict(dataset.splits)
    for name, files in on_disk.items():
        if pipeline == "streaming" or (pipeline == "auto" and total > IN_MEMORY):
            splits[name] = sound(files, threads, noted, progress, exact)
        else:
            splits[name] = in_memory(files, size, threads, noted, progress, exact)
    noted.require_few()
    return Dataset(dataset.spec, splits)


def statistics(split: Split | Files) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of images in [0, 1].

    Of files that differ in size, or are many, of up to SAMPLE of them, evenly spread.
    """
    sums, squares, count = torch.zeros(0), torch.zeros(0), 0
    for pictures in _pictures(split):
        values = pictures.double().flatten(2) / 255
        total, square = values.sum((0, 2)), values.square().sum((0, 2))
        sums, squares = (total, square) if count == 0 else (sums + total, squares + square)
        count += len(pictures) * values.shape[2]
    mean = sums / count
    std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
    return tuple(_rounded(mean)), tuple(_rounded(std))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _pictures(split: Split | Files) -> Iterator[Tensor]:
    if isinstance(split, Split):
        pixels = split.images[0].numel()
        yield from split.images.split(max(BLOCK // pixels, 1))
        return
    step = -(-len(split) // SAMPLE)
    for path in split.images[::step]:
        yield read_image(path, split.channels)[None]
