"""Find masks that look inverted: object and background have changed places in a few of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from cnn_core.data.augment import IGNORED
from cnn_core.data.mask_image import MaskFacts
from cnn_core.data.readers.mask_classes import Classes
from cnn_core.data.readers.mask_survey import Survey
from cnn_core.text import printable

__all__ = ["inverted"]

LEAST = 5  # masks; with fewer, none is unusual
FAR = 0.2  # the share of the background is lower by at least this than in all other masks
NEAR = 0.1  # of the shares of the other masks, the share of an inverted mask, inverted again


def inverted(found: Survey, classes: Classes) -> list[str]:
    """Return a line on masks of two classes that look inverted.

    They have at their edges what others have inside, and a share of it that would be that of the
    others if it were inverted.
    """
    numbers = classes.numbers
    if len(classes.names) != 2:
        return []
    masks = [mask for mask in found.masks if numbers.get(mask.rim, IGNORED) != IGNORED]
    rims = Counter(numbers[mask.rim] for mask in masks)
    if len(masks) < LEAST or len(rims) < 2 or rims[0] == rims[1]:
        return []
    outside = rims.most_common(1)[0][0]
    usual = [_share(mask, numbers, outside) for mask in masks if numbers[mask.rim] == outside]
    odd = {
        mask.path: share
        for mask in masks
        if numbers[mask.rim] != outside
        and (share := _share(mask, numbers, outside)) <= min(usual) - FAR
        and min(usual) - NEAR <= 1 - share <= max(usual) + NEAR
    }
    if not odd:
        return []
    return [
        f"{len(odd):,} of {len(masks):,} masks may be inverted, such as {next(iter(odd))}: class "
        f"'{printable(classes.names[outside])}' has {_range(odd.values())} of the pixels there, "
        f"but {_range(usual)} in the other masks"
    ]


def _range(shares: Collection[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _share(mask: MaskFacts, numbers: Mapping[int, int], number: int) -> float:
    """Return the share of a mask's pixels of a class, of those that are not ignored."""
    counts = Counter[int]()
    for value, count in mask.counts.items():
        counts[numbers.get(value, IGNORED)] += count
    counts.pop(IGNORED, None)
    return counts[number] / max(counts.total(), 1)
