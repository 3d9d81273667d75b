"""Compare time and peak memory of a training step with torchvision's networks.

    python benchmarks/architectures.py [PATTERN] [--rounds N] [--batch N] [--threads N]

Both networks have the same weights and get the same batch of 3x224x224 images, in train mode. They
take turns in one process, one forward and backward pass each, so that other load on the machine
affects both alike. A ratio is the median over rounds of our time divided by theirs in the same
round. Memory is the peak of all allocations in a step, from torch's profiler, without the weights.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import time
import warnings

import torch
import torchvision
from torch import Tensor, nn

from cnn_core import create_model, get_spec, registry

SHARED = {  # ours: theirs
    "alexnet_owt": "alexnet",
    **{name: name for depth in (11, 13, 16, 19) for name in (f"vgg{depth}", f"vgg{depth}_bn")},
    "googlenet_bn": "googlenet",
    **{name: name for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")},
    "mobilenet_v2": "mobilenet_v2",
    **{name: name for name in ("densenet121", "densenet161", "densenet169", "densenet201")},
}


def main() -> None:
    """Measure each pair and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, ", end="")
    print(f"batch {chosen.batch}, {chosen.threads} threads, {chosen.rounds} rounds\n")
    print("| model | ours, s | torchvision's, s | time | ours, MB | torchvision's, MB | memory |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for ours, theirs in SHARED.items():
        if fnmatch.fnmatch(ours, chosen.pattern):
            print(row(ours, theirs, chosen.rounds, chosen.batch), flush=True)


def row(ours: str, theirs: str, rounds: int, batch: int) -> str:
    """Measure one pair; return its row of the table."""
    models = pair(ours, theirs)
    images = torch.randn(batch, 3, 224, 224)
    for model in models:
        step(model, images)
    seconds: list[list[float]] = [[], []]
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            seconds[side].append(step(models[side], images))
    ratio = statistics.median(a / b for a, b in zip(*seconds, strict=True))
    mine, other = (statistics.median(side) for side in seconds)
    memory = [peak(model, images) / 1e6 for model in models]
    return (
        f"| `{ours}` | {mine:.2f} | {other:.2f} | {ratio:.3f} "
        f"| {memory[0]:,.0f} | {memory[1]:,.0f} | {memory[0] / memory[1]:.3f} |"
    )


def pair(ours: str, theirs: str) -> tuple[nn.Module, nn.Module]:
    """Return our network and torchvision's, with the same weights, in train mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GoogLeNet warns that its initialisation is slow
        reference = getattr(torchvision.models, theirs)(weights=None)
    model = create_model(ours)
    keymap = registry.resolve(registry.models().entry(ours), "key_maps")(get_spec(ours).name)
    model.load_state_dict(keymap["torchvision"].to_ours(reference.state_dict()))
    return model.train(), reference.train()


def step(model: nn.Module, images: Tensor) -> float:
    """Return the seconds of a forward and a backward pass."""
    model.zero_grad(set_to_none=True)
    began = time.perf_counter()
    outputs = model(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.logsumexp(1).sum() for output in outputs).backward()
    return time.perf_counter() - began


def peak(model: nn.Module, images: Tensor) -> float:
    """Return the peak number of bytes allocated during one step."""
    model.zero_grad(set_to_none=True)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step(model, images)
    now = most = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


if __name__ == "__main__":
    main()
