"""Train a recipe with several seeds, and print its measured [claim] as TOML.

    python benchmarks/claims.py lenet5-fashion_mnist --seeds 0 1 2 --data-dir DIR

The results in the recipes and in the README were printed by this script.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import tomli_w

from cnn_core import registry, train
from cnn_core.tasks import SCORES


def main() -> None:
    """Train with each seed and print the claim."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-dir", type=Path)
    chosen = parser.parse_args()
    spec = registry.recipes().get(chosen.recipe)
    metric = f"test/{SCORES[registry.models().get(spec.model).task]}"
    found, seconds, environment = [], [], {}
    for seed in chosen.seeds:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = train(
                recipe=chosen.recipe, seed=seed, out=Path(folder) / "run", data_dir=chosen.data_dir
            )
            found.append(run.test_metrics())
            environment = run.environment()
        seconds.append(time.perf_counter() - began)
        print(f"# seed {seed}: {found[-1][metric]:.4f} in {seconds[-1]:.0f} s", flush=True)
    threads = environment["threads"]
    mean, std = spread([numbers[metric] for numbers in found])
    claim = {
        "metric": metric,
        "mean": mean,
        "std": std,
        "n": len(found),
        "seeds": chosen.seeds,
        "seconds": round(statistics.mean(seconds)),
        "hardware": f"{threads} thread{'s' * (threads > 1)} of {environment['device_name']}",
        "torch": environment["torch"],
        "command": f"python benchmarks/claims.py {spec.name}",
        "others": {
            name: spread([numbers[name] for numbers in found])
            for name in sorted(set.intersection(*map(set, found)) - {metric, "test/loss"})
        },
    }
    print(tomli_w.dumps({"claim": claim}))


def spread(values: list[float]) -> list[float]:
    """Return the mean and the standard deviation, rounded to five decimal places."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return [round(statistics.mean(values), 5), round(std, 5)]


if __name__ == "__main__":
    main()
