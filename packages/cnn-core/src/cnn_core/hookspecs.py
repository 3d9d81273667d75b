"""The extension points of cnnzoo: hooks that plugins implement.

Providers return specs; observers return nothing. A plugin is a module, named by an entry
point of the group "cnnzoo", with functions marked `@cnn_core.hookimpl`:

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
    """Return the dataset adapters."""


@hookspec
def cnnzoo_recipes() -> Iterable[RecipeSpec]:  # type: ignore[empty-body]
    """Return the recipes: model x dataset x hyper-parameters, with the result claimed."""


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
    """Training starts, or goes on after a resume."""


@hookspec
def cnnzoo_step_end(run: Run, epoch: int, step: int, loss: torch.Tensor) -> None:
    """An optimizer step was taken; `loss` is a detached scalar on the training device."""


@hookspec
def cnnzoo_epoch_end(run: Run, epoch: int, metrics: Mapping[str, float]) -> None:
    """An epoch ended; `metrics` is its line of metrics.jsonl."""


@hookspec
def cnnzoo_checkpoint(run: Run, epoch: int) -> None:
    """The full training state is on disk, up to and including `epoch`."""


@hookspec
def cnnzoo_fit_end(run: Run, metrics: Mapping[str, float]) -> None:
    """Training ended; `metrics` are those of the kept weights on the test split."""


# The report


@hookspec
def cnnzoo_report_section(run: Run) -> str:  # type: ignore[empty-body]
    """Return a section of the report as HTML: it begins with <section> and an <h2>."""
