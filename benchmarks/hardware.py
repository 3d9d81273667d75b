"""Time a training step of various networks in each memory format and precision.

    python benchmarks/hardware.py [PATTERN] [--rounds N] [--threads N] [--write]

The meaning of "auto" in recipes is based on these measurements: channels_last for networks with
batch normalisation, fp32 on a CPU. Copies of one network take turns in one process, one forward
and backward pass each; freed memory is kept for reuse, as in training
(cnn_core.training.allocator). The plain step is contiguous and in fp32. In each round, its time
is divided by that of a variant; the table gives the median of these ratios, and above 1 the
variant is faster. Prints a Markdown table; --write puts it into docs/performance.md.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cnn_core import create_model
from cnn_core.training.allocator import keep_memory

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
MARK = "<!-- hardware -->\n{}<!-- /hardware -->"


@dataclass(frozen=True)
class Case:
    """A network and the shape of its training batch, N C H W."""

    name: str
    shape: tuple[int, int, int, int]
    width: int = 0


CASES = (
    Case("lenet5", (64, 1, 32, 32)),
    Case("lenet5_modern", (64, 1, 32, 32)),
    Case("alexnet_small", (128, 3, 32, 32)),
    Case("vgg11_cifar", (64, 3, 32, 32)),
    Case("vgg16_cifar", (32, 3, 32, 32)),
    Case("vgg11_bn", (2, 3, 224, 224)),
    Case("vgg11", (2, 3, 224, 224)),
    Case("googlenet_bn", (32, 3, 64, 64)),
    Case("googlenet", (4, 3, 224, 224)),
    Case("resnet20_cifar", (128, 3, 32, 32)),
    Case("resnet18_cifar", (64, 3, 32, 32)),
    Case("resnet50", (4, 3, 224, 224)),
    Case("densenet40_cifar", (32, 3, 32, 32)),
    Case("densenet121", (4, 3, 224, 224)),
    Case("mobilenet_v1", (16, 3, 128, 128)),
    Case("mobilenet_v2", (16, 3, 128, 128)),
    Case("unet_same", (8, 3, 64, 64), width=16),
)
KINDS = {  # title: channels last, bf16
    "plain": (False, False),
    "channels_last": (True, False),
    "bf16": (False, True),
    "bf16, channels_last": (True, True),
}


def main() -> None:
    """Measure each network and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    others = [kind for kind in KINDS if kind != "plain"]
    lines = [
        f"| network | batch norm | batch | plain, ms | {' | '.join(others)} |",
        f"|---|---|---|--:|{'--:|' * len(others)}",
    ]
    print(*lines, sep="\n")
    for case in CASES:
        if fnmatch.fnmatch(case.name, chosen.pattern):
            lines.append(row(case, chosen.rounds))
            print(lines[-1], flush=True)
    if chosen.write:
        page = PAGE.read_text("utf-8")
        table = MARK.format("\n".join([*lines, ""]))
        PAGE.write_text(re.sub(MARK.format(".*?"), lambda _: table, page, flags=re.S), "utf-8")


def row(case: Case, rounds: int) -> str:
    """Measure one network; return its row of the table."""
    torch.manual_seed(0)
    options = {"width": case.width} if case.width else {}
    model = create_model(case.name, num_classes=10, in_channels=case.shape[1], **options).train()
    images = torch.randn(case.shape)
    sides = {}
    for kind, (last, half) in KINDS.items():
        layout = torch.channels_last if last else torch.contiguous_format
        network = copy.deepcopy(model).to(memory_format=layout)
        sides[kind] = (network, images.contiguous(memory_format=layout), half)
        step(*sides[kind])
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds):
        for kind in list(KINDS)[:: 1 if number % 2 == 0 else -1]:
            seconds[kind].append(step(*sides[kind]))
    plain = seconds.pop("plain")
    ratios = [
        statistics.median(a / b for a, b in zip(plain, other, strict=True))
        for other in seconds.values()
    ]
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    batch = "x".join(map(str, case.shape))
    shown = " | ".join(f"{ratio:.2f}x" for ratio in ratios)
    return (
        f"| `{case.name}` | {'yes' if normalised else 'no'} | {batch} "
        f"| {1000 * statistics.median(plain):,.1f} | {shown} |"
    )


def step(model: nn.Module, images: Tensor, half: bool) -> float:
    """Return the seconds of a forward and a backward pass."""
    model.zero_grad(set_to_none=True)
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        outputs = model(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum(output.float().logsumexp(1).sum() for output in outputs).backward()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
