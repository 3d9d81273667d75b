"""Learning-rate schedules."""

from __future__ import annotations

import itertools
import math

from cnn_core.runs.recipe import Recipe

__all__ = ["OPEN_ENDED", "learning_rate"]

OPEN_ENDED = ("constant", "step", "multi_step")  # do not depend on the number of epochs

START, END = 1 / 25, 1 / 250_000  # one_cycle: fractions of the peak learning rate, as in torch


def learning_rate(recipe: Recipe, time: float) -> float:
    """Return the learning rate after `time` epochs, which need not be a whole number.

    During `head_epochs` it is `head_lr`. The schedule starts after them: during warm-up the rate
    rises linearly from 0 to `lr` over `warmup_epochs`. After that, "cosine" (Loshchilov and Hutter
    2017, arXiv:1608.03983, Eq. 5, without restarts) and "polynomial" fall to `final_lr`.
    "one_cycle" (Smith and Topin 2018, arXiv:1708.07120) rises from lr / 25 to `lr`, then falls to
    lr / 250,000, both along a cosine. "step" and "multi_step" multiply `lr` by `step_factors` at
    the given epochs, which count from the start of training.
    """
    lr, warmup, head = recipe.lr, recipe.warmup_epochs, recipe.head_epochs
    if time < head:
        return recipe.head_lr or lr
    if time - head < warmup:
        return lr * (time - head) / warmup
    progress = min((time - head - warmup) / max(recipe.epochs - head - warmup, 1e-12), 1.0)
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
    """Interpolate from `first` to `last` along half a cosine; `progress` is in [0, 1]."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2
