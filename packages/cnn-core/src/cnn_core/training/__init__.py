"""Training: the loop, recipes, runs, and what is done with trained weights."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_core.training.evaluate import Predictions, evaluate, predictions
    from cnn_core.training.predict import predict
    from cnn_core.training.recipe import Recipe
    from cnn_core.training.run import Run
    from cnn_core.training.train import train

__all__ = ["Predictions", "Recipe", "Run", "evaluate", "predict", "predictions", "train"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_core.training.evaluate": ("Predictions", "evaluate", "predictions"),
        "cnn_core.training.predict": ("predict",),
        "cnn_core.training.recipe": ("Recipe",),
        "cnn_core.training.run": ("Run",),
        "cnn_core.training.train": ("train",),
    },
)
