"""Choose the epoch whose weights are kept, by a number of it. No torch here."""

from __future__ import annotations

import math

from cnn_core import registry
from cnn_core.runs.run import Run
from cnn_core.tasks import SCORES

__all__ = ["better", "kept_epoch", "score_name"]


def better(score: float, best: float | None, more: bool) -> bool:
    """Whether a score is the best so far; with `more`, higher scores are better.

    Of equal scores the later is better: it was trained longer, at a lower rate. A NaN never is.
    """
    if math.isnan(score) or best is None:
        return not math.isnan(score)
    return score >= best if more else score <= best


def score_name(run: Run) -> str:
    """Return the name of the number that chose a run's weights, as "val/top1"; "" for none."""
    # Without a monitor each task has its own score; the history shows which one was used.
    names = [run.recipe.monitor] if run.recipe.monitor else [f"val/{m}" for m in SCORES.values()]
    history = run.history()
    return next((name for name in names if any(name in line for line in history)), "")


def kept_epoch(run: Run) -> int:
    """Return the epoch whose weights are kept; 0 before the first has ended.

    Without validation it is the last.
    """
    for line in run.metrics():
        # The test split was measured with the kept weights, and its line has their epoch.
        if "test/loss" in line:
            return int(line["epoch"])
    name, kept, best = score_name(run), 0, None
    metric = name.partition("/")[2]
    directions = {n: entry.spec.higher_is_better for n, entry in registry.metrics()}
    # The catalogue has neither the loss nor top-k; of these only the loss should fall.
    more = directions.get(metric, metric != "loss")
    for line in run.history():
        score = line.get(name)
        if score is None or better(score, best, more):
            kept, best = int(line["epoch"]), score
    return kept
