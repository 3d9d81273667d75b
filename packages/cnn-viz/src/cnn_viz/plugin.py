"""What cnn-viz offers to cnnzoo."""

from __future__ import annotations

from cnn_core import CommandSpec, ViewSpec, hookimpl

VIEWS = (  # in the order in which the report shows them
    ViewSpec(
        name="curves",
        render="cnn_viz.views.curves:curves",
        summary="loss, accuracy and learning rate, epoch by epoch",
        needs=("run",),
        tasks=("classification", "segmentation"),
    ),
    ViewSpec(
        name="confusion",
        render="cnn_viz.views.confusion:confusion",
        summary="which classes are taken for which, and each one's recall",
        needs=("run", "predictions"),
    ),
    ViewSpec(
        name="predictions",
        render="cnn_viz.views.predictions:predictions",
        summary="images that were classified right, and the most confident mistakes",
        needs=("run", "predictions"),
    ),
    ViewSpec(
        name="gradcam",
        render="cnn_viz.views.gradcam:gradcam",
        summary="Grad-CAM: the parts of an image that speak for the predicted class",
        needs=("run", "model", "batch"),
    ),
    ViewSpec(
        name="features",
        render="cnn_viz.views.features:features",
        summary="one image on its way through the network, stage by stage",
        needs=("run", "model", "batch"),
    ),
    ViewSpec(
        name="filters",
        render="cnn_viz.views.filters:filters",
        summary="the kernels of the first convolution",
        needs=("run", "model"),
        tasks=("classification", "segmentation"),
    ),
)


@hookimpl
def cnnzoo_views() -> tuple[ViewSpec, ...]:
    return VIEWS


@hookimpl
def cnnzoo_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="viz",
            target="cnn_viz.commands:viz",
            summary="Draw one figure of a run, or all",
        ),
        CommandSpec(
            name="overlay",
            target="cnn_viz.commands:overlay",
            summary="Learning curves of several runs on one figure",
        ),
        CommandSpec(
            name="report",
            target="cnn_viz.commands:report",
            summary="Put a run's figures and numbers on one page",
        ),
    ]
