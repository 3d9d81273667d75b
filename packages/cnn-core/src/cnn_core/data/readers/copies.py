"""Recognise copies of one image by the names that programs give them, to keep them together.

A network that was trained on a mirrored or brightened copy of an image recognises the image.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cnn_core.data.splits import Files
from cnn_core.text import counted, printable

__all__ = ["source_of", "with_sources"]

MARK = re.compile(r"\.rf\.|original|aug|flip|mirror|rot|cop(y|ie)", re.IGNORECASE)
SUFFIX = r"aug(mented)?[_-]?\d*|[hv]?[_-]?flip(ped)?|flip[_-]?(h|v|lr|ud)|mirror(ed)?"
NAMES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?P<source>.+?)(_(jpe?g|png|bmp|webp|tiff?))?\.rf\.\w+",  # Roboflow
        r".+_original_(?P<source>.+)\.\w+_[0-9a-f-]{36}",  # Augmentor
        r"aug(mented)?_(?P<source>\d+)_\d+",  # Keras, with prefix "aug"
        # black_rot_90 may be a disease and a number; img1_rot90 is no such name.
        rf"(?P<source>.+?)([_-]({SUFFIX}|rot(ated?)?(90|180|270)))+",
        r"(?P<source>.+?) ?[ -] ?(copy|kopie)( ?\(?\d+\)?)?",  # Windows and macOS
        r"copy (\(?\d+\)? )?of (?P<source>.+)",
    )
)


# Of "1 (1)" only if there is a "1", too: "cat (1)" to "cat (9)" are different cats.
COUNTED = re.compile(r"(?P<source>.+?) ?\(\d+\)")

Source = tuple[int | str, str]  # a class, "" for masks, and the name of an image


def source_of(name: str) -> str:
    """Return the name of the image that a file is a copy of, by its name without suffix.

    Return the name itself if it is not that of a copy.
    """
    if not MARK.search(name):
        return name
    matches = (pattern.fullmatch(name) for pattern in NAMES)
    return next((match["source"] for match in matches if match), name)


def with_sources(splits: Mapping[str, Files]) -> tuple[dict[str, Files], list[str]]:
    """Return the splits with the copies of one image as a group, and lines about them.

    Copies are images of one class whose names have the same source.
    """
    named = {name: _sources(files) for name, files in splits.items()}
    # An image that is no copy belongs to the copies that have its name as their source.
    sources = {key for column in named.values() for key, is_copy in column if is_copy}
    counts = Counter(key for column in named.values() for key, _ in column if key in sources)
    if max(counts.values(), default=0) < 2:
        return dict(splits), []
    numbers: dict[Hashable, int] = {}
    found = {}
    for name, files in splits.items():
        keys = (key if key in sources else (name, row) for row, (key, _) in enumerate(named[name]))
        groups = [numbers.setdefault(key, len(numbers)) for key in keys]
        found[name] = replace(files, groups=torch.tensor(groups))
    return found, [*_together(splits, named, sources), *_apart(named)]


def _sources(files: Files) -> list[tuple[Source, bool]]:
    """Return, for each image, what its copies have in common, and whether it is a copy itself."""
    targets = files.targets
    classes: list[int | str] = [""] * len(files)
    if isinstance(targets, Tensor) and targets.ndim == 1:
        classes = targets.tolist()
    found: list[tuple[Source, bool]] = []
    known = {
        (c, p.stem) for c, p in zip(classes, files.images, strict=True) if isinstance(p, Path)
    }
    for of, path in zip(classes, files.images, strict=True):
        if not isinstance(path, Path):  # of a Python object, whose images have no names
            found.append((("", ""), False))
            continue
        source = source_of(path.stem)
        if (counted := COUNTED.fullmatch(path.stem)) and (of, counted["source"]) in known:
            source = counted["source"]
        found.append(((of, source), source != path.stem))
    return found


def _together(
    splits: Mapping[str, Files],
    named: Mapping[str, list[tuple[Source, bool]]],
    sources: set[Source],
) -> list[str]:
    """Return a line on copies in one split, which may be divided."""
    images, of, example = 0, 0, ""
    for name, column in named.items():
        counts = Counter(key for key, _ in column if key in sources)
        several = {key for key, count in counts.items() if count > 1}
        images += sum(counts[key] for key in several)
        of += len(several)
        for path, (key, is_copy) in zip(splits[name].images, column, strict=True):
            example = example or path.name * (is_copy and key in several)
    if not images:
        return []
    return [
        f"{images:,} images are copies of {of:,}, by names such as {printable(example)}: those of "
        "one image stay together where images are held out"
    ]


def _apart(named: Mapping[str, list[tuple[Source, bool]]]) -> list[str]:
    """Return a line on copies of one image that are in several splits."""
    seen: dict[Source, set[str]] = {}
    for name, column in named.items():
        for key, is_copy in column:
            if is_copy:
                seen.setdefault(key, set()).add(name)
    shared = [(source, names) for (_, source), names in seen.items() if len(names) > 1]
    if not shared:
        return []
    source, names = shared[0]
    return [
        f"{counted(len(shared), 'image has', 'images have')} copies in several splits, by their "
        f"names, such as {printable(source)} in {' and '.join(sorted(names))}: are they of one "
        "image?"
    ]
