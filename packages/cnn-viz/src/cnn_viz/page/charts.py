"""Learning curves as inline SVG; the page's script shows the epoch under the pointer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from cnn_core.tasks import SCORES

__all__ = ["LEFT", "RIGHT", "charts"]

# The plot area, in the chart's own units: 400 wide and 220 high.
LEFT, RIGHT, TOP, BOTTOM = 46.0, 390.0, 12.0, 190.0

TITLES = {"top1": "Top-1 accuracy", "miou": "mIoU"}


def charts(history: Sequence[Mapping[str, float]], kept: int | None) -> list[dict[str, Any]]:
    """Return the charts of loss, score and learning rate; none for a run without epochs."""
    if not history:
        return []
    drawn = [_chart("Loss", {"train": "train/loss", "val": "val/loss"}, history, kept)]
    for metric in SCORES.values():
        if f"train/{metric}" in history[0]:
            keys = {"train": f"train/{metric}", "val": f"val/{metric}"}
            drawn.append(_chart(f"{TITLES[metric]}, per cent", keys, history, kept, 100))
    drawn.append(_chart("Learning rate", {"lr": "lr"}, history, kept))
    return drawn


def _chart(
    title: str,
    keys: dict[str, str],
    history: Sequence[Mapping[str, float]],
    kept: int | None,
    scale: float = 1,
) -> dict[str, Any]:
    """Return one chart for the template: lines as points, ticks as positions with labels."""
    lines = {
        name: [
            (place, scale * line[key])
            for place, line in enumerate(history)
            if math.isfinite(line.get(key, math.nan))
        ]
        for name, key in keys.items()
    }
    values = [y for points in lines.values() for _, y in points] or [0.0, 1.0]
    lowest, highest = min(values), max(values)
    if lowest == highest:  # a constant learning rate is drawn in the middle
        lowest, highest = sorted((0.0, 2 * lowest or 1.0))
    ticks = MaxNLocator(4).tick_values(lowest, highest)
    low, high = min(ticks[0], lowest), max(ticks[-1], highest)
    # Accuracy cannot exceed 100 %, so neither should its axis.
    if scale == 100:
        high = min(high, 100.0)
    last = len(history) - 1

    def x(place: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (place / last if last else 0.5), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / ((high - low) or 1.0), 1)

    epoch_ticks = MaxNLocator(6, integer=True).tick_values(1, max(last + 1, 2))
    return {
        "title": title,
        "keys": keys,
        "lines": [
            {
                "name": name,
                "points": " ".join(f"{x(place)},{y(value)}" for place, value in points),
                "dots": [(x(place), y(value)) for place, value in points] if last < 1 else [],
            }
            for name, points in lines.items()
            if points
        ],
        "y": [(y(tick), f"{tick:.6g}") for tick in ticks if low <= tick <= high],
        "x": [(x(tick - 1), f"{tick:.0f}") for tick in epoch_ticks if 1 <= tick <= last + 1],
        "kept": x(kept - 1) if kept is not None and 1 <= kept <= last + 1 else None,
    }
