"""Core's own plugin: provides datasets, metrics and commands through the same hooks as others."""

from __future__ import annotations

from cnn_core.builtin.datasets import DATASETS
from cnn_core.hookspecs import hookimpl
from cnn_core.specs import CommandSpec, DatasetSpec, MetricSpec

__all__ = ["COMMANDS"]

COMMANDS = {
    "demo": "Take the tour: train LeNet-5 on real digits and open the report",
    "list-models": "List the architectures",
    "list-datasets": "List the datasets",
    "list-recipes": "List the recipes and their results",
    "list-keys": "List the recipe keys: meaning, values, default",
    "list-weights": "List the published weights of trained networks",
    "list-views": "List the views: figures of a run",
    "show": "Show a model: paper, stages, shapes, parameters, receptive field",
    "show-data": "Show a dataset: classes, sizes, source, and samples as an image",
    "describe-data": "Write a draft of dataset.toml for your own data",
    "pack": "Decode a dataset once, into a file that training maps",
    "verify-data": "Read a whole dataset and report its faults",
    "train": "Train a model on a dataset, or resume a run",
    "finetune": "Fine-tune trained weights on a dataset",
    "cross-validate": "Train and validate a model on every fold of a dataset",
    "sweep": "Train with combinations of settings, and choose by validation",
    "lr-find": "Try a range of learning rates, and suggest one",
    "batch-find": "Find the largest micro-batch that fits in memory",
    "evaluate": "Evaluate a trained network on a split",
    "bench": "Measure the speed, latency and memory of networks",
    "compare": "Compare the recipes and results of runs",
    "predict": "Classify or segment images with a trained network",
    "features": "Write a network's features of images to a .npz file",
    "probe": "Measure features with k nearest neighbours and a linear probe",
    "export": "Export a trained network to torch.export (.pt2) or ONNX",
    "push": "Upload a trained network to the Hugging Face Hub, with a model card",
    "check": "Run the conformance checks on an installed package",
    "new": "Create a working plugin: a network, a dataset, a view or a command",
    "plugins": "List the installed plugins and their distributions",
    "doctor": "Find faults in plugins and in the environment",
}

SEGMENTATION_EVAL_ONLY = {  # too slow to compute in every epoch
    "regions": (
        "cnn_core.tasks.regions:Regions",
        "Dice, precision and recall averaged over classes; IoU of each class",
    ),
    "per_image": (
        "cnn_core.tasks.regions:PerImage",
        "mIoU and Dice of each image, averaged over images",
    ),
    "curves": (
        "cnn_core.tasks.curves:Curves",
        "pixel-wise average precision and area under the ROC curve, averaged over classes",
    ),
    "calibration": (
        "cnn_core.tasks.curves:Calibration",
        "expected calibration error over pixels",
    ),
    "boundaries": (
        "cnn_core.tasks.boundaries:Boundaries",
        "boundary F1 and IoU, Hausdorff and surface distances in pixels of the network's input, "
        "averaged over images",
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
            summary="fraction of images with the highest logit for the correct class",
        ),
        MetricSpec(
            name="miou",
            target="cnn_core.tasks.segmentation:MeanIoU",
            task="segmentation",
            summary="intersection over union over the split, averaged over classes",
        ),
        MetricSpec(
            name="pixel_accuracy",
            target="cnn_core.tasks.segmentation:PixelAccuracy",
            task="segmentation",
            summary="fraction of pixels with the highest logit for the correct class",
        ),
        *(
            MetricSpec(name=name, target=target, task="segmentation", summary=s, eval_only=True)
            for name, (target, s) in SEGMENTATION_EVAL_ONLY.items()
        ),
        MetricSpec(
            name="em_challenge",
            target="cnn_core.tasks.em:ChallengeErrors",
            task="segmentation",
            summary="pixel, Rand and warping errors of the ISBI 2012 challenge",
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
