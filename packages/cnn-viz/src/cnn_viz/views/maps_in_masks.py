"""The view `maps_in_masks`."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.data.augment import IGNORED
from cnn_core.errors import UsageError
from cnn_core.tasks.segmentation import centred, classes_of, two_sided
from cnn_core.training import Run
from cnn_core.weights.native import Weights
from cnn_viz import style
from cnn_viz.attribution.cam import seg_grad_cam
from cnn_viz.attribution.faithfulness import edge_map, energy_in_mask, pointing_game
from cnn_viz.network.graph import strides
from cnn_viz.network.inspection import untouched
from cnn_viz.results.metrics import ENOUGH
from cnn_viz.views.faithfulness import EDGES, METHODS, RANDOM, dots, random_cam
from cnn_viz.views.masks import part_shown

__all__ = ["maps_in_masks"]

PAIRS, EACH = 32, 3  # of an image and a class; classes of an image
PIXELS = 2**21  # of all pairs


def maps_in_masks(run: Run, weights: Weights, model: nn.Module, batch: Batch) -> Figure:
    """Draw how much of each map lies where the class is, beside maps that know no network.

    Raises:
        UsageError: no class but the background is found where one is.
    """
    spec = registry.get_spec(run.recipe.model)
    stages = (spec.cam_stage, spec.stages[-2])
    pixels = strides(weights)
    with untouched(model, batch.images):
        logits = two_sided(model(batch.images).float())
    targets = centred(batch.targets, logits)
    most = min(PAIRS, max(PIXELS // batch.images[0, 0].numel(), 1))
    rows, classes = _pairs(classes_of(logits), targets, most)
    images = batch.images[rows]
    counted = targets[rows] != IGNORED
    inside = targets[rows] == classes[:, None, None]
    share = float((inside.sum((1, 2)) / counted.sum((1, 2))).mean())
    intervals = " and 95 % bootstrap intervals" if len(rows) >= ENOUGH else ""
    figure = style.figure(
        10.5,
        5.8,
        f"Do maps lie where the class is? {run.recipe.model} on {run.recipe.data}",
        f"{len(rows)} pairs of a test image and a class that is in it and is found; what speaks "
        f"for the pixels that the network takes for the class; means{intervals}.\n"
        f"Dotted: the mask's share of the image, {style.percent(share)} in the mean, which an "
        "even map has, too. Random numbers and edges know nothing of the network."
        f"{part_shown(weights)}",
    )
    axes = figure.subplots(2, 2, sharex="col")
    for (left, right), stage in zip(axes, stages, strict=True):
        maps = {
            method: seg_grad_cam(model, images, stage, classes, method=method)
            for method in METHODS
        }
        maps[RANDOM] = random_cam(maps[METHODS[0]])
        heats = {name: cam.heat(stride=pixels[stage]) for name, cam in maps.items()}
        heats[EDGES] = edge_map(images)
        seen = {name: centred(heat, targets) * counted for name, heat in heats.items()}
        dots(
            left,
            f"{stage}: energy in the mask",
            {name: energy_in_mask(heat, inside) for name, heat in seen.items()},
        )
        dots(
            right,
            f"{stage}: pointing game",
            {name: pointing_game(heat, inside).float() for name, heat in seen.items()},
        )
        right.set_yticklabels([])
        for ax in (left, right):
            _finished(ax, share)
    axes[1, 0].set_xlabel("part of the map's sum")
    axes[1, 1].set_xlabel("maps whose highest point is in the mask")
    return figure


def _pairs(said: Tensor, targets: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return images and classes but the background, that are both there and found: n each.

    Of each image the largest; a class that fills the image tells nothing.
    """
    pairs = []
    for number, (predicted, target) in enumerate(zip(said, targets, strict=True)):
        known = target[target != IGNORED]
        counts = known[known > 0].bincount().tolist()
        found = set(predicted.unique().tolist())
        there = [k for k, count in enumerate(counts) if 0 < count < len(known) and k in found]
        pairs += [(number, k) for k in sorted(there, key=lambda k: -counts[k])[:EACH]]
    if not pairs:
        raise UsageError("no class but the background is found where there is one")
    rows, classes = zip(*pairs[:most], strict=True)
    return torch.tensor(rows), torch.tensor(classes, device=said.device)


def _finished(ax: Axes, share: float) -> None:
    ax.axvline(share, color=style.INK, linewidth=1, linestyle=(0, (1, 2)))
    ax.set_xlim(-0.03, 1.03)
