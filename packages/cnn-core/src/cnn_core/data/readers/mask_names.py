"""Pair names of images with names of masks by one rule, such as NAME with NAME_mask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnn_core.data.readers.listing import sorted_files
from cnn_core.errors import DatasetCorruptError
from cnn_core.text import counted

__all__ = ["Rule", "best_rule", "partner", "shift_of", "side_by_side"]

# What programs add to the name of an image for its mask; longer ones first where one ends in
# another.
AFFIXES = (
    *("mask", "masks", "seg", "segmentation", "label", "labels", "annotation", "annot", "gt"),
    *("groundtruth", "L", "P"),
)


@dataclass(frozen=True)
class Rule:
    """How names of masks follow from names of images: what stands around the part they share."""

    image: tuple[str, str] = ("", "")
    mask: tuple[str, str] = ("", "")

    def core(self, name: str, affixes: tuple[str, str]) -> str | None:
        """Return the shared part of a name, or None if it lacks these affixes."""
        before, after = affixes
        fits = name.startswith(before) and name.endswith(after)
        enough = len(name) > len(before) + len(after)
        return name[len(before) : len(name) - len(after)] if fits and enough else None

    def other(self, name: str, of_mask: bool) -> str:
        """Return the name that the partner of an image, or of a mask, should have."""
        here, there = (self.mask, self.image) if of_mask else (self.image, self.mask)
        core = self.core(name, here)
        return name if core is None else f"{there[0]}{core}{there[1]}"


def partner(rule: Rule, name: str, *, of_mask: bool) -> str:
    """Return the partner's name: the same folder, and the last part by the rule."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{rule.other(last, of_mask)}"


def best_rule(images: Iterable[str], masks: Iterable[str]) -> Rule:
    """Return the rule that pairs the most names; equal names come first."""
    masks = set(masks)
    images = list(images)
    lasts = [[name.rpartition("/")[2] for name in names] for names in (images, sorted(masks))]
    rules = [Rule(), *_common_affixes(*lasts)]
    for affix in AFFIXES:
        rules += [Rule(mask=("", f"{mark}{affix}")) for mark in ("_", "-", ".", " ", "")]
        rules += [Rule(mask=(f"{affix}{mark}", "")) for mark in ("_", "-", ".", " ", "")]

    def score(rule: Rule) -> int:
        return sum(
            rule.core(name.rpartition("/")[2], rule.image) is not None
            and partner(rule, name, of_mask=False) in masks
            for name in images
        )

    best, most = Rule(), -1
    for rule in rules:
        if (count := score(rule)) > most:
            best, most = rule, count
        if count == len(images):
            break  # almost always the first one, and there may be many names
    return best


def _common_affixes(images: Sequence[str], masks: Sequence[str]) -> list[Rule]:
    """Return the rule made of what all images, and all masks, have around the shared name."""
    # A single name would have only affixes, and any two files would be a pair.
    if min(len(images), len(masks)) < 2:
        return []
    (before, after), (mask_before, mask_after) = _affixes(images), _affixes(masks)
    shared = len(_shared_end(before, mask_before))
    before, mask_before = before[: len(before) - shared], mask_before[: len(mask_before) - shared]
    shared = len(_shared_start([after, mask_after]))
    after, mask_after = after[shared:], mask_after[shared:]
    # A digit beside a number is part of it: 1 would go with 101.
    if any(re.search(r"\d$", text) for text in (before, mask_before)):
        return []
    if any(re.match(r"\d", text) for text in (after, mask_after)):
        return []
    return [Rule((before, after), (mask_before, mask_after))]


def _affixes(names: Sequence[str]) -> tuple[str, str]:
    """Return the longest common start of several names, and the longest end of what follows."""
    before = _shared_start(names)
    rests = [name[len(before) :][::-1] for name in names]
    return before, _shared_start(rests)[::-1]


def _shared_end(one: str, other: str) -> str:
    return _shared_start([one[::-1], other[::-1]])[::-1]


def _shared_start(texts: Sequence[str]) -> str:
    """Return the longest common start of texts."""
    low, high = min(texts), max(texts)
    count = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:count]


def shift_of(ours: Iterable[str], theirs: Iterable[str]) -> int:
    """Return by how much all numbers of names differ, as of 1 to 8 and 0 to 7; else 0."""
    numbers = [[re.findall(r"\d+", name)[-1:] for name in names] for names in (ours, theirs)]
    first, second = ([int(n[0]) for n in column if n] for column in numbers)
    differences = {abs(a - b) for a, b in zip(sorted(first), sorted(second), strict=False)}
    equal = len(first) == len(second) == len(numbers[0]) == len(numbers[1])
    return differences.pop() if equal and len(differences) == 1 else 0


def side_by_side(folder: Path) -> tuple[list[Path], list[Path]] | None:
    """Return images and masks that lie in one folder, told apart by names such as NAME_mask.

    Raises:
        DatasetCorruptError: most files of the folder are such pairs, but not all.
    """
    files = sorted_files(folder)
    names = {path.with_suffix("") for path in files}
    best: tuple[int, str, list[Path]] = (0, "", [])
    for affix in AFFIXES[:-2]:
        is_mask = re.compile(rf"(.+)([_. -]{affix})", re.IGNORECASE).fullmatch
        masks = [path for path in files if is_mask(path.stem)]
        if masks and len(masks) * 2 == len(files):
            return [path for path in files if path not in set(masks)], masks
        found = [(path, match) for path in masks if (match := is_mask(path.stem))]
        paired = [path for path, match in found if path.with_name(match[1]) in names]
        if len(paired) > best[0]:
            best = (len(paired), found[0][1][2], paired)
    count, suffix, masks = best
    if 4 * count >= len(files) > 0:
        _require_no_others(files, masks, suffix)
        return [path for path in files if path not in set(masks)], masks
    return None


def _require_no_others(files: Sequence[Path], masks: Sequence[Path], suffix: str) -> None:
    """Raise DatasetCorruptError for a file that is not one of pairs such as NAME and NAME_mask."""
    images = {path.with_name(path.stem[: -len(suffix)]) for path in masks}
    others = [f for f in files if f not in set(masks) and f.with_suffix("") not in images]
    if not others:
        return
    first = others[0]
    problem = f"mask {first.stem}{suffix}.*, and is not the mask of an image"
    if first.stem.endswith(suffix):
        problem = f"image {first.stem.removesuffix(suffix)}.*"
    beside = f"{counted(len(others), 'such file')} beside {counted(len(masks), 'pair')}"
    raise DatasetCorruptError(
        f"{first}: has no {problem} ({beside})",
        "give each image one mask of this name: join several masks of an image into one, and move "
        "away what has no partner",
    )
