"""Divide samples at random: class by class, and keeping groups together.

A group is what several images have in common, such as a patient, a film or a place. Images of one
group are so alike that a network that was trained on some of them recognises the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fold_numbers", "held_out"]


def held_out(labels: Tensor, fraction: float, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return which samples to hold out, bool N: `fraction` of each class, chosen by `seed`.

    `labels` are classes, int64 N; give zeros to ignore classes. Samples with the same number in
    `groups`, int64 N, are held out together; the fraction is then as near as the groups allow.
    """
    if groups is not None and fraction > 0:
        return _parts(labels, groups, (1 - fraction, fraction), seed) == 1
    held = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    # Class by class: otherwise a rare class could be missing from one of the parts.
    for members in _by_class(labels):
        order = torch.randperm(len(members), generator=generator)
        held[members[order[: round(fraction * len(members))]]] = True
    return held


def fold_numbers(labels: Tensor, folds: int, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return the number of each sample's fold, int64 N, from 0; arguments are as in `held_out`.

    Without groups, folds differ by at most one sample, overall and in each class.
    """
    if groups is not None:
        return _parts(labels, groups, (1.0,) * folds, seed)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [
        members[torch.randperm(len(members), generator=generator)] for members in _by_class(labels)
    ]
    # Deal the classes out like cards: each class continues at the fold after the last one dealt.
    numbers = torch.empty(len(labels), dtype=torch.int64)
    numbers[torch.cat(shuffled)] = torch.arange(len(labels)) % folds
    return numbers


def _by_class(labels: Tensor) -> list[Tensor]:
    """Return the indices of the samples of each class."""
    counts = labels.unique(return_counts=True)[1]
    return list(labels.argsort(stable=True).split(counts.tolist()))


def _parts(labels: Tensor, groups: Tensor, shares: tuple[float, ...], seed: int) -> Tensor:
    """Divide whole groups into parts of the sizes `shares`; return the part of each sample, N.

    The largest groups come first, each to the part in which the classes fit best: the choice
    minimises the sum over parts and classes of n^2 / share, where n is the part's fraction of the
    class. That sum is lowest where each part has its share of every class.
    """
    number, label = (values.unique(return_inverse=True)[1] for values in (groups, labels))
    counts = torch.zeros(int(number.max()) + 1, int(label.max()) + 1, dtype=torch.float64)
    counts.index_put_((number, label), torch.ones(len(labels)).double(), accumulate=True)
    fractions = counts / counts.sum(0)
    # Shuffled before the stable sort, so that the seed decides among groups of equal size.
    order = torch.randperm(len(counts), generator=torch.Generator().manual_seed(seed))
    order = order[counts.sum(1)[order].argsort(descending=True, stable=True)]
    filled = torch.zeros(len(shares), counts.shape[1], dtype=torch.float64)
    part = torch.empty(len(counts), dtype=torch.int64)
    for group in order.tolist():
        own = fractions[group]
        growth = ((2 * filled + own) * own).sum(1) / torch.tensor(shares).double()
        part[group] = growth.argmin()
        filled[part[group]] += own
    return part[number]
