"""Recognise the names that people give to splits: train, Training, seg_train, valid, dev, …"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["UNDERSTOOD", "held_out_names", "split_of", "splits_among"]

WORDS = {
    "train": r"tra?in(ing|val)?|trn",
    "val": r"val(id|idation)?|dev(el|elopment)?",
    "test": r"te?st(ing)?|holdout|heldout",
    "eval": r"eval(uation)?",  # a test split, or a val split beside one
}
FILLERS = r"sets?|data(sets?)?|images?|imgs?|pictures?|photos?|splits?|folders?|dir|the|my|of|for"
UNDERSTOOD = (
    "train, training, train_set; val, valid, validation, dev; test, testing, eval, holdout"
)


def split_of(name: str) -> tuple[str, str]:
    """Return the split that a name means, or "", and the other words of the name.

    >>> split_of("seg_train"), split_of("TestSet"), split_of("bullet train"), split_of("cat")
    (('train', 'seg'), ('test', ''), ('train', 'bullet'), ('', 'cat'))
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = re.findall(r"[^\W\d_]+", spaced)
    found, others = set(), []
    for word in words:
        split = _split_of_word(word)
        if split:
            found.add(split)
        elif not re.fullmatch(FILLERS, word):
            others.append(word)
    return (found.pop() if len(found) == 1 else ""), " ".join(others)


def held_out_names(names: Iterable[str]) -> list[str]:
    """Return the names such as "holdout": here the test split, elsewhere often another one."""
    return [name for name in names if split_of(name)[0] == "test" and "out" in name.lower()]


def _split_of_word(word: str) -> str:
    for split, pattern in WORDS.items():
        if re.fullmatch(rf"({pattern})({FILLERS})?", word):
            return split
    return ""


def splits_among(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names that stand for splits, by split: train, val and test.

    A name with other words, such as "seg_train", counts only if another split has the same words.
    """
    meant: dict[str, dict[str, list[str]]] = {}
    for name in names:
        split, others = split_of(name)
        if split:
            meant.setdefault(others, {}).setdefault(split, []).append(name)
    related = [found for others, found in meant.items() if not others or len(found) > 1]
    result: dict[str, list[str]] = {}
    for found in related:
        for split, same in found.items():
            result.setdefault(split, []).extend(same)
    if evaluated := result.pop("eval", None):
        result.setdefault("val" if "test" in result else "test", []).extend(evaluated)
    return {split: result[split] for split in ("train", "val", "test") if split in result}
