"""Tasks: what a network is trained to do, and how it is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cnn_core.tasks.classification import Loss, Metric
    from cnn_core.training.recipe import Recipe

__all__ = ["SCORES", "loss_of", "metrics_of"]

SCORES = {"classification": "top1", "segmentation": "miou"}  # what chooses the weights to keep


def metrics_of(task: str, num_classes: int, topk: int = 0) -> dict[str, Metric]:
    """Return fresh metrics of a task by name: those of plugins; for images top-k as well.

    Raises:
        UsageError: k is larger than the number of classes.
    """
    from cnn_core import registry
    from cnn_core.tasks.classification import top_k

    found: dict[str, Metric] = {
        name: registry.resolve(entry)(num_classes)
        for name, entry in registry.metrics()
        if entry.spec.task == task
    }
    return {**found, **top_k(num_classes, topk)} if task == "classification" else found


def loss_of(task: str, recipe: Recipe) -> Loss:
    """Return the loss that the recipe names for a task, mean over the batch."""
    if task == "segmentation":
        from cnn_core.tasks.segmentation import loss_function
    else:
        from cnn_core.tasks.classification import loss_function
    return loss_function(recipe)
