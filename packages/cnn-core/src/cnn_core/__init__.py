"""The core of cnnzoo, the zoo of famous CNNs.

All public names are lazy attributes: importing this package does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnn_core.lazy import lazy_names
from cnn_core.version import __version__ as __version__

if TYPE_CHECKING:
    from cnn_core.create import create_model
    from cnn_core.data import load_dataset
    from cnn_core.errors import ZooError
    from cnn_core.hookspecs import hookimpl
    from cnn_core.registry import get_spec, list_models
    from cnn_core.runs.recipe import recipes_in
    from cnn_core.specs import (
        Check,
        CommandSpec,
        DatasetSpec,
        MetricSpec,
        ModelSpec,
        Paper,
        RecipeSpec,
        ViewSpec,
        WeightsSpec,
    )
    from cnn_core.training import Predictor, evaluate, export, predict, train

__all__ = [
    "Check",
    "CommandSpec",
    "DatasetSpec",
    "MetricSpec",
    "ModelSpec",
    "Paper",
    "Predictor",
    "RecipeSpec",
    "ViewSpec",
    "WeightsSpec",
    "ZooError",
    "create_model",
    "evaluate",
    "export",
    "get_spec",
    "hookimpl",
    "list_models",
    "load_dataset",
    "predict",
    "recipes_in",
    "train",
]

__getattr__: Callable[[str], Any] = lazy_names(
    __name__,
    {
        "cnn_core.create": ("create_model",),
        "cnn_core.data": ("load_dataset",),
        "cnn_core.errors": ("ZooError",),
        "cnn_core.hookspecs": ("hookimpl",),
        "cnn_core.registry": ("get_spec", "list_models"),
        "cnn_core.specs": (
            "Check",
            "CommandSpec",
            "DatasetSpec",
            "MetricSpec",
            "ModelSpec",
            "Paper",
            "RecipeSpec",
            "ViewSpec",
            "WeightsSpec",
        ),
        "cnn_core.training": ("Predictor", "evaluate", "export", "predict", "train"),
        "cnn_core.runs.recipe": ("recipes_in",),
    },
)
