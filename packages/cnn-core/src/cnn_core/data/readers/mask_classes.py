"""Decide which value of masks is which class; refuse what could be meant in several ways.

Nothing is renumbered without a line that says so, and predicted masks have the values of the
training masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnn_core.data.augment import IGNORED
from cnn_core.data.mask_image import hexadecimal
from cnn_core.data.readers.class_names import read_names
from cnn_core.data.readers.description import FILE, Description, MaskValue
from cnn_core.data.readers.mask_survey import (
    SHOWN,
    WHITE,
    Survey,
    advice,
    different_palettes,
    require_classes,
    require_edges,
    require_lossless,
    require_one_kind,
    require_sharp,
    require_unmixed,
    require_wide,
)
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.text import counted

__all__ = ["Classes", "classes_of"]

MAX_NAMES = 1 << 16  # bytes of a file with names of classes


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of masks.

    `values` are the values of the classes in masks, numbers or "#rrggbb"; `numbers` maps each
    value, a colour as 0xRRGGBB, to its class, or to 255 if it is ignored.
    """

    names: tuple[str, ...]
    values: tuple[MaskValue, ...]
    numbers: Mapping[int, int]
    notes: tuple[str, ...] = ()
    in_colour: bool = False


def classes_of(found: Survey, description: Description, names: Sequence[str]) -> Classes:
    """Return the classes of masks by dataset.toml, else by the names in classes.txt.

    Without either, values from 0 or from 1 without a gap are classes and 255 is ignored, and any
    two values are two classes.

    Raises:
        DatasetCorruptError: the masks are blurred, in colours without labels, or hold values that
            are not declared or could be meant in several ways.
        UsageError: the number of names is not the number of classes.
    """
    if not found.masks:
        raise found.errors[0] if found.errors else DatasetCorruptError(f"{found.root}: no masks")
    require_lossless(found, description)
    if description.threshold:
        return _by_threshold(found, description, names)
    if description.labels:
        return _declared(found, description)
    if found.in_colour:
        raise _undeclared_colours(found)
    require_one_kind(found)
    return _with_notes(found, _counted(found, description, names))


def _by_threshold(found: Survey, description: Description, names: Sequence[str]) -> Classes:
    """Return two classes: the values below the threshold, and all others."""
    path, limit = description.path, description.threshold
    if found.in_colour:
        raise UsageError(f"{path}: threshold is for grey masks, and these are in colour")
    _require_sides(found, limit)
    sides = [[v for v in found.pixels if (v >= limit) == upper] for upper in (False, True)]
    if not all(sides):
        raise UsageError(f"{path}: threshold = {limit}: all pixels are on one side of it")
    # The value that most pixels of a side have is the one that was drawn.
    drawn = [max(side, key=lambda v: found.pixels[v]) for side in sides]
    if 2 * found.pixels[drawn[1]] < sum(found.pixels[v] for v in sides[1]):
        drawn[1] = limit  # many objects, each with a number of its own
    labels = description.labels or dict(zip(drawn, names or map(str, drawn), strict=False))
    if len(labels) != 2 or (names and len(names) != 2):
        raise UsageError(f"{path}: threshold makes two classes: give two names")
    share = 1 - sum(found.pixels.get(v, 0) for v in drawn) / sum(found.pixels.values())
    note = (
        f"{found.where}: threshold {limit} decides on the {100 * share:.3g} % of the pixels that "
        f"are neither {drawn[0]} nor {drawn[1]}"
    )
    return Classes(
        names=tuple(labels.values()),
        values=tuple(labels),
        numbers={value: int(value >= limit) for value in range(max(found.pixels) + 1)},
        notes=(note,) if share else (),
    )


def _require_sides(found: Survey, limit: int) -> None:
    """Raise DatasetCorruptError if a colour of palettes is on both sides of a threshold."""
    sides: dict[int, tuple[bool, Path]] = {}
    for mask in found.masks:
        for index, colour in mask.palette.items():
            upper, path = sides.setdefault(colour, (index >= limit, mask.path))
            if upper != (index >= limit):
                raise DatasetCorruptError(
                    f"{mask.path}: threshold = {limit}: {hexadecimal(colour)} is number {index} "
                    f"here, on the other side than in {path}",
                    "leave out threshold, and name colours: cnnzoo describe-data "
                    f"maskfolder:{found.root} --colours",
                )


def _declared(found: Survey, description: Description) -> Classes:
    """Return the classes that dataset.toml declares; every value of the masks must be in it."""
    in_colour = description.in_colour
    if found.in_colour and not in_colour:
        raise _undeclared_colours(found)
    ignore = description.ignore
    if ignore is None:
        ignore = () if in_colour or WHITE in description.labels else (WHITE,)
    names = tuple(dict.fromkeys(description.labels.values()))
    if len(names) < 2:
        raise UsageError(f"{description.path}: labels: expected at least two classes")
    numbers = {_number(v): names.index(name) for v, name in description.labels.items()}
    numbers |= {_number(value): IGNORED for value in ignore}
    if unknown := sorted(found.pixels.keys() - numbers.keys()):
        raise DatasetCorruptError(
            f"{found.first[unknown[0]]}: masks hold {found.listed(unknown, in_colour)}, which "
            f"{description.path} does not declare",
            "add them to labels or to ignore; values between those of two classes come from "
            "resizing, anti-aliasing or JPEG: export the masks anew, without them",
        )
    if len({numbers[value] for value in found.pixels} - {IGNORED}) < 2:
        raise _one_class(found)
    if description.ignore is None and not in_colour:
        require_unmixed(found, [value for value, n in numbers.items() if n != IGNORED])
    # The first value of a name is the one that predictions have.
    values = {name: value for value, name in reversed([*description.labels.items()])}
    declared = Classes(
        names=names,
        values=tuple(values[name] for name in names),
        numbers=numbers,
        in_colour=in_colour,
    )
    return _with_notes(found, declared)


def _number(value: MaskValue) -> int:
    """Return a value as the number that `read_mask` gives for it."""
    return value if isinstance(value, int) else int(value[1:], 16)


def _undeclared_colours(found: Survey) -> DatasetCorruptError:
    """Return the error that lists colours and says how to give them names."""
    require_sharp(found, sorted(found.pixels))
    describe = f"cnnzoo describe-data maskfolder:{found.root}"
    named = next((path for path in sorted(found.root.glob("*.*")) if _names_colours(path)), None)
    return DatasetCorruptError(
        f"{found.where}: the masks are pictures in {len(found.pixels):,} colours: "
        f"{found.listed(in_colour=True)}",
        f"say which colour is which class: {describe} writes them to {found.root / FILE}, for you "
        "to name" + (f"\n{named} may name them: {describe} --classes {named}" if named else ""),
    )


def _names_colours(path: Path) -> bool:
    """Return whether a file is a list of colours with names, such as labelmap.txt of CVAT."""
    if path.suffix.lower() not in (".txt", ".csv") or not path.is_file():
        return False
    if path.stat().st_size > MAX_NAMES:
        return False
    try:
        return any(isinstance(value, str) for value in read_names(path).by_value)
    except UsageError:
        return False


def _counted(found: Survey, description: Description, names: Sequence[str]) -> Classes:
    """Return the classes of masks of numbers, which no label declares."""
    given = description.ignore
    present = set(found.pixels)
    ignored = {_number(v) for v in given} if given is not None else {WHITE}
    kept = sorted(present - ignored)
    if given is None and len(present) == 2 and WHITE in present and present != {1, WHITE}:
        kept = sorted(present)  # black and white, not a class and ignored pixels
    if len(kept) < 2:
        raise _one_class(found)
    if not names:
        require_sharp(found, kept)
    if given is None:
        require_unmixed(found, kept)
    if not names:
        require_classes(found)
    require_edges(found)
    labels = _named(found, kept, names) if names else _unnamed(found, kept, given is not None)
    numbers = {value: number for number, value in enumerate(labels)}
    numbers |= {value: IGNORED for value in ignored if value not in numbers}
    return Classes(names=tuple(labels.values()), values=tuple(labels), numbers=numbers)


def _one_class(found: Survey) -> DatasetCorruptError:
    """Return the error for masks with a single class."""
    several = "are all other values ignored? " + advice(found)
    return DatasetCorruptError(
        f"{found.where}: masks hold only {found.listed(in_colour=found.in_colour)}: there is "
        "nothing to tell apart",
        several if len(found.pixels) > 1 else "masks need pixels of two classes; are these masks?",
    )


def _named(found: Survey, kept: Sequence[int], names: Sequence[str]) -> dict[int, str]:
    """Return names by value: from 0, from 1, or of the two values that there are."""
    count = len(names)
    if kept[-1] < count:
        return dict(enumerate(names))
    if len(kept) == count == 2:
        return dict(zip(kept, names, strict=True))
    if kept[0] >= 1 and kept[-1] == count:
        return dict(enumerate(names, 1))
    unnamed = ""
    if kept[0] == 0 and kept[-1] == count:
        unnamed = "; if 0 is no class, ignore = [0] in dataset.toml, else name it first"
    raise UsageError(
        f"{found.root / 'classes.txt'}: {counted(count, 'name')}, but the masks have "
        f"{counted(len(kept), 'class', 'classes')}: {found.listed(kept)}",
        f"{advice(found)}{unnamed}",
    )


def _unnamed(found: Survey, kept: Sequence[int], declared: bool) -> dict[int, str]:
    """Return the values as names, if they are two, or without a gap from 0 or 1."""
    gapless = [*kept] == list(range(kept[0], kept[0] + len(kept))) and kept[0] <= 1
    alone = len(kept) == 2 and (len(found.pixels) == 2 or declared)
    if gapless or alone:
        require_wide(found, kept)
        return {value: str(value) for value in kept}
    expected = "expected class numbers from 0, or two values"
    require_sharp(found, kept)
    first_gap = next((v for n, v in enumerate(kept) if v != kept[0] + n), kept[0])
    values = ", ".join(map(str, sorted(found.pixels)))
    raise DatasetCorruptError(
        f"{found.first[first_gap]}: masks have the values {values}, {expected}", advice(found)
    )


def _with_notes(found: Survey, classes: Classes) -> Classes:
    """Return the classes with lines for what a user might not expect."""
    notes = []
    in_colour = classes.in_colour
    if not in_colour and (unlike := different_palettes(found)):
        notes.append(f"{unlike}: the numbers are the classes, whatever their colours")
    expected = [*range(len(classes.values))]
    if [*classes.values] != expected and not in_colour:
        listed = ", ".join(map(str, classes.values[:SHOWN]))
        more = ", …" if len(classes.values) > SHOWN else ""
        notes.append(
            f"{found.where}: the mask values {listed}{more} are classes 0 to "
            f"{len(classes.values) - 1}; predicted masks have these values"
        )
    for value, number in classes.numbers.items():
        if number == IGNORED and value in found.pixels:
            notes.append(
                f"{found.where}: ignored: {found.listed([value], in_colour)} of the pixels"
            )
    present = {classes.numbers[v] for v in found.pixels if v in classes.numbers}
    if absent := [name for n, name in enumerate(classes.names) if n not in present]:
        listed = ", ".join(f"'{name}'" for name in absent[:SHOWN])
        notes.append(f"{found.where}: no mask has {len(absent)} of the classes: {listed}")
    notes += _thin(found, classes)
    return dataclasses.replace(classes, notes=tuple(notes))


def _thin(found: Survey, classes: Classes) -> list[str]:
    """Return a line for classes that are nowhere two pixels wide, as edges of blurred masks."""
    if found.is_blurred:
        return [f"{found.where}: edges between classes run through the numbers between them"]
    thin = found.thin(v for v in found.pixels if classes.numbers.get(v, IGNORED) != IGNORED)
    if not thin or classes.in_colour:
        return []
    return [
        f"{found.where}: {found.listed(sorted(thin))} of the pixels: nowhere two pixels wide, as "
        "where masks were resized, anti-aliased or once saved as JPEG"
    ]
