"""Read the headers of many images, to tell what a dataset is like without decoding it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cnn_core.data.images import image_facts, read_image, value_bounds
from cnn_core.data.pixels import UINT16, Reading
from cnn_core.data.progress_bar import progress_bar
from cnn_core.errors import DatasetCorruptError
from cnn_core.text import counted

__all__ = ["ImageSurvey", "image_type", "survey_images"]

MAX_DECODED = 20  # images of more than 8 bits whose values are looked at
PARALLEL = 20_000  # files from which worker processes save time
PART = 1000  # files that a worker reads at a time
MAX_WORKERS = 16  # more would wait for the disk


@dataclasses.dataclass
class ImageSurvey:
    """What the headers of all images say.

    `kinds` are the numbers of channels, each with an image that has it. `broken` are images whose
    header cannot be read, or that are cut off, with the errors.
    """

    kinds: dict[int, Path] = dataclasses.field(default_factory=dict)
    sizes: set[tuple[int, int]] = dataclasses.field(default_factory=set)
    broken: dict[Path, str] = dataclasses.field(default_factory=dict)
    not_square: int = 0
    total: int = 0
    alpha: int = 0
    turned: int = 0
    deep: int = 0
    sixteen: list[Path] = dataclasses.field(default_factory=list)  # of those, of 16 bits
    lost: dict[str, tuple[int, Path]] = dataclasses.field(default_factory=dict)

    @property
    def channels(self) -> int:
        """The number of channels of a dataset of these images.

        Raises:
            DatasetCorruptError: arrays differ in their channels.
        """
        return _channels(self.kinds or {3: Path()})

    @property
    def size(self) -> tuple[int, int]:
        """The (height, width) of all images, or (0, 0) if they differ."""
        return next(iter(self.sizes)) if len(self.sizes) == 1 else (0, 0)

    @property
    def oblong(self) -> int:
        """The number of images that are not square; 0 if all have one size.

        Of those, training says what becomes of their shape.
        """
        return self.not_square if len(self.sizes) > 1 else 0

    def notes(self, reading: Reading) -> list[str]:
        """Return lines on how images are read."""
        lines, of = [], f"of {self.total:,} images"
        if self.turned:
            one, many = f"{of} is turned upright, as its", f"{of} are turned upright, as their"
            lines.append(f"{counted(self.turned, one, many)} EXIF data say")
        if self.oblong:
            lines.append(
                f"{counted(self.oblong, f'{of} is', f'{of} are')} not square, and sizes differ: "
                "all are squashed to a square, unless fit = crop or tile"
            )
        if self.alpha:
            how = f"are shown on {reading.alpha_background}"
            if reading.alpha_background == "drop":
                how = "show their hidden colours"
            lines.append(
                f"{self.alpha:,} {of} may have transparent parts, which {how} (alpha_background)"
            )
        if self.deep:
            low, high = reading.value_range or UINT16
            lines.append(
                f"{counted(self.deep, f'{of} has', f'{of} have')} more than 8 bits per channel: "
                f"{low:g} to {high:g} becomes 0 to 255 (value_range)"
            )
        return lines

    def faults(self, reading: Reading) -> list[str]:
        """Return lines on parts of images that are not read, and on a range that is too wide."""
        return [*self.unread(), *(() if reading.value_range else self._unused_range())]

    def unread(self) -> list[str]:
        """Return a line for each kind of part that is not read, such as pages."""
        return [
            f"left out: {what}, in {counted(count, 'image')}, such as {path}"
            for what, (count, path) in self.lost.items()
        ]

    def _unused_range(self) -> Iterator[str]:
        """Yield a line if 16-bit images hold values of fewer bits, as of a camera with 12."""
        seen = self.sixteen[:: -(-len(self.sixteen) // MAX_DECODED) or 1]
        highest = 0.0
        for path in seen:
            # Broken files are reported when all are decoded.
            with contextlib.suppress(DatasetCorruptError):
                highest = max(highest, value_bounds(path)[1])
        if 0 < highest < UINT16[1] / 4:
            bits = int(highest).bit_length()
            yield (
                f"values up to {highest:g} in {counted(len(seen), 'image')}, read as 0 to 65535, "
                f"become very dark: value_range = [0, {2**bits - 1}] may be meant"
            )

    def add(self, path: Path) -> None:
        """Take an image into account."""
        self.total += 1
        try:
            facts = image_facts(path)
            if not facts.whole:
                read_image(path, facts.channels)
        except DatasetCorruptError as error:
            self.broken[path] = error.message
            return
        self.kinds.setdefault(facts.channels, path)
        self.sizes.add(facts.size)
        self.not_square += facts.size[0] != facts.size[1]
        self.alpha += facts.alpha
        self.deep += facts.deep
        self.sixteen += [path] * (facts.mode == "uint16" or facts.mode.startswith("I;16"))
        self.turned += facts.turned
        if facts.lost:
            self._lose(facts.lost, 1, path)

    def join(self, other: ImageSurvey) -> None:
        """Take the images of another survey into account, which come after those of this one."""
        self.kinds = other.kinds | self.kinds
        self.sizes |= other.sizes
        self.broken |= other.broken
        self.sixteen += other.sixteen
        for name in ("not_square", "total", "alpha", "turned", "deep"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for what, (count, path) in other.lost.items():
            self._lose(what, count, path)

    def _lose(self, what: str, count: int, path: Path) -> None:
        before, first = self.lost.get(what, (0, path))
        self.lost[what] = (before + count, first)


def survey_images(paths: Iterable[Path]) -> ImageSurvey:
    """Return what the headers of all images say.

    Many files are read by worker processes, with a progress bar on a terminal.
    """
    result, listed = ImageSurvey(), list(paths)
    if len(listed) < PARALLEL:
        for path in listed:
            result.add(path)
        return result
    from torch.utils.data import DataLoader

    parts = _Parts([listed[start : start + PART] for start in range(0, len(listed), PART)])
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    loader: Iterable[ImageSurvey] = DataLoader(parts, batch_size=None, num_workers=workers)  # type: ignore[arg-type]
    with progress_bar("reading headers", sys.stderr.isatty()) as progress:
        for number, part in enumerate(loader, 1):
            result.join(part)
            if progress is not None:
                progress(min(number * PART, len(listed)), len(listed))
    return result


@dataclasses.dataclass
class _Parts:
    """The surveys of parts of a list of images."""

    parts: Sequence[Sequence[Path]]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> ImageSurvey:
        result = ImageSurvey()
        for path in self.parts[number]:
            result.add(path)
        return result


def _channels(found: Mapping[int, Path]) -> int:
    """Return the number of channels of a dataset with these numbers of channels."""
    if len(found) == 1:
        return next(iter(found))
    # One colour image makes the dataset RGB: grey images can be read as RGB without loss.
    if found.keys() <= {1, 3, 4}:
        return 3
    first, second = sorted(found)[:2]
    raise DatasetCorruptError(
        f"{found[second]}: {second} channels, but {found[first]} has {first}"
    )


def image_type(paths: Iterable[Path]) -> tuple[int, tuple[int, int]]:
    """Return the number of channels and the (height, width), which is (0, 0) if sizes differ.

    Files that cannot be read are skipped: all of them are reported later, when each is decoded.
    """
    found = survey_images(paths)
    return found.channels, found.size
