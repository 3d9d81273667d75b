"""Core's own plugin: its datasets, metrics and commands use the same hooks as any other."""

from __future__ import annotations

from cnn_core.builtin.datasets import DATASETS
from cnn_core.hookspecs import hookimpl
from cnn_core.specs import CommandSpec, DatasetSpec, MetricSpec

__all__ = ["COMMANDS"]

COMMANDS = {
    "demo": "Take the tour: train LeNet-5 on real digits and open the report",
    "list-models": "List the architectures",
    "list-datasets": "List the datasets",
    "list-recipes": "List the recipes with their results",
    "list-views": "List the figures that can be drawn of a run",
    "show": "Show a model: paper, stages, shapes, parameters, receptive field",
    "show-data": "Show a dataset: facts, files found, samples as an image",
    "verify-data": "Read a whole dataset and report its faults",
    "train": "Train a model on a dataset, or resume a run",
    "lr-find": "Try learning rates, one step each, to see where the loss falls",
    "batch-find": "Find how many images fit in memory at once",
    "evaluate": "Evaluate a run's weights on a split",
    "compare": "Compare runs: differences of their recipes, and results",
    "predict": "Classify images with a run's weights",
    "export": "Export a run's network to a file that needs no Python code: .pt2, ONNX",
    "check": "Run the conformance checks on an installed package",
    "new": "Write a working plugin: a network, a dataset, a view or a command",
    "plugins": "List the installed plugins and their distributions",
    "doctor": "Find faults of plugins and of the environment",
}

THOROUGH = {  # for segmentation, computed only in evaluation: too slow for every epoch
    "regions": (
        "cnn_core.tasks.regions:Regions",
        "Dice, precision and recall, means over classes; IoU of each class",
    ),
    "per_image": (
        "cnn_core.tasks.regions:PerImage",
        "mIoU and Dice of each image, means over images",
    ),
    "curves": (
        "cnn_core.tasks.curves:Curves",
        "average precision and area under the ROC curve of pixels, means over classes",
    ),
    "calibration": (
        "cnn_core.tasks.curves:Calibration",
        "expected calibration error of pixels",
    ),
    "boundaries": (
        "cnn_core.tasks.boundaries:Boundaries",
        "boundary F1 and IoU, Hausdorff and surface distances in pixels, means over images",
    ),
}


@hookimpl
def cnnzoo_datasets() -> list[DatasetSpec]:
    return DATASETS


@hookimpl
def cnnzoo_metrics() -> list[MetricSpec]:
    return [
        MetricSpec(
            name="top1",
            target="cnn_core.tasks.classification:Top1",
            task="classification",
            summary="fraction of images whose class has the highest logit",
        ),
        MetricSpec(
            name="miou",
            target="cnn_core.tasks.segmentation:MeanIoU",
            task="segmentation",
            summary="intersection over union of each class over a split, mean over classes",
        ),
        MetricSpec(
            name="pixel_accuracy",
            target="cnn_core.tasks.segmentation:PixelAccuracy",
            task="segmentation",
            summary="fraction of pixels whose class has the highest logit",
        ),
        *(
            MetricSpec(name=name, target=target, task="segmentation", summary=s, eval_only=True)
            for name, (target, s) in THOROUGH.items()
        ),
        MetricSpec(
            name="em_challenge",
            target="cnn_core.tasks.em:ChallengeErrors",
            task="segmentation",
            summary="pixel, Rand and warping error of the ISBI 2012 challenge",
            higher_is_better=False,
            eval_only=True,
            data=("isbi_em",),
        ),
    ]


@hookimpl
def cnnzoo_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name=name,
            target=f"cnn_core.cli.{name.replace('-', '_')}:command",
            summary=summary,
        )
        for name, summary in COMMANDS.items()
    ]
