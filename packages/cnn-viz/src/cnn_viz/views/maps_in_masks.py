"""The view `maps_in_masks`: how well maps match the segmentation masks."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.data.augment import IGNORED
from cnn_core.data.palette import background_class
from cnn_core.errors import UsageError
from cnn_core.tasks.segmentation import center_crop, predicted_classes, two_class_logits
from cnn_core.training import Trained
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import seg_grad_cam
from cnn_viz.attribution.faithfulness import edge_map, energy_in_mask, pointing_game
from cnn_viz.network.graph import strides
from cnn_viz.network.inspection import inspection_mode
from cnn_viz.results.metrics import MIN_VALUES
from cnn_viz.views.faithfulness import EDGES, METHODS, RANDOM, plot_means, random_cam
from cnn_viz.views.masks import tile_note

__all__ = ["maps_in_masks"]

MAX_PAIRS, CLASSES_PER_IMAGE = 32, 3  # a pair is an image and a class
PIXEL_BUDGET = 2**21  # over all pairs: this view is slow


def maps_in_masks(trained: Trained, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw how well class activation maps match the target masks, beside two baselines.

    Raises:
        UsageError: no foreground class is predicted in an image that contains it.
    """
    spec = registry.get_spec(trained.recipe.model)
    stages = (spec.cam_stage, spec.stages[-2])
    stride_of = strides(weights)
    with inspection_mode(model, batch.images):
        logits = two_class_logits(model(batch.images).float())
    targets = center_crop(batch.targets, logits)
    limit = min(MAX_PAIRS, max(PIXEL_BUDGET // batch.images[0, 0].numel(), 1))
    background = background_class(weights.classes, weights.background)
    rows, classes = _pairs(predicted_classes(logits), targets, limit, background)
    images = batch.images[rows]
    valid = targets[rows] != IGNORED
    inside = targets[rows] == classes[:, None, None]
    mask_share = float((inside.sum((1, 2)) / valid.sum((1, 2))).mean())
    figure = style.figure(
        10.5,
        5.8,
        f"Do the maps match the masks? {trained.recipe.model} on {trained.recipe.data}",
        _caption(len(rows), mask_share) + tile_note(weights),
    )
    axes = figure.subplots(2, 2, sharex="col")
    for (left, right), stage in zip(axes, stages, strict=True):
        heats = _heats(model, images, stage, classes, stride_of[stage])
        # Ignored pixels belong to no mask, so evidence there would count against every map.
        cropped = {name: center_crop(heat, targets) * valid for name, heat in heats.items()}
        plot_means(
            left,
            f"{stage}: energy in the mask",
            {name: energy_in_mask(heat, inside) for name, heat in cropped.items()},
        )
        plot_means(
            right,
            f"{stage}: pointing game",
            {name: pointing_game(heat, inside).float() for name, heat in cropped.items()},
        )
        right.set_yticklabels([])
        for ax in (left, right):
            _format_axes(ax, mask_share)
    axes[1, 0].set_xlabel("share of the map's sum")
    axes[1, 1].set_xlabel("share of maps with their maximum in the mask")
    return figure


def _heats(
    model: nn.Module, images: Tensor, stage: str, classes: Tensor, stride: int
) -> dict[str, Tensor]:
    """Return the maps, N H W, of each method and of the two baselines, by name."""
    maps = {
        method: seg_grad_cam(model, images, stage, classes, method=method) for method in METHODS
    }
    maps[RANDOM] = random_cam(maps[METHODS[0]])
    heats = {name: cam.heat(stride=stride) for name, cam in maps.items()}
    return {**heats, EDGES: edge_map(images)}


def _caption(pairs: int, mask_share: float) -> str:
    intervals = " and 95 % bootstrap intervals" if pairs >= MIN_VALUES else ""
    return (
        f"{pairs} pairs of a test image and a class that is present and predicted; the maps "
        f"explain the pixels predicted as the class; means{intervals}.\n"
        "Dotted: the mask's share of the image without ignored pixels, "
        f"{style.percent(mask_share)} on average, which is also the score of a uniform map. "
        "Random numbers and edges ignore the network."
    )


def _pairs(
    predictions: Tensor, targets: Tensor, limit: int, background: int | None = 0
) -> tuple[Tensor, Tensor]:
    """Return pairs of an image and a foreground class that it contains and that is predicted.

    The pairs are two tensors of length n: image indices and classes. Each image contributes its
    largest classes, without a class that fills it: any map would match.

    Raises:
        UsageError: there is no such pair.
    """
    pairs = []
    for index, (predicted, target) in enumerate(zip(predictions, targets, strict=True)):
        valid = target[target != IGNORED]
        counts = (valid if background is None else valid[valid != background]).bincount().tolist()
        predicted_classes = set(predicted.unique().tolist())
        present = [
            k
            for k, count in enumerate(counts)
            if 0 < count < len(valid) and k in predicted_classes
        ]
        pairs += [
            (index, k) for k in sorted(present, key=lambda k: -counts[k])[:CLASSES_PER_IMAGE]
        ]
    if not pairs:
        raise UsageError("no foreground class is predicted in an image that contains it")
    rows, classes = zip(*pairs[:limit], strict=True)
    return torch.tensor(rows), torch.tensor(classes, device=predictions.device)


def _format_axes(ax: Axes, mask_share: float) -> None:
    ax.axvline(mask_share, color=style.INK, linewidth=1, linestyle=(0, (1, 2)))
    ax.set_xlim(-0.03, 1.03)
