"""Write a draft of dataset.toml from what is in the folders, for the user to complete."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.data.dataset import Dataset
from cnn_core.data.mask_image import hexadecimal
from cnn_core.data.readers.description import FILE, Description, MaskValue, as_value
from cnn_core.data.readers.mask_classes import classes_of
from cnn_core.data.readers.mask_pairs import Layout, find_pairs
from cnn_core.data.readers.mask_survey import (
    Survey,
    require_classes,
    require_edges,
    require_sharp,
    require_unmixed,
    require_wide,
    survey,
)
from cnn_core.data.readers.masks import faults_of, fits_as_stored, require_turned
from cnn_core.data.readers.survey import survey_images
from cnn_core.errors import UsageError
from cnn_core.text import counted, printable

__all__ = ["draft_of_classes", "draft_of_masks", "read_names"]

ROWS = (  # a line of names with colours: "R G B NAME", "NAME,R,G,B", "#rrggbb NAME"
    re.compile(r"(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})[\s,;]+(?P<name>\S.*)"),
    re.compile(r"(?P<name>.*\S)[\s,;]+(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})"),
    re.compile(r"(?P<hex>#[0-9a-fA-F]{6})[\s,;]+(?P<name>\S.*)"),
)
HEADER = re.compile(r"name\W+r\W+g\W+b", re.IGNORECASE)


def read_names(path: Path) -> tuple[list[str], dict[MaskValue, str]]:
    """Return names, one per line, and their colours, if any: "R G B NAME" or the like.

    Raises:
        UsageError: there is no such file, it has no lines, or some lines have a colour.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    lines = [line for line in lines if line and not HEADER.fullmatch(line)]
    rows = [next(filter(None, (row.fullmatch(line) for row in ROWS)), None) for line in lines]
    coloured = [row for row in rows if row is not None]
    if not lines or len(coloured) not in (0, len(lines)):
        raise UsageError(f"{path}: expected a name, or a colour and a name, in every line")
    names = [row["name"].strip() for row in coloured] or lines
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{path}: '{printable(twice[0])}' occurs twice")
    return names, {_colour(row): row["name"].strip() for row in coloured}


def _colour(row: re.Match[str]) -> str:
    groups = row.groupdict()
    if groups.get("hex"):
        return groups["hex"].lower()
    red, green, blue = (min(int(groups[key]), 255) for key in "rgb")
    return f"#{red:02x}{green:02x}{blue:02x}"


def draft_of_masks(
    root: Path,
    *,
    names: Path | None = None,
    ignore: Sequence[str] = (),
    threshold: int = 0,
    turn_masks: bool | None = None,
    colours: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """Return dataset.toml for a folder of images and masks, and the faults of the dataset.

    The draft is checked against all masks.

    `names` is a file of names; `ignore` are the values of ignored pixels. `colours` reads
    masks with a palette by colour.

    Raises:
        DatasetCorruptError: as when the data is loaded.
        UsageError: there is no such folder, or the names or the ignored values do not fit.
    """
    empty = Description(path=root / FILE, turn_masks=turn_masks)
    layout = find_pairs(root, empty)
    if turn_masks is None:
        turn_masks = fits_as_stored(layout)
        require_turned(layout, dataclasses.replace(empty, turn_masks=turn_masks))
    listed, by_colour = read_names(names) if names is not None else ([], {})
    masks = [mask for _, part in layout.pairs.values() for mask in part]
    found = survey(root, masks, colours or bool(by_colour))
    try:
        ignored = tuple(as_value(text) for text in ignore)
    except ValueError as error:
        raise UsageError(f"--ignore {error}") from error
    labels: dict[MaskValue, str] = {**by_colour}
    if threshold:
        halves = classes_of(found, dataclasses.replace(empty, threshold=threshold), listed)
        labels = dict(zip(halves.values, halves.names, strict=True))
    elif not by_colour:
        labels, ignored = _labels(found, listed, ignored)
    labels = {value: name for value, name in labels.items() if value not in ignored}
    description = Description(
        path=empty.path, labels=labels, ignore=ignored, threshold=threshold, turn_masks=turn_masks
    )
    classes = classes_of(found, description, ())  # raises for what the draft would not explain
    images = survey_images(image for part, _ in layout.pairs.values() for image in part)
    faults = faults_of(layout, found, classes, images.faults(description.reading))
    return _masks_text(layout, found, description), faults


def _labels(
    found: Survey, names: Sequence[str], ignored: tuple[MaskValue, ...]
) -> tuple[dict[MaskValue, str], tuple[MaskValue, ...]]:
    """Return a name for each value, and the ignored values: 255 beside other classes too."""
    values = sorted(found.pixels)
    if found.in_colour:
        if names:
            raise UsageError(
                f"{found.where}: the masks are in colour, and the names have no colours",
                "write them as lines of R G B NAME, such as 128 64 128 road",
            )
        require_sharp(found, [v for v in values if hexadecimal(v) not in ignored])
        # The most frequent first: sorted by number, colours have no order.
        values.sort(key=lambda value: -found.pixels[value])
        return {hexadecimal(v): hexadecimal(v) for v in values}, ignored
    if not ignored and IGNORED in values and len(values) > 2:
        require_unmixed(found, values[:-1])
        ignored = (IGNORED,)
    kept = [value for value in values if value not in ignored]
    if not names:
        require_classes(found)
        require_sharp(found, kept)
        require_edges(found)
        require_wide(found, kept)
        return {value: str(value) for value in kept}, ignored
    return dict(zip(_numbered(found, kept, values, len(names)), names, strict=True)), ignored


def _numbered(
    found: Survey, kept: Sequence[int], values: Sequence[int], count: int
) -> Sequence[int]:
    """Return the values that `count` names are for."""
    first = 0 if kept and kept[0] == 0 else 1
    for candidate in (kept, values, range(first, first + count)):
        if len(candidate) == count and set(kept) <= set(candidate):
            return candidate
    raise UsageError(
        f"{found.where}: {counted(count, 'name')} for {counted(len(kept), 'value')}: "
        f"{found.listed(kept)}",
        "give a line for each value, in their order, or leave some out with --ignore VALUE",
    )


def _masks_text(layout: Layout, found: Survey, description: Description) -> str:
    """Return the text of dataset.toml for masks."""
    counts = ", ".join(f"{split} {len(pair[0]):,}" for split, pair in layout.pairs.items())
    lines = [
        f"# maskfolder:{printable(str(layout.root))}: {counts} images with masks.",
        "# Written by cnnzoo describe-data. Change the names; delete what does not apply.",
        "",
    ]
    if description.threshold:
        lines.append(
            f"threshold = {description.threshold}  # this value and above: the second class"
        )
    if description.turn_masks is not None:
        text = "drawn on the pixels as stored" if description.turn_masks else "already upright"
        lines.append(f"turn_masks = {str(description.turn_masks).lower()}  # masks are {text}")
    if not description.threshold:
        ignored = ", ".join(_key(value) for value in description.ignore or ())
        lines.append(f"ignore = [{ignored}]  # values that count in no loss and no metric")
    lines += [*ORIGIN, '# background = "NAME"  # the class that is no object', ""]
    lines.append("[labels]  # value in the masks = name of the class")
    total = sum(found.pixels.values())
    for value, name in description.labels.items():
        number = value if isinstance(value, int) else int(value[1:], 16)
        share = 100 * found.pixels.get(number, 0) / total
        lines.append(f"{_key(value)} = {json.dumps(name, ensure_ascii=False)}  # {share:.3g} %")
    return "\n".join([*lines, "", *COLOURS, ""])


ORIGIN = (
    *('# licence = ""', '# citation = ""', '# homepage = ""', "# mean = []", "# std = []"),
    "# value_range = [0, 65535]  # black and white in images of more than 8 bits",
    '# alpha_background = "white"  # behind transparent parts of images',
)
COLOURS = ("# [colours]  # name of a class = its colour in figures", '# "NAME" = "#e69f00"')


def draft_of_classes(root: Path, dataset: Dataset) -> str:
    """Return dataset.toml for a loaded dataset of folders of classes."""
    counts = dict.fromkeys(range(len(dataset.spec.classes)), 0)
    for split in dataset.splits.values():
        assert isinstance(split.targets, Tensor)
        for number, count in enumerate(split.targets.bincount(minlength=len(counts)).tolist()):
            counts[number] += count
    splits = ", ".join(f"{name} {len(split):,}" for name, split in dataset.splits.items())
    lines = [
        f"# imagefolder:{printable(str(root))}: {splits} images.",
        "# Written by cnnzoo describe-data. Change the names; delete what does not apply.",
        "",
        *ORIGIN,
        "",
        "[labels]  # folder = name of the class",
    ]
    for name, count in zip(dataset.spec.classes, counts.values(), strict=True):
        text = json.dumps(name, ensure_ascii=False)
        lines.append(f"{text} = {text}  # {counted(count, 'image')}")
    return "\n".join([*lines, ""])


def _key(value: MaskValue) -> str:
    return str(value) if isinstance(value, int) else json.dumps(value)
