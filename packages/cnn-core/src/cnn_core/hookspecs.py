"""The extension points of cnnzoo: hooks that plugins implement.

Providers return specs; observers return nothing. A plugin is a module that an entry point of the
group "cnnzoo" names. It contains functions decorated with `@cnn_core.hookimpl`:

    [project.entry-points.cnnzoo]
    squeezenet = "cnn_arch_squeezenet.plugin"
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from cnn_core.specs import (
    Check,
    CommandSpec,
    DatasetSpec,
    MetricSpec,
    ModelSpec,
    RecipeSpec,
    ViewSpec,
    WeightsSpec,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from cnn_core.runs.recipe import Recipe
    from cnn_core.runs.run import Run

hookspec: pluggy.HookspecMarker = pluggy.HookspecMarker("cnnzoo")
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker("cnnzoo")


# Providers


@hookspec
def cnnzoo_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """Return the architectures."""


@hookspec
def cnnzoo_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """Return the datasets."""


@hookspec
def cnnzoo_recipes() -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
    """Return the recipes: a model, a dataset, hyperparameters and the measured result."""


@hookspec
def cnnzoo_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """Return the metrics, each for one task."""


@hookspec
def cnnzoo_views() -> Iterable[ViewSpec]:  # type: ignore[empty-body]
    """Return the figures of a run."""


@hookspec
def cnnzoo_weights() -> Iterable[WeightsSpec]:  # type: ignore[empty-body]
    """Return the pretrained weights."""


@hookspec
def cnnzoo_commands() -> Iterable[CommandSpec]:  # type: ignore[empty-body]
    """Return the commands, without importing them."""


@hookspec
def cnnzoo_doctor() -> Iterable[Check]:  # type: ignore[empty-body]
    """Return the plugin's own health checks."""


# Observers of training


@hookspec
def cnnzoo_fit_start(run: Run, model: nn.Module, recipe: Recipe) -> None:
    """Called when training starts or resumes."""


@hookspec
def cnnzoo_step_end(run: Run, epoch: int, step: int, loss: torch.Tensor) -> None:
    """Called after an optimizer step; `loss` is a detached scalar on the training device."""


@hookspec
def cnnzoo_epoch_end(run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
    """Called after an epoch; `metrics` is its line in metrics.jsonl."""


@hookspec
def cnnzoo_checkpoint(run: Run, epoch: int) -> None:
    """Called once a checkpoint with the full training state after `epoch` is on disk."""


@hookspec
def cnnzoo_fit_end(run: Run, metrics: Mapping[str, float]) -> None:
    """Called when training ends; `metrics` are those of the saved weights, `test/…` or `val/…`."""


# The report


@hookspec
def cnnzoo_report_section(run: Run) -> str:  # type: ignore[empty-body]
    """Return a section of the report as HTML, which begins with <section> and an <h2>."""
