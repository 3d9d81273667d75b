"""Compare prediction of image files with the network's forward pass alone.

    python benchmarks/prediction.py [--model NAME] [--size N] [--images N] [--rounds N]
        [--threads N] [--batch N] [--device NAME] [--json]

One side reads JPEG files of the input's size and writes a CSV file, like `cnnzoo predict MODEL
FOLDER --csv FILE`. The other passes random tensors, as many and in batches as large, through the
same network in inference mode. They take turns in one process. The ratio is the images per second
of prediction as a fraction of those of the forward pass: the median over rounds, with quartiles in
brackets. CPU time, of all threads, is compared likewise: it depends less on other processes.
Prints a Markdown table, or one JSON object with --json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cnn_core import Predictor, create_model, get_spec
from cnn_core.cli.prediction_files import CsvRows, PredictionFile
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.weights.native import Weights, write_weights


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder) / "images", chosen.images, chosen.size)
        weights = write_random_weights(Path(folder), chosen.model, chosen.size)
        predictor = Predictor(weights, device=chosen.device, batch_size=chosen.batch)
        sides = (
            lambda: predict(predictor, files, Path(folder) / "out.csv"),
            lambda: forward(predictor, chosen.images, chosen.size),
        )
        pairs = rounds(sides, chosen.rounds)
    wall, cpu = ([forward[k] / predict[k] for predict, forward in pairs] for k in (0, 1))
    ours, alone = (
        chosen.images / statistics.median(t[0] for t in s) for s in zip(*pairs, strict=True)
    )
    if chosen.json:
        settings = {**vars(chosen), "batch": predictor.batch_size, "torch": torch.__version__}
        found = {"predict": ours, "forward": alone, "ratios": wall, "cpu_ratios": cpu}
        print(json.dumps({**settings, **found}, indent=2))
        return
    print(
        f"torch {torch.__version__}, {chosen.device}, {chosen.threads} threads, batches of ",
        end="",
    )
    print(f"{predictor.batch_size}, {chosen.images:,} images, {chosen.rounds} rounds\n")
    print(
        "| network | images/s, forward pass | images/s, prediction | ratio | ratio of CPU time |"
    )
    print("|---|--:|--:|--:|--:|")
    print(f"| `{chosen.model}`, {chosen.size}x{chosen.size} | {alone:,.0f} | {ours:,.0f} ", end="")
    print(f"| {median(wall)} | {median(cpu)} |")


def median(ratios: list[float]) -> str:
    """Return the median of ratios with their quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def write_images(folder: Path, count: int, size: int) -> list[Path]:
    """Write JPEGs of smooth random colours; return their paths."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    for path in paths:
        small = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def write_random_weights(folder: Path, name: str, size: int) -> Path:
    """Write random weights of a classifier for images of a size; return the path."""
    spec, model = get_spec(name), create_model(name)
    preprocessing = Preprocessing(
        size=(size, size), image_size=(size, size), fit="resize", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    path = folder / "weights.safetensors"
    weights = Weights(
        tensors=model.state_dict(),
        model=name,
        num_classes=spec.num_classes,
        in_channels=3,
        options={},
        classes=tuple(map(str, range(spec.num_classes))),
        preprocessing=preprocessing,
        epoch=0,
        path=path,
        digest="",
    )
    write_weights(path, weights)
    return path


def predict(predictor: Predictor, files: list[Path], out: Path) -> None:
    """Predict all files and write a new CSV file."""
    out.unlink(missing_ok=True)
    with PredictionFile(out, CsvRows(1), predictor.batch_size) as csv_file:
        for prediction in predictor.classify(files):
            csv_file.add(prediction)


@torch.inference_mode()
def forward(predictor: Predictor, count: int, size: int) -> None:
    """Pass as many random images through the network, in batches of the same sizes."""
    trained, batch = predictor.trained, predictor.batch_size
    images = torch.randn(min(batch, count), 3, size, size, device=trained.device)
    for start in range(0, count, batch):
        trained.model(images[: count - start]).cpu()


Seconds = tuple[float, float]  # of wall-clock time and of CPU time


def rounds(sides: tuple[Callable[[], None], ...], count: int) -> list[tuple[Seconds, ...]]:
    """Call the sides in turn, with a round to warm up; return their seconds for each round."""
    taken = []
    for number in range(count + 1):
        seconds = {}
        # The order changes, since the load of a machine does too.
        for side in sides if number % 2 else sides[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            side()
            seconds[side] = (time.perf_counter() - wall, time.process_time() - cpu)
        if number:
            taken.append(tuple(seconds[side] for side in sides))
    return taken


if __name__ == "__main__":
    main()
