"""A run: the directory that contains all files of one training run.

recipe.toml           all hyperparameters, including defaults
environment.json      versions, plugins, hardware, location of the dataset
metrics.jsonl         one line per epoch, then one for the saved weights on the test split
metrics.csv           the same values as metrics.jsonl
weights.safetensors   the saved weights, with the metadata needed to build the model
state/                checkpoints, which hold the full training state
figures/              figures from cnn-viz
report.html           report from cnn-viz

This module does not import torch.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_core.errors import RunError, UsageError, ZooError
from cnn_core.files import expanded, new_folder, sweep, write_new, write_text
from cnn_core.runs.destinations import folder_of, require_writable
from cnn_core.runs.recipe import Recipe, read_recipe

__all__ = ["Run", "default_name"]


@dataclass(frozen=True)
class Run:
    """A run directory and its recipe."""

    path: Path
    recipe: Recipe

    @property
    def weights(self) -> Path:
        """The path of the saved weights."""
        return self.path / "weights.safetensors"

    @property
    def state(self) -> Path:
        """The folder that contains the checkpoints."""
        return self.path / "state"

    @property
    def figures(self) -> Path:
        """The folder for figures."""
        return self.path / "figures"

    @property
    def finished(self) -> bool:
        """Whether the run is complete, including the evaluation of its saved weights."""
        return bool(self.final_metrics())

    @staticmethod
    def require_free(path: Path) -> None:
        """Raise UsageError unless a run directory can be created at `path`."""
        if path.is_dir() and any(path.iterdir()):
            raise UsageError(
                f"{path}: is not empty", f"cnnzoo train --resume {path}, or use another --out"
            )
        require_writable(path.parent, path)

    @classmethod
    def create(cls, recipe: Recipe, environment: Mapping[str, Any], out: Path | None) -> Run:
        """Create a run directory at `out`, or by default at runs/<model>-<dataset>-<time>.

        Raises:
            UsageError: `out` exists and is not empty, or cannot be written.
            ZooError: the directory cannot be written.
        """
        path = out if out is not None else _default_path(recipe)
        try:
            cls.require_free(path)
            folder_of(path)
            files = {
                "recipe.toml": recipe.to_toml(),
                "environment.json": json.dumps(environment, indent=2) + "\n",
                "metrics.jsonl": "",
                "metrics.csv": "",
            }
            # Remove temporary folders left by killed processes.
            sweep(path.parent, f".{path.name}.*.tmp")
            with new_folder(path) as folder:
                for name, text in files.items():
                    write_new(folder / name, text.encode())
                (folder / "state").mkdir()
            run = cls(path, recipe)
        except OSError as error:
            reason = error.strerror or error
            raise ZooError(
                f"cannot write the run {path}: {reason}", "choose another --out"
            ) from error
        return run

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open a run directory without checking its plugins, as `registry.recorded.open_run` does.

        Raises:
            UsageError: the directory does not exist.
            RunError: a required file is missing or invalid. The message names it.
        """
        folder = expanded(path)
        if not folder.is_dir():
            what = "a file, not a run directory" if folder.exists() else "no such run directory"
            raise UsageError(f"{folder}: {what}", "ls runs/")
        if not any((folder / name).exists() for name in (*_REQUIRED, "state")):
            raise UsageError(f"{folder}: not a run: recipe.toml is missing", "ls runs/")
        # Not metrics.csv, which is a copy, and not state/, which only resuming needs.
        for name in _REQUIRED:
            if not (folder / name).is_file():
                raise RunError(
                    f"{folder}: incomplete run: {name} is missing",
                    _RESTORE,
                )
        try:
            spec = read_recipe(folder / "recipe.toml")
        except UsageError as error:
            # The user's command is right: exit 3, for a broken file, and not 2.
            raise RunError(error.message, error.hint) from error
        # Before there was `split_seed`, the training seed chose the validation images.
        settings = {"split_seed": spec.settings.get("seed", 0), **spec.settings}
        return cls(folder, Recipe.from_settings(settings))

    def environment(self) -> dict[str, Any]:
        """Return the content of environment.json."""
        return self._read_json(self.path / "environment.json")

    def metrics(self) -> list[dict[str, float]]:
        """Return the lines of metrics.jsonl."""
        path = self.path / "metrics.jsonl"
        try:
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}: not valid JSON Lines: {error}", _RESTORE) from error
        if not all(isinstance(line, dict) for line in lines):
            raise RunError(f"{path}: every line must be a JSON object", _RESTORE)
        return lines

    def history(self) -> list[dict[str, float]]:
        """Return the lines of metrics.jsonl for epochs, without the line for the test split."""
        return [line for line in self.metrics() if "train/loss" in line]

    def test_metrics(self) -> dict[str, float]:
        """Return the metrics on the test split, such as "test/top1"; {} if there are none."""
        return {k: v for k, v in self.final_metrics().items() if k.startswith("test/")}

    def final_metrics(self) -> dict[str, float]:
        """Return the last line of a finished run, else {}: the metrics of the saved weights.

        They were measured on the test split or, with `evaluate_on` "val", the validation images.
        """
        for line in reversed(self.metrics()):
            if not any(key == "lr" or key.startswith("train/") for key in line):
                return line
        return {}

    def write_recipe(self) -> None:
        """Replace recipe.toml atomically by the recipe of this object."""
        write_text(self.path / "recipe.toml", self.recipe.to_toml())

    def write_metrics(self, lines: list[dict[str, float]]) -> None:
        """Replace metrics.jsonl and metrics.csv, each atomically, without values not finite."""
        lines = [{k: v for k, v in line.items() if math.isfinite(v)} for line in lines]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        table, columns = io.StringIO(), {key: None for line in lines for key in line}
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        # Replace the files, because an appended line can be cut off. Write the .jsonl last: it
        # decides whether the run is finished, and then both files must be complete.
        write_text(self.path / "metrics.csv", table.getvalue())
        write_text(self.path / "metrics.jsonl", text)

    def _read_json(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}: not valid JSON: {error}", _RESTORE) from error
        if not isinstance(content, dict):
            raise RunError(f"{path}: expected a JSON object", _RESTORE)
        return content


_REQUIRED = ("recipe.toml", "environment.json", "metrics.jsonl")
_RESTORE = "restore it from a backup, or train again: cnnzoo train MODEL --data DATASET"


def default_name(recipe: Recipe) -> str:
    """Return "<model>-<dataset>", a file name.

    For a dataset with a path, use only the last component. Replace characters other than letters,
    digits and underscores by dashes.
    """
    # A file name has at most 255 bytes. The end of a path tells more than its beginning.
    words = (recipe.model.rpartition("/")[2], re.split(r"[/\\]", recipe.data)[-1])
    return "-".join(
        re.sub(r"[^\w-]+", "-", word, flags=re.ASCII).strip("-")[-60:] for word in words
    )


def _default_path(recipe: Recipe) -> Path:
    """Return runs/<model>-<dataset>-<time>, with a number appended if that exists."""
    stem = f"{default_name(recipe)}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / stem, 2
    while path.exists():
        path, number = Path("runs") / f"{stem}-{number}", number + 1
    return path
