"""What cnn-viz offers to cnnzoo."""

from __future__ import annotations

from cnn_core import CommandSpec, ViewSpec, hookimpl

SEGMENTATION = ("segmentation",)

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
        summary="images that were right, right but least sure, and the most confident mistakes",
        needs=("run", "predictions"),
    ),
    ViewSpec(
        name="confused",
        render="cnn_viz.views.confused:confused",
        summary="the pairs of classes that are confused most, with images",
        needs=("run", "predictions"),
    ),
    ViewSpec(
        name="class_scores",
        render="cnn_viz.views.class_scores:class_scores",
        summary="precision, recall, F1, AP and calibration error of each class, the worst first",
        needs=("run", "predictions"),
    ),
    ViewSpec(
        name="rankings",
        render="cnn_viz.views.rankings:rankings",
        summary="precision, recall and ROC of each class against all others",
        needs=("run", "predictions"),
    ),
    ViewSpec(
        name="calibration",
        render="cnn_viz.views.calibration:calibration",
        summary="whether images are right as often as their probability says",
        needs=("run", "predictions", "validation"),
    ),
    ViewSpec(
        name="coverage",
        render="cnn_viz.views.coverage:coverage",
        summary="the accuracy on the images that the network is surest of",
        needs=("run", "predictions"),
    ),
    ViewSpec(
        name="gradcam",
        render="cnn_viz.views.gradcam:gradcam",
        summary="Grad-CAM: the parts of an image that speak for the predicted class",
        needs=("run", "weights", "model", "batch"),
    ),
    ViewSpec(
        name="cam_methods",
        render="cnn_viz.views.cam_methods:cam_methods",
        summary="six class activation maps side by side: where they agree, and where not",
        needs=("run", "weights", "model", "batch"),
    ),
    ViewSpec(
        name="faithfulness",
        render="cnn_viz.views.faithfulness:faithfulness",
        summary="whether the maps are true to the network: deletion, insertion, ROAD, weights",
        needs=("run", "weights", "model", "batch"),
    ),
    ViewSpec(
        name="masks",
        render="cnn_viz.views.masks:masks",
        summary="what was found, missed and taken for it, in the best and the worst images",
        needs=("run", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="probability",
        render="cnn_viz.views.masks:probability",
        summary="how probable the foreground is in each pixel, and how uncertain that is",
        needs=("run", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="uncertainty",
        render="cnn_viz.views.uncertainty:uncertainty",
        summary="how uncertain the network is of each pixel, by dropout, and where it is wrong",
        needs=("run", "weights", "model", "batch"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="image_scores",
        render="cnn_viz.views.image_scores:image_scores",
        summary="mIoU, Dice and boundary F1, image by image",
        needs=("run", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="pixel_curves",
        render="cnn_viz.views.pixel_curves:pixel_curves",
        summary="precision, recall and ROC of the pixels of each class",
        needs=("run", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="pixel_calibration",
        render="cnn_viz.views.pixel_curves:pixel_calibration",
        summary="whether pixels are right as often as their probability says",
        needs=("run", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="seg_gradcam",
        render="cnn_viz.views.seg_gradcam:seg_gradcam",
        summary="Seg-Grad-CAM: the parts of an image that speak for a class's pixels",
        needs=("run", "weights", "model", "batch"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="maps_in_masks",
        render="cnn_viz.views.maps_in_masks:maps_in_masks",
        summary="how much of each map lies where the class is: energy, and the pointing game",
        needs=("run", "weights", "model", "batch"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="occlusion",
        render="cnn_viz.views.occlusion:occlusion",
        summary="how far a class's probability falls where a patch of the image is covered",
        needs=("run", "weights", "model", "batch"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="embedding",
        render="cnn_viz.views.embedding:embedding",
        summary="the images in two dimensions, by what the network makes of them",
        needs=("run", "weights", "embedded"),
        tasks=("classification", "segmentation"),
    ),
    ViewSpec(
        name="architecture",
        render="cnn_viz.views.architecture:architecture",
        summary="the network, stage by stage: sizes, parameters, and what skips what",
        needs=("run", "weights"),
        tasks=("classification", "segmentation"),
    ),
    ViewSpec(
        name="features",
        render="cnn_viz.views.features:features",
        summary="one image on its way through the network, stage by stage",
        needs=("run", "weights", "model", "batch"),
        tasks=("classification", "segmentation"),
    ),
    ViewSpec(
        name="arithmetic",
        render="cnn_viz.views.arithmetic:arithmetic",
        summary="one number of the first feature map: window, kernel, products, sum, activation",
        needs=("run", "weights", "model", "batch"),
        tasks=("classification", "segmentation"),
    ),
    ViewSpec(
        name="receptive_field",
        render="cnn_viz.views.receptive_field:receptive_field",
        summary="how much of the image a position of each stage sees, and how strongly",
        needs=("run", "weights", "model", "batch"),
        tasks=("classification", "segmentation"),
    ),
    ViewSpec(
        name="activation_maximisation",
        render="cnn_viz.views.activation_maximisation:activation_maximisation",
        summary="an image for each class that its logit is high for, found from noise",
        needs=("run", "weights", "model", "batch"),
        costly=True,
    ),
    ViewSpec(
        name="weights",
        render="cnn_viz.views.weights:weights",
        summary="how weights and activations of each stage are spread, and dead units",
        needs=("run", "model", "batch"),
        tasks=("classification", "segmentation"),
    ),
    ViewSpec(
        name="filters",
        render="cnn_viz.views.filters:filters",
        summary="the kernels of the first convolution, before training and after",
        needs=("run", "weights", "model"),
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
            target="cnn_viz.commands.cli:viz",
            summary="Draw one figure of a run, or all",
        ),
        CommandSpec(
            name="embed",
            target="cnn_viz.commands.cli:embed",
            summary="Place a run's test images in two dimensions, by PCA, t-SNE or UMAP",
        ),
        CommandSpec(
            name="cam",
            target="cnn_viz.commands.cli:cam",
            summary="Draw what in image files speaks for a class",
        ),
        CommandSpec(
            name="explore",
            target="cnn_viz.commands.cli:explore",
            summary="Serve a page for images of your own: where does the network look?",
        ),
        CommandSpec(
            name="overlay",
            target="cnn_viz.commands.cli:overlay",
            summary="Learning curves of several runs on one figure",
        ),
        CommandSpec(
            name="report",
            target="cnn_viz.commands.cli:report",
            summary="Put a run's figures and numbers on one page",
        ),
    ]
