"""Write docs/results.csv: every network with its size, speed, and accuracy.

    python benchmarks/results.py                    # all columns except the speed
    python benchmarks/results.py --measure [PATTERN]

Parameters, MACs and accuracies come from the specs of the models, weights and recipes. Images per
second are measured, at batch size 16, for networks that match PATTERN, the smallest first; those
of the other networks stay as they are in the file. They are images per second of CPU time on one
thread, which other load on the machine hardly changes. The file is written after each network.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import time
from pathlib import Path
from typing import Any

import torch

from cnn_core import registry
from cnn_core.specs import ModelSpec
from cnn_core.training.benchmark import Setting, benchmark, threads
from cnn_core.training.device import environment
from cnn_core.weights.published import weights_of

FILE = Path(__file__).parent.parent / "docs" / "results.csv"
FIELDS = (
    *("model", "parameters", "macs", "input", "images_per_second", "hardware", "torch"),
    *("weights", "published", "source", "recipe", "ours"),
)
MEASURED = ("images_per_second", "hardware", "torch")


def main() -> None:
    """Write the file, and measure if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.0)
    chosen = parser.parse_args()
    before = {row["model"]: row for row in read()}
    rows = {}
    for name, entry in registry.models():
        kept = {key: before.get(name, {}).get(key, "") for key in MEASURED}
        rows[name] = {**described(name, entry.spec), **kept}
    write(rows)
    if not chosen.measure:
        return
    setting = Setting(batch_sizes=(chosen.batch,), seconds=chosen.seconds)
    for name in sorted(rows, key=lambda name: int(rows[name]["macs"])):
        if fnmatch.fnmatch(name, chosen.pattern):
            rows[name] |= measured(name, setting)
            print(name, rows[name]["images_per_second"], flush=True)
            write(rows)


def read() -> list[dict[str, str]]:
    """Return the rows of the file, if it exists."""
    if not FILE.is_file():
        return []
    with FILE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Write all rows."""
    with FILE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def described(name: str, spec: ModelSpec) -> dict[str, Any]:
    """Return the columns that need no measurement."""
    published = next(iter(weights_of(name).values()), None)
    metric, value = "", 0.0
    if published is not None:
        metric, value = next(iter(published.spec.accuracy.items()), ("", 0.0))
    return {
        "model": name,
        "parameters": spec.params,
        "macs": spec.macs,
        "input": "x".join(map(str, spec.input)),
        "weights": published.spec.name if published else "",
        "published": f"{100 * value:.2f} % {metric}" if metric else "",
        "source": published.spec.source if published else "",
        **claimed(name),
    }


def claimed(name: str) -> dict[str, str]:
    """Return the first of a network's recipes with a measured result, default recipes first."""
    found = [entry.spec for _, entry in registry.recipes() if entry.spec.model == name]
    for spec in sorted(found, key=lambda spec: not spec.default):
        if claim := spec.claim:
            mean, std = 100 * claim["mean"], 100 * claim["std"]
            metric = claim["metric"].rpartition("/")[2]
            return {
                "recipe": spec.name,
                "ours": f"{mean:.2f} ± {std:.2f} % {metric} (n={claim['n']})",
            }
    return {"recipe": "", "ours": ""}


def measured(name: str, setting: Setting) -> dict[str, str]:
    """Measure one network on one thread."""
    with threads(1):
        (row,) = benchmark(name, setting, clock=time.process_time)
        found = environment(
            setting.device, data_dir=None, data="", fingerprint="", allocator="default"
        )
    return {
        "images_per_second": f"{row.images_per_second:.3g}",
        "hardware": f"1 thread of {found['device_name']}",
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
