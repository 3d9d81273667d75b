"""Time embeddings against the library's own call, and time their quality scores.

    python benchmarks/embeddings.py [--images N] [--features N] [--rounds N] [--methods …]

Our function and the library's own call take turns on the same synthetic features of ten classes,
in one process and one thread. A ratio is the median over rounds. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from cnn_viz.results.embeddings import METHODS, SEED, evenly_spaced, quality


def main() -> None:
    """Measure each method and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=chosen.images)
    centres = rng.normal(scale=2, size=(10, chosen.features))
    x = (centres[labels] + rng.normal(size=(chosen.images, chosen.features))).astype(np.float32)
    print(f"{chosen.images:,} x {chosen.features}, {chosen.rounds} rounds\n")
    print("| method | the library, s | ours, s | ratio | its quality, s |\n|---|--:|--:|--:|--:|")
    judged = evenly_spaced(len(x), 2_000).numpy()
    for method in chosen.methods:
        ours, theirs = METHODS[method][0], library(method)
        timed(theirs, x[:200]), timed(ours, x[:200])  # numba compiles at the first call
        pairs = [(timed(theirs, x), timed(ours, x)) for _ in range(chosen.rounds)]
        ratio = statistics.median(b / a for a, b in pairs)
        alone, both = (statistics.median(pair[k] for pair in pairs) for k in (0, 1))
        cost = timed(lambda part: quality(part, part[:, :2], labels[judged]), x[judged])
        print(f"| {method} | {alone:.2f} | {both:.2f} | {ratio:.2f} | {cost:.2f} |", flush=True)


def library(method: str) -> Callable[[Any], Any]:
    """Return the library's own call for a method."""
    if method == "PCA":
        return PCA(2, random_state=SEED).fit_transform
    if method == "t-SNE":
        return TSNE(random_state=SEED).fit_transform
    from umap import UMAP

    return UMAP(random_state=SEED).fit_transform


def timed(call: Callable[[Any], Any], x: Any) -> float:
    """Return the seconds that call(x) takes."""
    began = time.perf_counter()
    call(x)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
