"""Pair names of images with names of masks by one rule, such as NAME with NAME_mask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["AFFIXES", "Rule", "best_rule", "partner"]

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
