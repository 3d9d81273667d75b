"""The public API for training, evaluation, prediction and export."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_core.runs.ranges import Range
    from cnn_core.runs.recipe import Recipe
    from cnn_core.runs.run import Run
    from cnn_core.training.evaluation import evaluate
    from cnn_core.training.experiments import CrossValidation, Sweep, cross_validate, sweep
    from cnn_core.training.exporting import Exported, export
    from cnn_core.training.feature_extraction import Features, features
    from cnn_core.training.finetuning import finetune
    from cnn_core.training.inference import OptimizedNetwork, optimized
    from cnn_core.training.outputs import (
        LabelPredictions,
        Predictions,
        SegmentationOutput,
        label_predictions,
        predictions,
        segmented,
    )
    from cnn_core.training.prediction import Prediction, Predictor, Segmentation, predict, segment
    from cnn_core.training.probing import ProbeResult, probe
    from cnn_core.training.sharing import Shared, push
    from cnn_core.training.trained import Trained
    from cnn_core.training.trainer import train

__all__ = [
    "CrossValidation",
    "Exported",
    "Features",
    "LabelPredictions",
    "OptimizedNetwork",
    "Prediction",
    "Predictions",
    "Predictor",
    "ProbeResult",
    "Range",
    "Recipe",
    "Run",
    "Segmentation",
    "SegmentationOutput",
    "Shared",
    "Sweep",
    "Trained",
    "cross_validate",
    "evaluate",
    "export",
    "features",
    "finetune",
    "label_predictions",
    "optimized",
    "predict",
    "predictions",
    "probe",
    "push",
    "segment",
    "segmented",
    "sweep",
    "train",
]

__getattr__: Callable[[str], Any] = lazy_names(
    __name__,
    {
        "cnn_core.training.evaluation": ("evaluate",),
        "cnn_core.training.experiments": (
            "CrossValidation",
            "Sweep",
            "cross_validate",
            "sweep",
        ),
        "cnn_core.training.exporting": ("Exported", "export"),
        "cnn_core.training.feature_extraction": ("Features", "features"),
        "cnn_core.training.finetuning": ("finetune",),
        "cnn_core.training.inference": ("OptimizedNetwork", "optimized"),
        "cnn_core.training.outputs": (
            "LabelPredictions",
            "Predictions",
            "SegmentationOutput",
            "label_predictions",
            "predictions",
            "segmented",
        ),
        "cnn_core.training.prediction": (
            "Prediction",
            "Predictor",
            "Segmentation",
            "predict",
            "segment",
        ),
        "cnn_core.training.probing": ("ProbeResult", "probe"),
        "cnn_core.training.sharing": ("Shared", "push"),
        "cnn_core.runs.ranges": ("Range",),
        "cnn_core.runs.recipe": ("Recipe",),
        "cnn_core.runs.run": ("Run",),
        "cnn_core.training.trained": ("Trained",),
        "cnn_core.training.trainer": ("train",),
    },
)
