"""Class activation maps without gradients: weights from the last layer, or from the effect of
masking the image or ablating a map.

CAM: B. Zhou et al., "Learning deep features for discriminative localization", CVPR 2016,
arXiv:1512.04150. Score-CAM: H. Wang et al., CVPR workshops 2020, arXiv:1910.01279. Ablation-CAM:
S. Desai and H. G. Ramaswamy, WACV 2020, doi:10.1109/WACV45572.2020.9093360.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnn_core.errors import UsageError
from cnn_viz.attribution.cam_scale import resize_to_image
from cnn_viz.attribution.target import Target
from cnn_viz.network.hooks import hook_stages

__all__ = ["PERTURBING", "ablation_cam", "class_weights", "score_cam"]


def class_weights(model: nn.Module, stage: str, classes: Tensor, gradient: Tensor) -> Tensor:
    """Return the weights of each image's class in the last linear layer: N C 1 1.

    After global average pooling over P positions and that layer, the logit's gradient is the
    class's weight over P at every position (Zhou et al., Eq. 1). A layer is accepted only if its
    weights match the gradient: the shape alone would also accept unrelated layers.

    Raises:
        UsageError: no linear layer matches, so CAM is undefined.
    """
    everywhere = gradient * gradient[0, 0].numel()
    # From the end: the classifier is the last layer, and earlier ones may have the same shape.
    for module in reversed(list(model.modules())):
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        rows = module.weight.detach().float().flatten(1)
        if rows.shape[1] != gradient.shape[1] or len(rows) <= int(classes.max()):
            continue
        weights = rows[classes][:, :, None, None]
        # A tolerance of 1 %, because the gradient may have been computed in half precision.
        if (everywhere - weights).abs().max() <= 0.01 * weights.abs().max():
            return weights
    raise UsageError(
        f"CAM needs global average pooling and a linear layer after stage '{stage}'",
        "use grad-cam, which needs neither",
    )


def score_cam(
    model: nn.Module,
    images: Tensor,
    stage: str,
    maps: Tensor,
    target: Target,
    *,
    call: int | None,
    batch: int,
) -> Tensor:
    """Weight each map by the class's logit for the image masked with it, softmax over maps.

    The paper subtracts the logit of a black baseline image. It is the same for every map, so the
    softmax cancels it.
    """
    scores = torch.empty(maps.shape[:2], device=maps.device)
    for n, k in _image_map_pairs(maps, batch):
        masks = resize_to_image(maps[n, k], (images.shape[-2], images.shape[-1]))
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        # A constant map has no range: its mask is 0 and not NaN.
        masks = torch.where(high > low, (masks - low) / (high - low), 0)
        logits = model(images[n] * masks[:, None].to(images.dtype))
        scores[n, k] = target[n].scores(logits).float()
    return (scores.softmax(1)[:, :, None, None] * maps).sum(1)


def ablation_cam(
    model: nn.Module,
    images: Tensor,
    stage: str,
    maps: Tensor,
    target: Target,
    *,
    call: int | None,
    batch: int,
) -> Tensor:
    """Weight each map by the relative drop of the class's logit y without it: (y - y_k) / |y|.

    The paper divides by y, which flips the sign of the whole map when y is negative.
    """

    def scores(n: Tensor, change: Callable[[str, Tensor], Tensor]) -> Tensor:
        with hook_stages(model, [stage], change, call):
            return target[n].scores(model(images[n])).float()

    before = torch.empty(len(maps), device=maps.device)
    after = torch.empty(maps.shape[:2], device=maps.device)
    # Through the same hook, unchanged, so that both scores come from the same `call`.
    for n in torch.arange(len(maps), device=maps.device).split(batch):
        before[n] = scores(n, lambda _, output: output)
    for n, k in _image_map_pairs(maps, batch):
        after[n, k] = scores(n, partial(_zero_map, k))
    drop = before[:, None] - after
    weights = torch.where(before[:, None] != 0, drop / before.abs()[:, None], drop)
    return (weights[:, :, None, None] * maps).sum(1)


PERTURBING: dict[str, Callable[..., Any]] = {
    "score-cam": score_cam,
    "ablation-cam": ablation_cam,
}


def _image_map_pairs(maps: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the image index and map index of every map, at most `batch` pairs at a time."""
    # Maps of all images are mixed, so that batches are full even if a stage has few maps.
    numbers = torch.arange(len(maps) * maps.shape[1], device=maps.device)
    for chunk in numbers.split(batch):
        yield chunk // maps.shape[1], chunk % maps.shape[1]


def _zero_map(k: Tensor, stage: str, output: Tensor) -> Tensor:
    """Return a copy in which map k[n] of image n is 0."""
    changed = output.clone()
    changed[torch.arange(len(k), device=k.device), k] = 0
    return changed
