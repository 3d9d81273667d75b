"""The losses and metrics of the tasks: classification, segmentation and multilabel.

Each task has a module of its name, and they all have the same functions: `loss_function`,
`extra_metrics`, `monitored`, `collapsed`, `chosen_thresholds` and `probabilities`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cnn_core.errors import PluginError, UsageError
from cnn_core.text import did_you_mean, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cnn_core.runs.recipe import Recipe
    from cnn_core.specs import MetricSpec
    from cnn_core.tasks.classification import Loss, Metric

__all__ = [
    "NETWORKS",
    "SCORES",
    "collapse_of",
    "loss_of",
    "may_have_thresholds",
    "metrics_of",
    "probabilities_of",
    "score_of",
    "thresholds_of",
]

SCORES = {  # the metrics monitored by default
    "classification": "top1",
    "segmentation": "miou",
    "multilabel": "map",
}
NETWORKS = {  # the task of the networks that do each task
    "classification": "classification",
    "segmentation": "segmentation",
    "multilabel": "classification",
}
RANKED = {"auc", "map"}  # need the scores of all images at once: not computed in training


def _task(task: str) -> Any:
    return import_module(f"cnn_core.tasks.{task}")


def metrics_of(
    task: str,
    num_classes: int,
    topk: int = 0,
    evaluated: str = "",
    *,
    classes: Sequence[str] = (),
    thresholds: Sequence[float] = (),
    background: int | None = 0,
) -> dict[str, Metric]:
    """Return new metric objects for a task by name: all registered ones, and the task's own.

    Metrics marked `eval_only` are too slow for every epoch: they are left out unless `evaluated`
    names the dataset of an evaluation. `topk` is for classification. `classes` name the metrics of
    single classes, by default after their numbers. `thresholds` are those of trained weights. A
    plugin's metric that cannot be built is reported and left out.
    A metric that has the attribute `classes` or `background` gets the names of the classes, or the
    number of the background, if there is one.

    Raises:
        UsageError: k is larger than the number of classes.
    """
    from cnn_core import registry
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
    extra: dict[str, Metric] = _task(task).extra_metrics(
        num_classes, topk, classes=classes, thresholds=thresholds, evaluated=bool(evaluated)
    )
    return {**found, **extra}


def _wanted(spec: MetricSpec, evaluated: str) -> bool:
    """Return whether to compute a metric now: in every epoch, or only in an evaluation."""
    from cnn_core.registry.names import base_name

    if not spec.eval_only:
        return True
    return bool(evaluated) and (not spec.data or base_name(evaluated) in spec.data)


def loss_of(task: str, recipe: Recipe) -> Loss:
    """Return the recipe's loss function for a task."""
    loss: Loss = _task(task).loss_function(recipe)
    return loss


def collapse_of(task: str, sums: Mapping[str, Tensor]) -> int | None:
    """Return the only class that a network predicts though there are others, or None.

    `sums` are those of all metrics of the task, over a split. For multilabel, -1 means that no
    class was predicted for any image.
    """
    found: int | None = _task(task).collapsed(sums)
    return found


def may_have_thresholds(task: str, recipe: Recipe) -> bool:
    """Return whether thresholds are to be chosen: for multilabel, unless switched off."""
    return (recipe.threshold or ("f1" if task == "multilabel" else "none")) != "none"


def thresholds_of(task: str, sums: Mapping[str, Tensor], recipe: Recipe) -> tuple[float, ...]:
    """Return the thresholds that are best on a split, one for each class or for class 1 of two.

    `sums` are those of the metrics of an evaluation. () if there are none to choose.
    """
    found: tuple[float, ...] = _task(task).chosen_thresholds(sums, recipe.threshold)
    return found


def probabilities_of(task: str, logits: Tensor) -> Tensor:
    """Return the probabilities of the classes, N x classes, for logits."""
    found: Tensor = _task(task).probabilities(logits)
    return found


def score_of(task: str, name: str, topk: str, classes: Sequence[str] = ()) -> tuple[str, bool]:
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
    known = {"loss": False, **better, **_task(task).monitored(classes, topk)}
    if split == "train":
        known = {name: higher for name, higher in known.items() if name not in RANKED}
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
