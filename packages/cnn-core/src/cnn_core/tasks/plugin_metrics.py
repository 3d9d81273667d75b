"""Metrics of plugins: a metric that fails is reported once and left out; the others continue."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cnn_core import registry
from cnn_core.errors import PluginError, is_out_of_memory
from cnn_core.plugins import isolated

if TYPE_CHECKING:
    from torch import Tensor

    from cnn_core.registry import Entry
    from cnn_core.specs import MetricSpec
    from cnn_core.tasks.classification import Metric

__all__ = ["PluginMetric", "build", "fault_of"]


def build(name: str, entry: Entry[MetricSpec], num_classes: int) -> Metric | None:
    """Return a new metric; if a plugin's metric cannot be built, report that and return None.

    A failing metric of cnn-core itself raises its exception: that is a bug, not a plugin's fault.
    """
    if entry.plugin.distribution == "cnn-core":
        return _create(name, entry, num_classes)
    failed = functools.partial(_report, name, entry)
    with isolated(entry.plugin, f"metric {name}", failed=failed):
        return PluginMetric(name, entry, _create(name, entry, num_classes))
    return None


def _create(name: str, entry: Entry[MetricSpec], num_classes: int) -> Metric:
    metric: Metric = registry.resolve(entry)(num_classes)
    if not hasattr(metric, "sums"):
        raise PluginError(
            f"metric '{name}' ({entry.plugin.origin}) has no tensor `sums`",
            "keep the metric's state in `sums`: it is saved, and added up over processes",
        )
    return metric


def fault_of(name: str, entry: Entry[MetricSpec]) -> str:
    """Return the reason why a metric was left out, or an empty string."""
    found = [fault for fault in entry.plugin.faults if fault.stage == _stage(name)]
    return entry.plugin.report(found[0]) if found else ""


def _stage(name: str) -> str:
    return f"metric {name}, left out"


def _report(name: str, entry: Entry[MetricSpec], error: BaseException) -> None:
    if is_out_of_memory(error):  # not the metric's fault: smaller batches may fit
        raise error
    if not fault_of(name, entry):
        cause = error.message if isinstance(error, PluginError) else error
        entry.plugin.add_fault(_stage(name), cause, always_warn=True)


class PluginMetric:
    """A plugin's metric, switched off after its first failure.

    Its sums are kept: all processes add up the same list of tensors, and if one process dropped a
    metric, the others would wait for it, or add up tensors of different metrics.
    """

    def __init__(self, name: str, entry: Entry[MetricSpec], metric: Metric) -> None:
        self._name, self._entry, self._metric = name, entry, metric
        self._failed = False

    @property
    def sums(self) -> Tensor:
        """The state of the metric."""
        return self._metric.sums

    @sums.setter
    def sums(self, sums: Tensor) -> None:
        """Restore the state of the metric."""
        self._metric.sums = sums

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch, unless the metric has failed."""
        self._try(lambda: self._metric.update(logits, targets))

    def compute(self) -> float | dict[str, float]:
        """Return the metric, or several by name, or an empty dict if the metric has failed."""
        values: dict[str, float] = self._try(lambda: _by_name(self._metric.compute())) or {}
        return values.get("", values)

    def _try(self, action: Callable[[], Any]) -> Any:
        if self._failed:
            return None
        with isolated(self._entry.plugin, f"metric {self._name}", failed=self._fail):
            return action()
        return None

    def _fail(self, error: BaseException) -> None:
        _report(self._name, self._entry, error)
        self._failed = True


def _by_name(result: Any) -> dict[str, float]:
    """Return the values of a metric by name; a single number gets the name ""."""
    if isinstance(result, Mapping):
        return {str(name): float(number) for name, number in result.items()}
    return {"": float(result)}
