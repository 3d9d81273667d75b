"""Select the best epoch by the monitored metric. Does not import torch."""

from __future__ import annotations

import math

from cnn_core import registry
from cnn_core.runs.run import Run
from cnn_core.tasks import SCORES

__all__ = ["best_epoch", "is_better", "monitored_metric"]


def is_better(score: float, best: float | None, higher_is_better: bool) -> bool:
    """Whether `score` is at least as good as `best`, the best score so far.

    An equal score counts as better, because the later epoch was trained longer and at a lower
    learning rate. NaN is never better.
    """
    if math.isnan(score) or best is None:
        return not math.isnan(score)
    return score >= best if higher_is_better else score <= best


def monitored_metric(run: Run) -> str:
    """Return the metric that selected a run's best epoch, such as "val/top1"; "" if none."""
    # Without `monitor` the default depends on the task; the history shows which one was used.
    names = [run.recipe.monitor] if run.recipe.monitor else [f"val/{m}" for m in SCORES.values()]
    history = run.history()
    return next((name for name in names if any(name in line for line in history)), "")


def best_epoch(run: Run) -> int:
    """Return the epoch of the saved weights; 0 if no epoch has finished.

    Without a monitored metric it is the last epoch.
    """
    for line in run.metrics():
        # The line of the test split contains the epoch of the weights that were evaluated.
        if any(key.startswith("test/") for key in line):
            return int(line["epoch"])
    name, epoch, best = monitored_metric(run), 0, None
    metric = name.partition("/")[2]
    directions = {n: entry.spec.higher_is_better for n, entry in registry.metrics()}
    # The registry has neither the loss nor top-k accuracy; of these only the loss should fall.
    higher_is_better = directions.get(metric, metric != "loss")
    for line in run.history():
        # Values that are not finite are not written.
        score = line.get(name, math.nan if name else None)
        if score is None or is_better(score, best, higher_is_better):
            epoch, best = int(line["epoch"]), score
    return epoch
