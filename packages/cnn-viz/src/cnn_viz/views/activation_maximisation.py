"""The view `activation_maximisation`: an image that maximises each class's logit."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure
from torch import nn

from cnn_core.create import build_untrained
from cnn_core.data import Batch
from cnn_core.errors import UsageError
from cnn_core.layers.tracing import trace
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.activation_maximisation import maximise_logits
from cnn_viz.drawing.image_grid import as_image

__all__ = ["activation_maximisation", "steps_for"]

CLASSES = 10
COLUMNS = 5
MAX_STEPS, MIN_STEPS = 128, 16
BUDGET = 400 * 10**9  # multiply-accumulates: about 15 seconds on one CPU core


def activation_maximisation(
    trained: Trained, weights: Weights, model: nn.Module, batch: Batch
) -> Figure:
    """Draw, for each of the first ten classes, an image that maximises its logit."""
    # Not all classes, since each costs the same long optimisation.
    classes = list(range(min(CLASSES, weights.num_classes)))
    steps = steps_for(weights, len(classes))
    preprocessing = weights.preprocessing
    images, before, after = maximise_logits(
        model,
        classes,
        (weights.in_channels, *preprocessing.size),
        batch.images.new_tensor(preprocessing.mean),
        batch.images.new_tensor(preprocessing.std),
        steps=steps,
    )
    rows = -(-len(classes) // COLUMNS)
    height, width = preprocessing.size
    figure = style.figure(
        10.5,
        1.3 + rows * (0.45 + 2.0 * min(height / width, 1.5)),
        f"Activation maximisation: {trained.recipe.model} on {trained.recipe.data}",
        f"{steps} steps of gradient ascent on one class's logit, starting from noise, with random "
        "shifts and slight blurs (Erhan et al. 2009; Olah et al. 2017).\nAbove each image: the "
        "class, its logit before and after, and its probability after. The images show what "
        "excites the network; they are not typical examples of the class.",
    )
    probabilities = after.double().softmax(1)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, k in zip(axes.flat, classes, strict=False):
        ax.imshow(as_image(images[k]), cmap="gray", vmin=0, vmax=1)
        first, last = (float(logits[k, k]) for logits in (before, after))
        ax.set_title(
            f"{style.short(weights.classes[k], 22)}\n"
            f"{style.signed(first, '.1f')} \N{RIGHTWARDS ARROW} {style.signed(last, '.1f')}, "
            f"{style.confidence(float(probabilities[k, k]))}",
            fontsize=9,
        )
    return figure


def steps_for(weights: Weights, classes: int) -> int:
    """Return the number of steps, 16 to 128, that a budget of 400 billion MACs allows.

    A step costs three forward passes per class, since a backward pass costs as much as two.

    Raises:
        UsageError: the budget allows fewer than 16 steps.
    """
    macs = trace(
        partial(build_untrained, weights), (), (weights.in_channels, *weights.preprocessing.size)
    ).macs
    cost = 3 * classes * max(macs, 1)
    if MIN_STEPS * cost > BUDGET:
        raise UsageError(
            f"{weights.model}: {MIN_STEPS} steps for {classes} classes cost "
            f"{MIN_STEPS * cost / 1e9:,.0f} billion multiply-accumulates; "
            f"activation_maximisation allows at most {BUDGET / 1e9:,.0f} billion"
        )
    return min(BUDGET // cost, MAX_STEPS)
