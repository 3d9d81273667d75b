"""Confidence intervals of accuracies."""

from __future__ import annotations

import math

__all__ = ["wilson"]


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of the proportion `hits` / `n`: (low, high) in [0, 1].

    The default `z` gives the 95 % interval. Unlike the normal approximation, it stays within
    [0, 1] and has a positive width even at 0 or n hits.

    E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    p = hits / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return max(low, 0.0), min(high, 1.0)
