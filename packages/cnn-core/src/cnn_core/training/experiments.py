"""Train several runs of one model in one call: cross-validation, and sweeps over recipe keys."""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_core.errors import NumericalError, Terminated, UsageError
from cnn_core.runs.ranges import Range, draw_cells
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run, default_name
from cnn_core.text import printable
from cnn_core.training.evaluation import evaluate
from cnn_core.training.selection import higher_is_better
from cnn_core.training.setup import find_recipe
from cnn_core.training.summary import Summary, score_name, summarised
from cnn_core.training.trainer import train
from cnn_core.training.tuning import Study

__all__ = ["Cell", "CrossValidation", "Sweep", "cross_validate", "sweep"]

ARGUMENTS = {"data_dir", "download", "device", "workers", "progress", "fit_memory"}  # of `train`
SEARCHES = ("", "random", "tpe")
Settings = Mapping[str, Any]
Grid = Mapping[str, Sequence[Any] | Range]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Finished runs that were evaluated on their validation images."""

    runs: tuple[Run, ...]

    @property
    def metrics(self) -> dict[str, Summary]:
        """The metrics of the saved weights on the validation images, over the runs."""
        finals = (run.final_metrics() for run in self.runs)
        return summarised({k: v for k, v in line.items() if k != "epoch"} for line in finals)


@dataclass(frozen=True, kw_only=True)
class CrossValidation(Runs):
    """The runs of a cross-validation, one per fold, in the folder `path`."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class Cell(Runs):
    """One combination of values of a sweep, with a run for each seed that did not diverge.

    `diverged` has the messages of those that did.
    """

    settings: Settings
    diverged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep, in the folder `path`; `chosen` has the best mean of `score`."""

    path: Path
    score: str
    cells: tuple[Cell, ...]
    chosen: Cell

    def test(self, **options: Any) -> dict[str, Summary]:
        """Evaluate the chosen runs on the test split; options are `data_dir` and `device`."""
        return summarised(evaluate(run, split="test", **options) for run in self.chosen.runs)


def cross_validate(
    model: str,
    data: str,
    *,
    folds: int = 5,
    recipe: str | None = None,
    out: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> CrossValidation:
    """Train once for each fold of the images of train and val, and validate on that fold.

    Each class is divided evenly, and groups of images stay together. The test split is not used.
    The runs are `out`/fold-1 and so on; `out` is runs/MODEL-DATASET-FOLDSfolds by default. The
    same call continues where an earlier one was interrupted. `settings` are recipe keys and
    arguments of `train`.

    Raises:
        UsageError: a key or value is invalid, or `out` has runs with another recipe.
        NumericalError: as for `train`.
    """
    arguments = _arguments(settings, {"fold", "validation", "evaluate_on"}, "the folds")
    if folds < 2:
        raise UsageError(f"folds = {folds}: expected at least 2")
    recipes = {
        f"fold-{n}": find_recipe(
            model, data, recipe, {**settings, "fold": f"{n}/{folds}", "evaluate_on": "val"}
        )
        for n in range(1, folds + 1)
    }
    path = _folder(out, recipes["fold-1"], f"{folds}folds")
    runs = tuple(_run(path / name, each, arguments) for name, each in recipes.items())
    return CrossValidation(path=path, runs=runs)


def sweep(
    model: str,
    data: str,
    grid: Grid,
    *,
    seeds: int = 1,
    random_cells: int = 0,
    samples: int = 0,
    search: str = "",
    recipe: str | None = None,
    out: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Sweep:
    """Train with all combinations of values, with several seeds; choose by the validation score.

    `grid` has the values of each recipe key, or their `Range`; "options.width" is a key of a
    table. With `random_cells`, only that many combinations are trained, drawn at random but always
    the same. With `samples`, that many are drawn from the ranges and the values: at random, or,
    if `search` is "tpe", by optuna, which learns from the runs before. Draws depend on the `seed`
    of the recipe. Runs that diverge are left out. The test split is not used. `out`, resuming and
    `settings` are as in `cross_validate`.

    Raises:
        UsageError: a key or value is invalid, an option does not apply, `out` has runs with
            another recipe, or optuna is not installed.
        NumericalError: every run diverged.
    """
    _require_search(grid, random_cells, samples, search)
    arguments = _arguments(settings, {"evaluate_on", *grid}, "the sweep")
    base = find_recipe(model, data, recipe, settings)

    def recipes(cell: Settings) -> dict[str, Recipe]:
        fixed = {**_merged(settings, cell), "evaluate_on": "val"}
        return {
            f"{_name(cell)}seed={seed}": find_recipe(model, data, recipe, {**fixed, "seed": seed})
            for seed in range(base.seed, base.seed + seeds)
        }

    path = _folder(out, base, "sweep")
    if search == "tpe":
        for cell in _extremes(grid):
            recipes(cell)  # so that a wrong value is an error at once
        study = Study(path, grid, base.seed, seeds)
        return _tuned(study, samples, lambda cell: _cell(cell, path, recipes(cell), arguments))
    drawn = draw_cells(grid, samples, base.seed) if samples else _combinations(grid, random_cells)
    # All recipes before the first run, so that a wrong value is an error at once.
    planned = [(cell, recipes(cell)) for cell in drawn]
    return _chosen(path, [_cell(cell, path, each, arguments) for cell, each in planned])


def _require_search(grid: Grid, random_cells: int, samples: int, search: str) -> None:
    """Raise UsageError if what to search and how do not fit together."""
    ranges = [key for key, values in grid.items() if isinstance(values, Range)]
    if "seed" in grid:
        raise UsageError("seed has several values: give a number of seeds", "--seeds 3")
    if search not in SEARCHES:
        raise UsageError(f"search = '{printable(search)}'", f"one of {', '.join(SEARCHES[1:])}")
    if samples < 0 or (search and not samples):
        raise UsageError(f"search = '{search}': how many samples?", "--samples 20")
    if ranges and not samples:
        raise UsageError(f"{ranges[0]} is a range: how many samples of it?", "--samples 20")
    if samples and random_cells:
        raise UsageError(f"{random_cells} random combinations and {samples} samples: give one")
    if samples and not (ranges or (grid and search == "tpe")):
        raise UsageError(
            f"samples = {samples}: there is no range to draw from, such as lr=0.001..0.1:log",
            "--random N draws combinations of values",
        )


def _extremes(grid: Grid) -> Iterator[dict[str, Any]]:
    """Yield combinations with each value, and with both ends of each range."""
    ends = {k: [v.low, v.high] if isinstance(v, Range) else v for k, v in grid.items()}
    first = {key: values[0] for key, values in ends.items()}
    for key, values in ends.items():
        yield from ({**first, key: value} for value in values)


def _tuned(study: Study, samples: int, train_cell: Callable[[Settings], Cell]) -> Sweep:
    """Train what a study suggests until it has so many trials; finished runs are only read."""
    cells = {_name(settings): train_cell(settings) for settings in study.cells()}
    for _ in range(samples - len(study.cells())):
        settings = study.ask()
        cell = cells[_name(settings)] = train_cell(settings)
        study.tell(None if cell.diverged else _value(cell))
    return _chosen(study.path, list(cells.values()))


def _value(cell: Cell) -> float:
    """Return the mean score of a cell, or its opposite if lower is better."""
    score = score_name(cell.runs[0])
    mean = cell.metrics[score].mean
    return mean if higher_is_better(score) else -mean


def _cell(cell: Settings, path: Path, recipes: Mapping[str, Recipe], arguments: Settings) -> Cell:
    """Train the runs of one combination, one per seed."""
    runs, diverged = [], []
    for name, recipe in recipes.items():
        try:
            runs.append(_run(path / name, recipe, arguments))
        except NumericalError as error:
            diverged.append(error.message)
    return Cell(settings=cell, runs=tuple(runs), diverged=tuple(diverged))


def _chosen(path: Path, cells: Sequence[Cell]) -> Sweep:
    """Return the sweep with its best cell: the one with the best mean; if several, the first."""
    finished = [cell for cell in cells if cell.runs]
    if not finished:
        raise NumericalError(f"{path}: every run diverged: {cells[0].diverged[0]}", "a lower lr")
    score = score_name(finished[0].runs[0])
    sign = 1 if higher_is_better(score) else -1
    # A cell in which a seed diverged is worse than any without.
    best = max(finished, key=lambda cell: (-len(cell.diverged), sign * cell.metrics[score].mean))
    return Sweep(path, score, tuple(cells), best)


def _arguments(settings: dict[str, Any], taken: set[str], by: str) -> dict[str, Any]:
    """Take the arguments of `train` out of the settings; refuse the keys that `by` has `taken`."""
    for key in taken & settings.keys():
        raise UsageError(f"{key} = {settings[key]!r}: {by} set it already", f"leave out {key}")
    return {name: settings.pop(name) for name in ARGUMENTS & settings.keys()}


def _folder(out: str | os.PathLike[str] | None, recipe: Recipe, what: str) -> Path:
    """Return the folder of the runs; without `out`, the same call gives the same folder."""
    return Path("runs") / f"{default_name(recipe)}-{what}" if out is None else Path(out)


def _run(path: Path, recipe: Recipe, arguments: Settings) -> Run:
    """Train a run at `path`, continue it, or return it if it is finished."""
    try:
        return train(recipe=recipe, out=path, auto_resume=True, **arguments)
    except (KeyboardInterrupt, Terminated) as stop:
        stop.add_note("or repeat the command: it continues this run")
        raise


def _combinations(grid: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return all combinations of values, or `count` of them at random, in their order."""
    cells = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if not 0 <= count <= len(cells):
        raise UsageError(f"{count} random combinations: there are {len(cells)}")
    if not count:
        return cells
    # Always the same ones, so that a repeated call continues.
    return [cells[n] for n in sorted(random.Random(0).sample(range(len(cells)), count))]


def _merged(settings: Settings, cell: Settings) -> dict[str, Any]:
    """Return the settings with a cell's; "options.width" is a key of a table."""
    merged = dict(settings)
    for name, value in cell.items():
        key, dot, inner = name.partition(".")
        merged[key] = {**merged.get(key, {}), inner: value} if dot else value
    return merged


def _name(cell: Settings) -> str:
    """Return the beginning of a folder's name, such as "lr=0.01,"."""
    words = (re.sub(r"[^\w.+-]+", "-", f"{value}").strip("-") for value in cell.values())
    return "".join(f"{key}={word[-40:]}," for key, word in zip(cell, words, strict=True))
