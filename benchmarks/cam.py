"""Compare the cost of Grad-CAM in cnnzoo, torch-cam, captum and pytorch-grad-cam.

    python benchmarks/cam.py [--model NAME] [--size N] [--batch N] [--rounds N] [--threads N]
        [--write]

All explain the same batch with the same network and weights, at the architecture's `cam_stage`.
They take turns in one process; the order changes from round to round. The cost is the time divided
by that of a forward pass in the same round, in eval mode and without gradients: the median over
rounds, with quartiles in brackets. Freed memory is kept for reuse, as in training
(cnn_core.training.allocator). Prints a Markdown table; --write puts it into docs/performance.md.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import captum
import torch
import torchcam
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from cnn_core import create_model, get_spec
from cnn_core.training.allocator import keep_memory
from cnn_viz import grad_cam

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
MARK = "<!-- cam -->\n{}<!-- /cam -->"
FORWARD, OURS = "forward pass", "cnnzoo"


def contestants(
    model: nn.Module, images: Tensor, stage: str, classes: list[int]
) -> dict[str, Callable[[], object]]:
    """Return the functions to compare, by name; each explains all images."""
    layer = model.get_submodule(stage)
    targets = [ClassifierOutputTarget(number) for number in classes]

    def forward() -> Tensor:
        with torch.no_grad():
            return model(images)

    def torch_cam() -> Tensor:
        with torchcam.methods.GradCAM(model, stage) as extractor:
            return extractor(classes, model(images))[0]

    def pytorch_grad_cam() -> object:
        with GradCAM(model, [layer]) as extractor:
            return extractor(images, targets)

    return {
        FORWARD: forward,
        OURS: lambda: grad_cam(model, images, stage, classes).heat(),
        "torch-cam": torch_cam,
        "captum": lambda: LayerGradCam(model, layer).attribute(images, classes),
        "pytorch-grad-cam": pytorch_grad_cam,
    }


def rounds(sides: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Call all in turn, with one round to warm up; return the seconds by name and round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(count + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            sides[name]()
            took = time.perf_counter() - began
            if number:
                seconds[name].append(took)
    return seconds


def table(seconds: dict[str, list[float]], batch: int) -> list[str]:
    """Return the lines of the table."""
    lines = ["| | ms an image | forward passes |", "|---|--:|--:|"]
    for name, taken in seconds.items():
        ratios = [a / b for a, b in zip(taken, seconds[FORWARD], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        each = 1000 * statistics.median(taken) / batch
        lines.append(f"| {name} | {each:,.0f} | {middle:.2f} ({low:.2f} to {high:.2f}) |")
    return lines


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    keep_memory()
    torch.manual_seed(0)
    spec = get_spec(chosen.model)
    model = create_model(chosen.model).eval()
    images = torch.randn(chosen.batch, spec.input[0], chosen.size, chosen.size)
    classes = [number % spec.num_classes for number in range(chosen.batch)]
    seconds = rounds(contestants(model, images, spec.cam_stage, classes), chosen.rounds)
    threads = "1 thread" if chosen.threads == 1 else f"{chosen.threads} threads"
    lines = [
        f"torch {torch.__version__}, captum {captum.__version__}, `{chosen.model}` at "
        f"`{spec.cam_stage}`, batch {'x'.join(map(str, images.shape))}, {threads}, "
        f"{chosen.rounds} rounds",
        "",
        *table(seconds, chosen.batch),
    ]
    print(*lines, sep="\n")
    if chosen.write:
        page = PAGE.read_text("utf-8")
        text = MARK.format("\n".join([*lines, ""]))
        PAGE.write_text(re.sub(MARK.format(".*?"), lambda _: text, page, flags=re.S), "utf-8")


if __name__ == "__main__":
    main()
