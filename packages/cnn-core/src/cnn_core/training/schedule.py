"""Learning rates over time."""

from __future__ import annotations

import itertools
import math

from cnn_core.runs.recipe import Recipe

__all__ = ["learning_rate"]

START, END = 1 / 25, 1 / 250_000  # of one cycle, as parts of its peak: torch's defaults


def learning_rate(recipe: Recipe, time: float) -> float:
    """Return the learning rate after `time` epochs, which may be a fraction.

    Warm-up rises linearly from 0 to `lr` over `warmup_epochs`. Over what remains "cosine"
    (Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5, without restarts) and "polynomial" fall
    to `final_lr`, and "one_cycle" (Smith and Topin 2018, arXiv:1708.07120) rises from lr / 25, and
    falls, both as cosines. "step" and "multi_step" multiply by factors at epochs.
    """
    lr, begin = recipe.lr, recipe.warmup_epochs
    if time < begin:
        return lr * time / begin
    progress = min((time - begin) / max(recipe.epochs - begin, 1e-12), 1.0)
    match recipe.schedule:
        case "step":
            return lr * math.pow(recipe.step_factors[0], time // recipe.step_every)
        case "multi_step":
            factors = itertools.cycle(recipe.step_factors)
            steps = zip(recipe.step_epochs, factors, strict=False)
            return lr * math.prod(factor for epoch, factor in steps if time >= epoch)
        case "cosine":
            return _cosine(lr, recipe.final_lr, progress)
        case "polynomial":
            return recipe.final_lr + (lr - recipe.final_lr) * math.pow(1 - progress, recipe.power)
        case "one_cycle" if progress < recipe.rise:
            return _cosine(lr * START, lr, progress / recipe.rise)
        case "one_cycle":
            return _cosine(lr, lr * END, (progress - recipe.rise) / max(1 - recipe.rise, 1e-12))
    return lr


def _cosine(first: float, last: float, progress: float) -> float:
    """Return the rate after `progress` from 0 to 1 along half a cosine from `first` to `last`."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
