"""The losses and metrics of the two tasks, classification and segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnn_core.errors import PluginError, UsageError
from cnn_core.text import did_you_mean, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnn_core.runs.recipe import Recipe
    from cnn_core.specs import MetricSpec
    from cnn_core.tasks.classification import Loss, Metric

__all__ = ["SCORES", "loss_of", "metrics_of", "score_of"]

SCORES = {"classification": "top1", "segmentation": "miou"}  # the metrics monitored by default


def metrics_of(
    task: str,
    num_classes: int,
    topk: int = 0,
    evaluated: str = "",
    classes: Sequence[str] = (),
    background: int | None = 0,
) -> dict[str, Metric]:
    """Return new metric objects for a task by name: all registered ones, and top-k accuracy.

    Metrics marked `eval_only` are too slow for every epoch: they are left out unless `evaluated`
    names the dataset of an evaluation. Only classification has top-k accuracy. A plugin's metric
    that cannot be built is reported and left out. A metric that has the attribute `classes` or
    `background` gets the names of the classes, or the number of the background, if there is one.

    Raises:
        UsageError: k is larger than the number of classes.
    """
    from cnn_core import registry
    from cnn_core.tasks.classification import top_k
    from cnn_core.tasks.plugin_metrics import build

    built = {
        name: build(name, entry, num_classes)
        for name, entry in registry.metrics()
        if entry.spec.task == task and _wanted(entry.spec, evaluated)
    }
    found = {name: metric for name, metric in built.items() if metric is not None}
    for metric in found.values():
        for key, value in (("classes", tuple(classes)), ("background", background)):
            if hasattr(metric, key) and classes:
                setattr(metric, key, value)
    return {**found, **top_k(num_classes, topk)} if task == "classification" else found


def _wanted(spec: MetricSpec, evaluated: str) -> bool:
    """Return whether to compute a metric now: in every epoch, or only in an evaluation."""
    from cnn_core.registry.names import base_name

    if not spec.eval_only:
        return True
    return bool(evaluated) and (not spec.data or base_name(evaluated) in spec.data)


def loss_of(task: str, recipe: Recipe) -> Loss:
    """Return the recipe's loss function for a task."""
    if task == "segmentation":
        from cnn_core.tasks.segmentation import loss_function
    else:
        from cnn_core.tasks.classification import loss_function
    return loss_function(recipe)


def score_of(task: str, name: str, topk: str) -> tuple[str, bool]:
    """Return the name of the metric that selects the best epoch, and whether higher is better.

    `name` is the recipe's monitor: "val/loss", "val/top1", …, or "" for the task's default;
    `topk` is the name of the recipe's top-k accuracy, such as "top5".

    Raises:
        UsageError: there is no such metric.
        PluginError: the metric belongs to a plugin and cannot be built.
    """
    from cnn_core import registry
    from cnn_core.tasks.plugin_metrics import fault_of

    split, _, metric = (name or f"val/{SCORES[task]}").partition("/")
    # Metrics marked `eval_only` are not computed in any epoch.
    entries = {n: e for n, e in registry.metrics() if e.spec.task == task and not e.spec.eval_only}
    better = {n: entry.spec.higher_is_better for n, entry in entries.items()}
    known = {"loss": False, **better, **({topk: True} if task == "classification" else {})}
    if split not in ("val", "train") or metric not in known:
        nearest = did_you_mean(name, [f"val/{metric}" for metric in known])
        raise UsageError(
            f"monitor = '{printable(name)}'{nearest}",
            f"one of {', '.join(f'val/{m}' for m in known)}",
        )
    # Before training, since a metric that was left out would never select an epoch.
    if metric in entries and (fault := fault_of(metric, entries[metric])):
        raise PluginError(
            f"monitor = '{name}': {fault}", "fix it, or monitor another metric: --set monitor=…"
        )
    return f"{split}/{metric}", known[metric]
