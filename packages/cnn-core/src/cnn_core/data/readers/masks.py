"""Read your own images with masks, `maskfolder:PATH`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from cnn_core.data.augment import IGNORED
from cnn_core.data.dataset import Dataset
from cnn_core.data.headers import probe_image
from cnn_core.data.mask_image import exif_orientation, hexadecimal
from cnn_core.data.readers.class_names import ClassNames, read_names
from cnn_core.data.readers.copies import with_sources
from cnn_core.data.readers.description import FILE, Description, described, read_description
from cnn_core.data.readers.folders import held_out_note, with_test_split
from cnn_core.data.readers.mask_classes import Classes, classes_of
from cnn_core.data.readers.mask_outliers import inverted
from cnn_core.data.readers.mask_pairs import NAMES, Layout, find_pairs
from cnn_core.data.readers.mask_survey import Survey, survey
from cnn_core.data.readers.spelling import same_names
from cnn_core.data.readers.survey import survey_images
from cnn_core.data.splits import Files
from cnn_core.errors import DatasetCorruptError
from cnn_core.specs import DatasetSpec
from cnn_core.text import counted, printable

__all__ = ["faults_of", "fits_as_stored", "load_masks", "require_turned"]


def load_masks(spec: DatasetSpec, root: Path, download: bool) -> Dataset:
    """Return images with their masks, PATH/images/NAME.* and PATH/masks/NAME.*.

    `find_pairs` lists the other layouts. Masks are class numbers, grey levels, palette indices or
    colours; PATH/dataset.toml says which value is which class, PATH/classes.txt names the classes,
    one per line. Files that are not read, and what is not obvious, are in the dataset's `notes`
    and `faults`.

    Raises:
        UsageError: there is no such folder, or dataset.toml or classes.txt do not fit the masks.
        DatasetCorruptError: images and masks do not pair up, the masks could be meant in several
            ways, or EXIF turns images and not their masks.
    """
    found = read_description(root, "segmentation")
    layout = find_pairs(root, found)
    require_turned(layout, found)
    masks = [mask for _, part in layout.pairs.values() for mask in part]
    found, names = _with_names(root, found)
    held = survey(root, masks, found.in_colour)
    classes = classes_of(held, found, () if found.labels else names.names)
    images = survey_images(image for part, _ in layout.pairs.values() for image in part)
    splits, copies = with_sources(_splits(layout, classes, found, images.channels))
    images.grouped(splits, classes.names)
    spec = dataclasses.replace(
        spec,
        mask_values=classes.values,
        colours=_colours(classes, found),
        background=found.background,
    )
    loaded = with_test_split(spec, classes.names, splits, (images.channels, *images.size))
    notes = (
        *layout.left_out.lines(missed=False),
        *filter(None, (names.said,)),
        *(*layout.notes, *classes.notes, *inverted(held, classes)),
        *held_out_note(loaded, layout.pairs),
        *(*copies, *images.notes(found.reading)),
    )
    faults = faults_of(layout, held, classes, images.faults(found.reading))
    spec = described(loaded.spec, found)
    return dataclasses.replace(
        loaded, spec=spec, notes=notes, faults=faults, broken=images.broken, survey=images
    )


def faults_of(
    layout: Layout, held: Survey, classes: Classes, of_images: Iterable[str]
) -> tuple[str, ...]:
    """Return the faults of a dataset of masks: what is not read, and classes without training."""
    masks = (mask for _, part in layout.pairs.values() for mask in part)
    return (
        *layout.left_out.lines(missed=True),
        *same_names(classes.names, held.where),
        *_untrained(layout, held, classes),
        *(*of_images, *survey_images(masks).unread()),
    )


def _splits(
    layout: Layout, classes: Classes, found: Description, channels: int
) -> dict[str, Files]:
    return {
        name: Files(
            *pair,
            channels=channels,
            values=classes.numbers,
            in_colour=classes.in_colour,
            turn_masks=bool(found.turn_masks),
            reading=found.reading,
        )
        for name, pair in layout.pairs.items()
    }


def _untrained(layout: Layout, held: Survey, classes: Classes) -> list[str]:
    """Return a line for each class that masks of another split have, and none for training."""
    by_path = {mask.path: mask for mask in held.masks}
    seen: dict[int, str] = {}
    lines = []
    for split, (_, masks) in layout.pairs.items():  # train comes first
        for mask in (by_path[path] for path in masks if path in by_path):
            for value in mask.counts:
                number = classes.numbers.get(value, IGNORED)
                if number == IGNORED or seen.setdefault(number, split) == "train":
                    continue
                shown = hexadecimal(value) if classes.in_colour else value
                lines.append(
                    f"{mask.path}: the value {shown}, class '{printable(classes.names[number])}', "
                    f"is in masks of {split} but in none of train: no network can learn it"
                )
                seen[number] = "train"  # said once
    return lines


def _with_names(root: Path, found: Description) -> tuple[Description, ClassNames]:
    """Return a description with the names in classes.txt, unless dataset.toml has names.

    The names are separate if the file lists them without values.

    Raises:
        UsageError: the file cannot be read as names, or a name is given twice.
    """
    path = root / NAMES
    if found.labels or not path.is_file():
        return found, ClassNames(path)
    names = read_names(path)
    if names.by_value:
        found = dataclasses.replace(found, labels=names.by_value, path=path)
    return found, names


def _colours(classes: Classes, found: Description) -> tuple[str, ...]:
    """Return the colours of classes, from the masks or dataset.toml; empty for the palette's."""
    if classes.in_colour:
        return tuple(
            found.colours.get(name, str(value))
            for name, value in zip(classes.names, classes.values, strict=True)
        )
    return tuple(found.colours.get(name, "") for name in classes.names) if found.colours else ()


def require_turned(layout: Layout, found: Description) -> None:
    """Raise DatasetCorruptError if EXIF turns images but not masks, unless it is declared."""
    if found.turn_masks is not None:
        return
    turned = [pair for part in layout.pairs.values() for pair in _differently_turned(*part)]
    if not turned:
        return
    image, mask = turned[0]
    (height, width, _), (tall, wide, _) = probe_image(image), probe_image(mask)
    sizes = f"it is {height}x{width} upright, its mask {tall}x{wide}"
    as_stored = (height, width) != (tall, wide)
    sheet = f"compare cnnzoo show-data maskfolder:{found.path.parent} --out sheet.png with either"
    advice = "these fit as stored: true" if as_stored else sheet
    raise DatasetCorruptError(
        f"{image}: EXIF orientation {exif_orientation(image)} turns this image, but its mask has "
        f"{exif_orientation(mask)} ({counted(len(turned), 'such image')}): {sizes}",
        f"in {found.path.parent / FILE}: turn_masks = true if masks were drawn on the pixels as "
        f"stored, turn_masks = false if on the upright images; {advice}",
    )


def fits_as_stored(layout: Layout) -> bool | None:
    """Return True if masks have the size of their images before EXIF turns these; else None."""
    turned = [pair for part in layout.pairs.values() for pair in _differently_turned(*part)]
    sizes = [(probe_image(image)[:2], probe_image(mask)[:2]) for image, mask in turned]
    return True if sizes and all(one == other[::-1] != other for one, other in sizes) else None


def _differently_turned(
    images: Iterable[Path], masks: Iterable[Path]
) -> Iterable[tuple[Path, Path]]:
    """Yield the pairs with different EXIF orientations; unreadable files are reported later."""
    for image, mask in zip(images, masks, strict=True):
        try:
            if exif_orientation(image) != exif_orientation(mask):
                yield image, mask
        except DatasetCorruptError:
            continue
