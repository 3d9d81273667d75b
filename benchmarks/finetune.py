"""Compare fine-tuning with a linear probe and with training from scratch on few images.

    python benchmarks/finetune.py SOURCE FOLDER [--images N] [--test-images N] [--epochs N]
        [--seeds N] [--threads N] [--set KEY=VALUE]…

SOURCE is a run or published weights (MODEL or MODEL:NAME). FOLDER has the files train/CLASS/* and
test/CLASS/*. For each seed, N training images are drawn, as many of each class. On the same images

- the weights are fine-tuned as `cnnzoo finetune` does,
- `cnnzoo probe` fits its two classifiers to their features,
- the same network is trained from scratch, for as many epochs, with the same optimizer, schedule,
  augmentation and preprocessing, but without head epochs, with one learning rate for all stages.

Prints the top-1 accuracy on the test images, mean ± standard deviation over the seeds, and the
seconds of each method, evaluation included, as a Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cnn_core.data.readers.folders import sorted_files
from cnn_core.runs.recipe import Recipe, parse_settings
from cnn_core.training import Run, finetune, probe
from cnn_core.training.trainer import train

SCRATCH = {  # what differs from the recipe of fine-tuning
    "weights": "",
    "weights_digest": "",
    "head_epochs": 0,
    "head_lr": 0.0,
    "layer_decay": 1.0,
    "lr": 2e-3,
}


def main() -> None:
    """Measure all methods with all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--test-images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", dest="settings", action="append", default=[])
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    settings = {"epochs": chosen.epochs, **parse_settings(chosen.settings)}
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(chosen.seeds):
        with tempfile.TemporaryDirectory() as folder:
            link_images(chosen.folder / "train", Path(folder) / "train", chosen.images, seed)
            # The same test images for all seeds.
            link_images(chosen.folder / "test", Path(folder) / "test", chosen.test_images, 0)
            for name, result in one_seed(chosen.source, Path(folder), seed, settings).items():
                found.setdefault(name, []).append(result)
                print(
                    f"seed {seed}: {name}: {100 * result[0]:.2f} %, {result[1]:.0f} s", flush=True
                )
    print_table(found)


def link_images(source: Path, target: Path, count: int, seed: int) -> None:
    """Link `count` of the images in source/CLASS, as many of each class, into target/CLASS."""
    classes = sorted(path for path in source.iterdir() if path.is_dir())
    draw = np.random.default_rng(seed)
    for folder in classes:
        files = sorted_files(folder)
        (target / folder.name).mkdir(parents=True)
        for number in draw.permutation(len(files))[: count // len(classes)]:
            file = files[number]
            (target / folder.name / file.name).symlink_to(file.resolve())


def one_seed(
    source: str, folder: Path, seed: int, settings: Mapping[str, Any]
) -> dict[str, tuple[float, float]]:
    """Return the test accuracy and the seconds of each method."""
    data = f"imagefolder:{folder}"
    tuned, tuning = timed(
        lambda: finetune(source, data, seed=seed, out=folder / "tuned", progress=False, **settings)
    )
    probed, probing = timed(lambda: probe(source, data, seed=seed))
    recipe = Recipe(**{**dataclasses.asdict(tuned.recipe), **SCRATCH})
    trained, training = timed(lambda: train(recipe=recipe, out=folder / "scratch", progress=False))
    return {
        "fine-tuned": (top1(tuned), tuning),
        **{score.method: (score.accuracy, probing) for score in probed.scores},
        "from scratch": (top1(trained), training),
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of `work` and the seconds that it took."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def top1(run: Run) -> float:
    """Return the accuracy on the test split."""
    return run.test_metrics()["test/top1"]


def print_table(found: Mapping[str, list[tuple[float, float]]]) -> None:
    """Print the mean and standard deviation of each method."""
    print("| method | test top-1, mean ± std (seeds) | s |\n|---|--:|--:|")
    for name, results in found.items():
        accuracies, seconds = zip(*results, strict=True)
        spread = statistics.stdev(accuracies) if len(results) > 1 else 0.0
        mean = 100 * statistics.mean(accuracies)
        print(
            f"| {name} | {mean:.2f} ± {100 * spread:.2f} % ({len(results)}) "
            f"| {statistics.mean(seconds):.0f} |"
        )


if __name__ == "__main__":
    main()
