"""Select the best epoch by the monitored metric. Does not import torch."""

from __future__ import annotations

import math

from cnn_core import registry
from cnn_core.runs.run import Run
from cnn_core.tasks import SCORES

__all__ = ["best_epoch", "higher_is_better", "is_better", "monitored_metric"]


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
    # The last line contains the epoch of the weights that were evaluated.
    if final := run.final_metrics():
        return int(final["epoch"])
    name, epoch, best = monitored_metric(run), 0, None
    rising, history = higher_is_better(name), run.history()
    # Neither non-finite nor undefined values are written.
    if not any(name in line for line in history):
        return int(history[-1]["epoch"]) if history else 0
    for line in history:
        if name in line and is_better(line[name], best, rising):
            epoch, best = int(line["epoch"]), line[name]
    return epoch


def higher_is_better(name: str) -> bool:
    """Whether a higher value of a metric such as "val/top1" is better."""
    metric = name.partition("/")[2]
    directions = {n: entry.spec.higher_is_better for n, entry in registry.metrics()}
    # The registry has neither the loss nor top-k accuracy; of these only the loss should fall.
    return directions.get(metric, metric != "loss")
