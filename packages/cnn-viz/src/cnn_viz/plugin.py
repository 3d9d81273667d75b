"""The plugin of cnn-viz: its views and commands. It must not import torch or matplotlib."""

from __future__ import annotations

from cnn_core import CommandSpec, ViewSpec, hookimpl

SEGMENTATION, MULTILABEL = ("segmentation",), ("multilabel",)
ALL = ("classification", "segmentation", "multilabel")

VIEWS = (  # in the order of the report
    ViewSpec(
        name="curves",
        render="cnn_viz.views.curves:curves",
        summary="loss, accuracy and learning rate by epoch",
        needs=("run",),
        tasks=ALL,
    ),
    ViewSpec(
        name="confusion",
        render="cnn_viz.views.confusion:confusion",
        summary="confusion matrix, and the recall of each class",
        needs=("trained", "predictions"),
    ),
    ViewSpec(
        name="predictions",
        render="cnn_viz.views.predictions:predictions",
        summary=(
            "correct predictions, the least confident of them, and the most confident mistakes"
        ),
        needs=("trained", "predictions"),
    ),
    ViewSpec(
        name="confused",
        render="cnn_viz.views.confused:confused",
        summary="the most confused pairs of classes, with images",
        needs=("trained", "predictions"),
    ),
    ViewSpec(
        name="class_scores",
        render="cnn_viz.views.class_scores:class_scores",
        summary="precision, recall, F1, AP and calibration error of each class, worst first",
        needs=("trained", "predictions"),
    ),
    ViewSpec(
        name="rankings",
        render="cnn_viz.views.rankings:rankings",
        summary="precision-recall and ROC curves of each class, one-vs-rest",
        needs=("trained", "predictions"),
    ),
    ViewSpec(
        name="calibration",
        render="cnn_viz.views.calibration:calibration",
        summary="reliability diagrams: does the accuracy match the confidence?",
        needs=("trained", "predictions", "validation"),
    ),
    ViewSpec(
        name="coverage",
        render="cnn_viz.views.coverage:coverage",
        summary="accuracy on the most confident images, by coverage",
        needs=("trained", "predictions"),
    ),
    ViewSpec(
        name="gradcam",
        render="cnn_viz.views.gradcam:gradcam",
        summary="Grad-CAM: which parts of an image are evidence for the predicted class",
        needs=("trained", "weights", "model", "batch"),
    ),
    ViewSpec(
        name="cam_methods",
        render="cnn_viz.views.cam_methods:cam_methods",
        summary="class activation maps by six methods, side by side",
        needs=("trained", "weights", "model", "batch"),
    ),
    ViewSpec(
        name="faithfulness",
        render="cnn_viz.views.faithfulness:faithfulness",
        summary="faithfulness of the maps: deletion, insertion, ROAD, shuffled weights",
        needs=("trained", "weights", "model", "batch"),
    ),
    ViewSpec(
        name="label_scores",
        render="cnn_viz.views.label_scores:label_scores",
        summary="average precision, F1, precision and recall of each label, worst first",
        needs=("trained", "labelled"),
        tasks=MULTILABEL,
    ),
    ViewSpec(
        name="label_cams",
        render="cnn_viz.views.label_cams:label_cams",
        summary="Grad-CAM by label: which parts of an image are evidence for it",
        needs=("trained", "weights", "model", "batch"),
        tasks=MULTILABEL,
    ),
    ViewSpec(
        name="masks",
        render="cnn_viz.views.masks:masks",
        summary="predicted masks beside targets, for the best and the worst images",
        needs=("trained", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="class_iou",
        render="cnn_viz.views.class_iou:class_iou",
        summary="the IoU of each class over all pixels",
        needs=("trained", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="pixel_confusion",
        render="cnn_viz.views.confusion:pixel_confusion",
        summary="confusion matrix of pixels",
        needs=("trained", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="probability",
        render="cnn_viz.views.masks:probability",
        summary="the predicted probability and the entropy of each pixel",
        needs=("trained", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="uncertainty",
        render="cnn_viz.views.uncertainty:uncertainty",
        summary="Monte Carlo dropout: the uncertainty of each pixel, beside the errors",
        needs=("trained", "weights", "model", "batch"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="image_scores",
        render="cnn_viz.views.image_scores:image_scores",
        summary="mIoU, Dice and boundary F1 of each image",
        needs=("trained", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="pixel_curves",
        render="cnn_viz.views.pixel_curves:pixel_curves",
        summary="precision-recall and ROC curves of each class's pixels",
        needs=("trained", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="pixel_calibration",
        render="cnn_viz.views.pixel_curves:pixel_calibration",
        summary="reliability diagram of pixels: does the accuracy match the confidence?",
        needs=("trained", "segmented"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="seg_gradcam",
        render="cnn_viz.views.seg_gradcam:seg_gradcam",
        summary="Seg-Grad-CAM: which parts of an image are evidence for a class's pixels",
        needs=("trained", "weights", "model", "batch"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="maps_in_masks",
        render="cnn_viz.views.maps_in_masks:maps_in_masks",
        summary="how well maps match the target mask: energy in the mask, pointing game",
        needs=("trained", "weights", "model", "batch"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="occlusion",
        render="cnn_viz.views.occlusion:occlusion",
        summary="how much a class's probability drops when a patch of the image is occluded",
        needs=("trained", "weights", "model", "batch"),
        tasks=SEGMENTATION,
    ),
    ViewSpec(
        name="embedding",
        render="cnn_viz.views.embedding:embedding",
        summary="the network's features in two dimensions: PCA, t-SNE, UMAP",
        needs=("trained", "weights", "embedded"),
        tasks=("classification", "segmentation"),
    ),
    ViewSpec(
        name="architecture",
        render="cnn_viz.views.architecture:architecture",
        summary="the network stage by stage: sizes, parameters and skip connections",
        needs=("weights",),
        tasks=ALL,
    ),
    ViewSpec(
        name="features",
        render="cnn_viz.views.features:features",
        summary="the feature maps of one image, stage by stage",
        needs=("trained", "weights", "model", "batch"),
        tasks=("classification", "segmentation"),
    ),
    ViewSpec(
        name="arithmetic",
        render="cnn_viz.views.arithmetic:arithmetic",
        summary="one value of the first feature map: window, kernel, products, sum, activation",
        needs=("trained", "weights", "model", "batch"),
        tasks=ALL,
    ),
    ViewSpec(
        name="receptive_field",
        render="cnn_viz.views.receptive_field:receptive_field",
        summary="theoretical and effective receptive field of each stage",
        needs=("trained", "weights", "model", "batch"),
        tasks=ALL,
    ),
    ViewSpec(
        name="activation_maximisation",
        render="cnn_viz.views.activation_maximisation:activation_maximisation",
        summary="for each class an image that maximises its logit, by gradient ascent from noise",
        needs=("trained", "weights", "model", "batch"),
        costly=True,
    ),
    ViewSpec(
        name="weights",
        render="cnn_viz.views.weights:weights",
        summary="histograms of each stage's weights and activations, and dead units",
        needs=("trained", "model", "batch"),
        tasks=ALL,
    ),
    ViewSpec(
        name="filters",
        render="cnn_viz.views.filters:filters",
        summary="the kernels of the first convolution, before and after training",
        needs=("trained", "weights", "model"),
        tasks=ALL,
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
            summary="Draw one view of a trained network, or all views except costly ones",
        ),
        CommandSpec(
            name="embed",
            target="cnn_viz.commands.cli:embed",
            summary="Embed features of test images in two dimensions by PCA, t-SNE or UMAP",
        ),
        CommandSpec(
            name="cam",
            target="cnn_viz.commands.cli:cam",
            summary="Draw class activation maps of image files",
        ),
        CommandSpec(
            name="explore",
            target="cnn_viz.commands.cli:explore",
            summary="Serve a local page that explains predictions for your own images",
        ),
        CommandSpec(
            name="overlay",
            target="cnn_viz.commands.cli:overlay",
            summary="Draw the learning curves of several runs in one figure",
        ),
        CommandSpec(
            name="report",
            target="cnn_viz.commands.cli:report",
            summary="Write a one-page report of a trained network with figures and metrics",
        ),
    ]
