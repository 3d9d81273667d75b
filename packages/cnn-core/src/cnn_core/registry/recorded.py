"""Open a run, and update the recorded names of its model and dataset."""

from __future__ import annotations

import os
from dataclasses import replace

from cnn_core.registry.catalogue import datasets, models
from cnn_core.registry.names import recorded_name
from cnn_core.runs.run import Run

__all__ = ["open_run"]


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run directory, and check that the plugins of its model and dataset are installed.

    Raises:
        UsageError: the directory does not exist.
        PluginError: the model or the dataset is from a plugin that is not installed.
        RunError: a required file is missing or broken.
    """
    run = Run.open(path)
    origins = run.environment().get("origins")
    recorded = origins if isinstance(origins, dict) else {}
    model, data = (
        recorded_name(catalogue, getattr(run.recipe, key), recorded.get(key), run.path)
        for key, catalogue in (("model", models()), ("data", datasets()))
    )
    return replace(run, recipe=replace(run.recipe, model=model, data=data))
