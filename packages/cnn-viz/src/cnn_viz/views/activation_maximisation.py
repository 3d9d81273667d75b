"""The view `activation_maximisation`."""

from __future__ import annotations

from functools import partial

from matplotlib.figure import Figure
from torch import nn

from cnn_core.create import untrained
from cnn_core.data import Batch
from cnn_core.errors import UsageError
from cnn_core.layers.tracing import trace
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.activation_maximisation import maximised
from cnn_viz.drawing.image_grid import as_image

__all__ = ["activation_maximisation", "steps_for"]

CLASSES = 10
COLUMNS = 5
MOST, LEAST = 128, 16  # steps
BUDGET = 400 * 10**9  # multiply-accumulates: some 15 seconds of one core


def activation_maximisation(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw an image for each of the first ten classes whose logit has been made high."""
    classes = list(range(min(CLASSES, weights.num_classes)))
    steps = steps_for(weights, len(classes))
    like, known = batch.images, weights.preprocessing
    pictures, before, after = maximised(
        model,
        classes,
        (weights.in_channels, *known.size),
        like.new_tensor(known.mean),
        like.new_tensor(known.std),
        steps=steps,
    )
    rows = -(-len(classes) // COLUMNS)
    height, width = known.size
    figure = style.figure(
        10.5,
        1.3 + rows * (0.45 + 2.0 * min(height / width, 1.5)),
        f"What {run.recipe.model} answers to, trained on {run.recipe.data}",
        f"From noise, {steps} steps up the gradient of one class's logit, with shifts of the "
        "image and a small blur on the way (Erhan et al. 2009; Olah et al. 2017). Above each:\n"
        "the class, its logit in the noise and at the end, and its probability at the end. It "
        "shows what drives the number, not what such images look like.",
    )
    probabilities = after.double().softmax(1)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, number in zip(axes.flat, classes, strict=False):
        ax.imshow(as_image(pictures[number]), cmap="gray", vmin=0, vmax=1)
        first, last = (float(logits[number, number]) for logits in (before, after))
        ax.set_title(
            f"{style.short(weights.classes[number], 22)}\n"
            f"{style.signed(first, '.1f')} \N{RIGHTWARDS ARROW} {style.signed(last, '.1f')}, "
            f"{style.confidence(float(probabilities[number, number]))}",
            fontsize=9,
        )
    return figure


def steps_for(weights: Weights, classes: int) -> int:
    """Return how many steps the budget of 400 billion multiply-accumulates allows: 16 to 128.

    A step costs three passes, one forward and two for the way back, for each class.

    Raises:
        UsageError: it allows fewer.
    """
    macs = trace(
        partial(untrained, weights), (), (weights.in_channels, *weights.preprocessing.size)
    ).macs
    cost = 3 * classes * max(macs, 1)
    if LEAST * cost > BUDGET:
        raise UsageError(
            f"{weights.model}: {LEAST} steps for {classes} classes cost "
            f"{LEAST * cost / 1e9:,.0f} billion multiply-accumulates, "
            f"activation_maximisation takes {BUDGET / 1e9:,.0f} at most"
        )
    return min(BUDGET // cost, MOST)
