"""Core's own plugin: its datasets, metrics and commands come through the same hooks."""

from __future__ import annotations

from cnn_core.builtin.datasets import DATASETS
from cnn_core.hookspecs import hookimpl
from cnn_core.specs import CommandSpec, DatasetSpec, MetricSpec

__all__ = ["COMMANDS"]

COMMANDS = {
    "demo": "Train LeNet-5 on real digits and open what it learned: the tour",
    "list-models": "The architectures",
    "list-datasets": "The datasets",
    "list-recipes": "The recipes, with what they reached",
    "list-views": "The figures that can be drawn of a run",
    "show": "One model: paper, stages, shapes, parameters, receptive field",
    "show-data": "One dataset: what it is, what is there of it, samples as an image",
    "verify-data": "Read all of a dataset and say what is wrong with it",
    "train": "Train a model on a dataset, or go on with a run",
    "lr-find": "Try learning rates, one step each, and see where the loss falls",
    "batch-find": "Find how many images of a batch fit in memory at once",
    "evaluate": "Measure a run's weights on a split",
    "compare": "Runs side by side: what differs in their recipes, and what they reached",
    "predict": "Classify images with a run's weights",
    "export": "Write a run's network into a file that runs without its Python: .pt2, ONNX",
    "check": "Hold what an installed package offers to the conformance checks",
    "new": "Write a plugin that works as it is: a network, a dataset, a view, a command",
    "plugins": "The installed plugins, and where they are from",
    "doctor": "Find what is wrong with plugins and surroundings",
}

THOROUGH = {  # of segmentation: taken when a run is evaluated
    "regions": (
        "cnn_core.tasks.regions:Regions",
        "Dice, precision and recall, means of the classes; IoU of each class",
    ),
    "per_image": (
        "cnn_core.tasks.regions:PerImage",
        "means over images of each image's own mIoU and Dice",
    ),
    "curves": (
        "cnn_core.tasks.curves:Curves",
        "average precision and area under the ROC curve of pixels, means of the classes",
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
            summary="intersection over union of each class over a split, mean of the classes",
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
