"""Where the weights of a report come from: the run that trained them, or their publisher."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from cnn_core.registry.names import base_name
from cnn_core.training import Run
from cnn_core.training.selection import best_epoch
from cnn_core.weights.published import file_digest
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.results.metrics import top_k_accuracy

__all__ = [
    "NO_TRAINING",
    "claims",
    "environment_rows",
    "hardware",
    "origin_of",
    "origin_rows",
    "training_data",
]

TOP_K = re.compile(r"top(\d+)")
NO_TRAINING: dict[str, Any] = {
    "training": None,
    "epochs": [],
    "recipe": "",
    "environment": {},
    "reproduce": [],
}  # of weights without a run


def origin_of(view_inputs: ViewInputs) -> dict[str, Any]:
    """Return where the weights come from, as in report.json; unknown texts are empty."""
    weights, entry = view_inputs.weights, view_inputs.opened.entry
    assert weights.path is not None  # they were read from a file
    spec = None if entry is None else entry.spec
    trained_on = view_inputs.run.recipe.data if view_inputs.is_run else ""
    return {
        "name": view_inputs.path.absolute().name if spec is None else spec.name,
        "file": weights.path.name,
        "sha256": file_digest(weights.path),
        "trained_on": trained_on if spec is None else spec.data,
        "publisher": "" if spec is None else spec.source,
        "address": "" if spec is None else spec.url,
        "licence": "" if spec is None else spec.licence,
        "recipe": "" if spec is None else spec.recipe,
        "assumed": list(view_inputs.opened.notes),
    }


def origin_rows(origin: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the known parts of an origin with their labels, for display."""
    labels = {
        "name": "weights",
        "file": "file",
        "sha256": "SHA-256",
        "trained_on": "trained on",
        "licence": "licence",
        "publisher": "published at",
        "address": "address",
        "recipe": "training recipe",
    }
    rows = [(label, origin[key]) for key, label in labels.items() if origin[key]]
    return [*rows, *(("assumed", note) for note in origin["assumed"])]


def claims(view_inputs: ViewInputs, headline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each metric that the publisher claims beside the measured one, as fractions.

    `measured` is None for a metric that the report does not measure. `comparable` says whether
    the publisher measured on the same dataset.
    """
    entry = view_inputs.opened.entry
    if entry is None:
        return []
    same_data = base_name(view_inputs.recipe.data) == entry.spec.data
    return [
        {
            "metric": metric,
            "claimed": value,
            "measured": _measured(view_inputs, metric, headline),
            "comparable": same_data,
        }
        for metric, value in entry.spec.accuracy.items()
    ]


def _measured(view_inputs: ViewInputs, metric: str, headline: Mapping[str, Any]) -> float | None:
    """Return a metric on the test split: top-k accuracy, one of `headline`, or None for others."""
    if view_inputs.fault:
        return None
    if (found := TOP_K.fullmatch(metric)) and view_inputs.task == "classification":
        return top_k_accuracy(view_inputs.predictions, int(found[1]))
    return headline.get(metric)


def training_data(run: Run) -> dict[str, Any]:
    """Return the data of the report that only a run has."""
    recipe, history = run.recipe, run.history()
    return {
        "training": {
            "data": recipe.data,
            "epochs": len(history),
            "planned_epochs": recipe.epochs,
            "best_epoch": best_epoch(run),
            "seconds": sum(line.get("seconds", 0.0) for line in history),
            "seed": recipe.seed,
        },
        "epochs": history,
        "recipe": recipe.to_toml(),
        "environment": run.environment(),
        "reproduce": _commands(run),
    }


def hardware(environment: dict[str, Any]) -> str:
    """Return the device of the training, for the CPU with the number of threads."""
    device, threads = environment.get("device_name", "unknown"), environment.get("threads")
    if environment.get("device") != "cpu" or threads is None:
        return str(device)
    return f"{device}, {threads} {'thread' if threads == 1 else 'threads'}"


def environment_rows(environment: dict[str, Any]) -> dict[str, str]:
    """Return the contents of environment.json as text, by row name."""
    rows = {key.replace("_", " "): str(value) for key, value in environment.items()}
    rows["plugins"] = ", ".join(
        f"{name} {version}" for name, version in _distributions(environment)
    )
    if isinstance(command := environment.get("command"), list):
        rows["command"] = shlex.join(map(str, command))
    return rows


def _distributions(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the name and the version of each plugin's distribution."""
    return [
        (str(plugin["distribution"]), str(plugin["version"]))
        for plugin in environment.get("plugins") or []
        if isinstance(plugin, dict) and {"distribution", "version"} <= plugin.keys()
    ]


def _commands(run: Run) -> list[str]:
    """Return the commands that repeat the training run, given its recipe.toml."""
    environment = run.environment()
    requirements = [f"{name}=={version}" for name, version in _distributions(environment)]
    # Drop the local version, such as +cu128: the package index does not have it.
    torch = str(environment.get("torch", "")).partition("+")[0]
    requirements += [f"torch=={torch}"] if torch else []
    data_dir = ["--data-dir", "DIR"] if environment.get("data_dir") else []
    return [
        shlex.join(["pip", "install", *requirements]),
        shlex.join(["cnnzoo", "train", "--recipe", "recipe.toml", *data_dir]),
    ]
