"""Compare the cost of all segmentation metrics with the network's forward passes.

    python benchmarks/segmentation.py RUN… [--data-dir DIR] [--rounds N] [--threads N]

The saved weights of each run predict its test split, alternately with all metrics, as in `cnnzoo
evaluate`, and without metrics. The ratio is the median over rounds. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cnn_core.create import build
from cnn_core.data import batches
from cnn_core.training import Run
from cnn_core.training.device import FORMATS
from cnn_core.training.evaluation import eval_batch_size, eval_setup, evaluate_split, predictor
from cnn_core.training.trained import Trained


def main() -> None:
    """Measure each run and print its row of the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print("| network | images | forward, ms an image | with all metrics, ms | ratio |")
    print("|---|---|--:|--:|--:|")
    for path in chosen.runs:
        print(row(Run.open(path), chosen.data_dir, chosen.rounds), flush=True)


def row(run: Run, data_dir: Path | None, rounds: int) -> str:
    """Measure one run; return its line of the table."""
    trained = Trained(run, data_dir=data_dir, device="cpu")
    setup, split, recipe = eval_setup(trained), trained.dataset.split("test"), run.recipe
    preprocessing = setup.preprocessing
    model = build(trained.weights).to(memory_format=FORMATS[recipe.memory_format])
    outputs, device = predictor(model, preprocessing), torch.device("cpu")

    @torch.inference_mode()
    def forward() -> None:
        for batch in batches(split, preprocessing, eval_batch_size(preprocessing), device=device):
            outputs(batch.images.contiguous(memory_format=FORMATS[recipe.memory_format]))

    def whole() -> None:
        evaluate_split(model, split, setup)

    pairs = [(timed(forward), timed(whole)) for _ in range(rounds + 1)][1:]
    ratio = statistics.median(b / a for a, b in pairs)
    alone, both = (1e3 / len(split) * statistics.median(pair[k] for pair in pairs) for k in (0, 1))
    height, width = preprocessing.image_size if preprocessing.tiled else preprocessing.size
    options = "".join(f", {key} {value}" for key, value in recipe.options.items())
    return (
        f"| `{recipe.model}`{options} | {len(split)} of {height}x{width} "
        f"| {alone:.0f} | {both:.0f} | {ratio:.2f} |"
    )


def timed(call: Callable[[], None]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
