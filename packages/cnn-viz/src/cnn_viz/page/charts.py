"""Learning curves as inline SVG; a script shows the values of the epoch at the pointer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from cnn_core.tasks import SCORES

__all__ = ["LEFT", "RIGHT", "charts"]

# The plot area, in the chart's own units: 400 wide and 220 high.
LEFT, RIGHT, TOP, BOTTOM = 46.0, 390.0, 12.0, 190.0

TITLES = {"top1": "Top-1 accuracy", "miou": "mIoU", "map": "mAP"}


def charts(
    history: Sequence[Mapping[str, float]], saved_epoch: int | None
) -> list[dict[str, Any]]:
    """Return charts of loss, score and learning rate, or none for a run without epochs."""
    if not history:
        return []
    drawn = [_chart("Loss", {"train": "train/loss", "val": "val/loss"}, history, saved_epoch)]
    for metric in SCORES.values():
        keys = {"train": f"train/{metric}", "val": f"val/{metric}"}
        # mAP is not computed in training.
        if any(key in history[0] for key in keys.values()):
            drawn.append(_chart(f"{TITLES[metric]}, %", keys, history, saved_epoch, 100))
    drawn.append(_chart("Learning rate", {"lr": "lr"}, history, saved_epoch))
    return drawn


def _value_axis(values: list[float], scale: float) -> tuple[Sequence[float], float, float]:
    """Return the ticks, the lower and the upper limit of an axis for these values."""
    lowest, highest = min(values, default=0.0), max(values, default=1.0)
    if lowest == highest:  # draw a constant learning rate in the middle
        lowest, highest = sorted((0.0, 2 * lowest or 1.0))
    ticks = MaxNLocator(4).tick_values(lowest, highest)
    low, high = min(ticks[0], lowest), max(ticks[-1], highest)
    # Accuracy cannot exceed 100 %, so the axis should not either.
    return ticks, low, min(high, 100.0) if scale == 100 else high


def _chart(
    title: str,
    keys: dict[str, str],
    history: Sequence[Mapping[str, float]],
    saved_epoch: int | None,
    scale: float = 1,
) -> dict[str, Any]:
    """Return the data of one chart for the template, in the chart's units."""
    lines = {
        name: [
            (index, scale * line[key])
            for index, line in enumerate(history)
            if math.isfinite(line.get(key, math.nan))
        ]
        for name, key in keys.items()
    }
    ticks, low, high = _value_axis([y for points in lines.values() for _, y in points], scale)
    last = len(history) - 1

    def x(index: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (index / last if last else 0.5), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / ((high - low) or 1.0), 1)

    epoch_ticks = MaxNLocator(6, integer=True).tick_values(1, max(last + 1, 2))
    return {
        "title": title,
        "keys": keys,
        "lines": [
            {
                "name": name,
                "points": " ".join(f"{x(index)},{y(value)}" for index, value in points),
                "dots": [(x(index), y(value)) for index, value in points] if last < 1 else [],
            }
            for name, points in lines.items()
            if points
        ],
        "y": [(y(tick), f"{tick:.6g}") for tick in ticks if low <= tick <= high],
        "x": [(x(tick - 1), f"{tick:.0f}") for tick in epoch_ticks if 1 <= tick <= last + 1],
        "kept": x(saved_epoch - 1)
        if saved_epoch is not None and 1 <= saved_epoch <= last + 1
        else None,
    }
