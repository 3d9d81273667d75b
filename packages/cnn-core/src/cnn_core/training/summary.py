"""Means and standard deviations of the results of several runs. Does not import torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cnn_core.runs.run import Run
from cnn_core.tasks import SCORES

__all__ = ["Summary", "score_name", "summarised"]


@dataclass(frozen=True)
class Summary:
    """The mean of `n` values and their sample standard deviation; `std` is None if `n` is 1."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Return the summary of at least one value."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values))

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.4f}"
        return f"{self.mean:.4f}{spread}"


def summarised(results: Iterable[Mapping[str, float]]) -> dict[str, Summary]:
    """Return the summary of each metric, over those results that have it."""
    values: dict[str, list[float]] = {}
    for result in results:
        for name, value in result.items():
            values.setdefault(name, []).append(value)
    return {name: Summary.of(found) for name, found in values.items()}


def score_name(run: Run) -> str:
    """Return the validation metric by which finished runs are compared, such as "val/top1".

    It is the recipe's monitor if this is a validation metric, else the default of the task.
    """
    names = [run.recipe.monitor, *(f"val/{metric}" for metric in SCORES.values())]
    return next(n for n in names if n.startswith("val/") and n in run.final_metrics())
