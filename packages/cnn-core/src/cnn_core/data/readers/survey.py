"""Read the headers of many images, to tell what a dataset is like without decoding it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from cnn_core.data.headers import image_facts
from cnn_core.data.images import open_image, read_image
from cnn_core.data.pixels import UINT16, Reading, has_alpha
from cnn_core.data.progress_bar import progress_bar
from cnn_core.data.readers.value_ranges import Ranges, ranges_of
from cnn_core.data.splits import Files
from cnn_core.errors import DatasetCorruptError
from cnn_core.text import counted, printable

__all__ = ["ImageSurvey", "image_type", "survey_images"]

MAX_DECODED = 20  # images with transparency that are looked at
PARALLEL = 20_000  # files from which worker processes save time
PART = 1000  # files that a worker reads at a time
MAX_WORKERS = 16  # more would wait for the disk
CLEAR = 8  # alpha below this, of 255, is not seen
NEARLY_ALL = 0.99  # of the pixels
VARIED = 16  # difference of grey levels under transparent parts that is no flat colour


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
    turned: int = 0
    deep: list[Path] = dataclasses.field(default_factory=list)  # of more than 8 bits
    sixteen: set[Path] = dataclasses.field(default_factory=set)  # of those, of 16 bits
    clear: list[Path] = dataclasses.field(default_factory=list)  # with transparency
    groups: dict[str, list[Path]] = dataclasses.field(default_factory=dict)  # of more than 8 bits
    looked_at: dict[tuple[bool, bool], Ranges] = dataclasses.field(default_factory=dict)
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

    def grouped(self, splits: Mapping[str, Files], classes: Sequence[str]) -> ImageSurvey:
        """Group the images of more than 8 bits by split and class, and return this survey."""
        wanted = set(self.deep)
        for split, files in splits.items() if wanted else ():
            targets = files.targets
            numbers: list[int] = [-1] * len(files)
            if isinstance(targets, Tensor) and targets.ndim == 1:
                numbers = targets.tolist()
            for path, number in zip(files.images, numbers, strict=True):
                names = [f"split '{split}'"] if len(splits) > 1 or number < 0 else []
                names += [f"class '{printable(classes[number])}'"] if number >= 0 else []
                if path in wanted:
                    self.groups.setdefault(", ".join(names), []).append(path)
        return self

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
        if self.clear:
            how = f"are shown on {reading.alpha_background}"
            if reading.alpha_background == "drop":
                how = "show their hidden colours"
            lines.append(
                f"{len(self.clear):,} {of} may have transparent parts, which {how} "
                "(alpha_background)"
            )
        if self.deep:
            low, high = reading.value_range or UINT16
            deep = counted(len(self.deep), f"{of} has", f"{of} have")
            lines.append(
                f"{deep} more than 8 bits per channel: {low:g} to {high:g} becomes 0 to 255 "
                "(value_range)"
            )
        notes, faults = self._ranges(reading).different()
        # With a declared range, images with a part of it may be meant to be dark.
        return [*lines, *notes, *(faults if reading.value_range else ())]

    def faults(self, reading: Reading, every: bool = False) -> list[str]:
        """Return lines on parts of images that are not read, and on ranges that are too wide.

        They are from some of the images with transparency and of 16 bits, or from `every` one.
        """
        found = [*self.unread(), *self._hidden(reading, every)]
        if reading.value_range:
            return found
        ranges = self._ranges(reading, every)
        colour = self.channels > 1 and any(path.suffix.lower() != ".npy" for path in self.sixteen)
        return [*found, *ranges.unused(colour), *ranges.different()[1]]

    def _ranges(self, reading: Reading, every: bool = False) -> Ranges:
        """Return the ranges of values; without a declared range, those of 16-bit images."""
        key = (every, bool(reading.value_range))
        if key not in self.looked_at:
            groups = self.groups or {"": self.deep}
            if not reading.value_range:  # others are an error
                groups = {name: [p for p in g if p in self.sixteen] for name, g in groups.items()}
            self.looked_at[key] = ranges_of(groups, every)
        return self.looked_at[key]

    def _hidden(self, reading: Reading, every: bool) -> list[str]:
        """Return a line on images that show nothing but the colour behind transparent parts."""
        if reading.alpha_background == "drop":
            return []
        seen = self.clear if every else self.clear[:: -(-len(self.clear) // MAX_DECODED) or 1]
        hidden = []
        for path in seen:
            # Broken files are reported when all are decoded.
            with contextlib.suppress(DatasetCorruptError):
                hidden += [path] * _is_hidden(path)
        if not hidden:
            return []
        of = f"of {len(seen):,} images"
        count = counted(len(hidden), f"{of} is", f"{of} are")
        return [
            f"{count} transparent nearly everywhere, such as {hidden[0]}: only "
            f'{reading.alpha_background} is seen there; alpha_background = "drop" shows the '
            "colours"
        ]

    def unread(self) -> list[str]:
        """Return a line for each kind of part that is not read, such as pages."""
        return [
            f"left out: {what}, in {counted(count, 'image')}, such as {path}"
            for what, (count, path) in self.lost.items()
        ]

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
        self.clear += [path] * facts.alpha
        self.deep += [path] * facts.deep
        self.sixteen |= {path} if facts.sixteen else set()
        self.turned += facts.turned
        if facts.lost:
            self._lose(facts.lost, 1, path)

    def join(self, other: ImageSurvey) -> None:
        """Take the images of another survey into account, which come after those of this one."""
        self.kinds = other.kinds | self.kinds
        self.sizes |= other.sizes
        self.broken |= other.broken
        self.sixteen |= other.sixteen
        self.deep += other.deep
        self.clear += other.clear
        for name in ("not_square", "total", "turned"):
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


def _is_hidden(path: Path) -> bool:
    """Return whether an image has colours, but nearly all of them in transparent parts.

    Raises:
        DatasetCorruptError: as for `read_image`.
    """
    with open_image(path) as image:
        if not isinstance(image, Image.Image) or not has_alpha(image):
            return False
        pixels = np.asarray(image.convert("RGBA"))
    clear = pixels[..., 3] < CLEAR
    if clear.mean() < NEARLY_ALL:
        return False
    colours = pixels[clear][:, :3]
    return bool((colours.max(0).astype(int) - colours.min(0) >= VARIED).any())


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
