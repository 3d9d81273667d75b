"""Write a draft of dataset.toml from what is in the folders, for the user to complete."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cnn_core.data.augment import IGNORED
from cnn_core.data.dataset import Dataset
from cnn_core.data.mask_image import hexadecimal
from cnn_core.data.readers.class_names import ClassNames, read_names
from cnn_core.data.readers.description import FILE, Description, MaskValue, as_value
from cnn_core.data.readers.mask_classes import classes_of
from cnn_core.data.readers.mask_pairs import Layout, find_pairs
from cnn_core.data.readers.mask_survey import (
    Survey,
    require_classes,
    require_edges,
    require_one_kind,
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
    given = read_names(names) if names is not None else ClassNames(Path())
    in_colour = any(isinstance(value, str) for value in given.by_value)
    masks = [mask for _, part in layout.pairs.values() for mask in part]
    found = survey(root, masks, colours or in_colour)
    if not found.in_colour and not threshold:
        require_one_kind(found)
    try:
        ignored = tuple(as_value(text) for text in ignore)
    except ValueError as error:
        raise UsageError(f"--ignore {error}") from error
    if threshold:
        halves = classes_of(found, dataclasses.replace(empty, threshold=threshold), given.names)
        labels = dict(zip(halves.values, halves.names, strict=True))
    else:
        labels, ignored = _labels(found, given, ignored)
    labels = {value: name for value, name in labels.items() if value not in ignored}
    description = Description(
        path=empty.path, labels=labels, ignore=ignored, threshold=threshold, turn_masks=turn_masks
    )
    classes = classes_of(found, description, ())  # raises for what the draft would not explain
    images = survey_images(image for part, _ in layout.pairs.values() for image in part)
    faults = faults_of(layout, found, classes, images.faults(description.reading))
    return _masks_text(layout, found, description, given.said), faults


def _labels(
    found: Survey, given: ClassNames, ignored: tuple[MaskValue, ...]
) -> tuple[dict[MaskValue, str], tuple[MaskValue, ...]]:
    """Return a name for each value, and the ignored values: 255 beside other classes too."""
    values = sorted(found.pixels)
    if found.in_colour:
        return _colours(found, given, ignored), ignored
    if not given.names:
        require_sharp(found, [value for value in values if value not in ignored])
    if not ignored and IGNORED in values and len(values) > 2 and IGNORED not in given.by_value:
        require_unmixed(found, values[:-1])
        ignored = (IGNORED,)
    kept = [value for value in values if value not in ignored]
    if given.by_value:
        if unnamed := [value for value in kept if value not in given.by_value]:
            raise UsageError(
                f"{given.path}: has no name for {found.listed(unnamed)}, which masks hold",
                f"it has {', '.join(map(str, given.by_value))}; ignored values: --ignore VALUE",
            )
        return dict(given.by_value), ignored
    if not given.names:
        require_classes(found)
        require_edges(found)
        require_wide(found, kept)
        return {value: str(value) for value in kept}, ignored
    numbers = _numbered(found, kept, values, len(given.names))
    return dict(zip(numbers, given.names, strict=True)), ignored


def _colours(
    found: Survey, given: ClassNames, ignored: tuple[MaskValue, ...]
) -> dict[MaskValue, str]:
    """Return a name for each colour."""
    if given.by_value and any(isinstance(value, str) for value in given.by_value):
        return dict(given.by_value)
    if given.names:
        raise UsageError(
            f"{found.where}: the masks are in colour, and the names have no colours",
            "write them as lines of R G B NAME, such as 128 64 128 road",
        )
    # The most frequent first: sorted by number, colours have no order.
    values = sorted(found.pixels, key=lambda value: (-found.pixels[value], value))
    require_sharp(found, sorted(v for v in values if hexadecimal(v) not in ignored))
    return {hexadecimal(v): hexadecimal(v) for v in values}


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


def _masks_text(layout: Layout, found: Survey, description: Description, said: str) -> str:
    """Return the text of dataset.toml for masks; `said` is a line on the names."""
    counts = ", ".join(f"{split} {len(pair[0]):,}" for split, pair in layout.pairs.items())
    lines = [
        f"# maskfolder:{printable(str(layout.root))}: {counts} images with masks.",
        "# Written by cnnzoo describe-data. Change the names; delete what does not apply.",
        *([f"# {printable(said)}"] if said else ()),
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
