"""CAM, Score-CAM and Ablation-CAM: class activation maps whose weights are not gradients.

CAM takes the weights from the last linear layer, Score-CAM from the effect of masking the image,
and Ablation-CAM from the effect of zeroing a feature map.

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

__all__ = ["PERTURBATION_METHODS", "ablation_cam", "class_weights", "score_cam"]


def class_weights(model: nn.Module, stage: str, classes: Tensor, gradient: Tensor) -> Tensor:
    """Return, for the class of each image, its weights in the last linear layer: N C 1 1.

    If that layer follows global average pooling over P positions, the gradient of the logit is
    the class's weight divided by P, at every position (Zhou et al., Eq. 1). A layer is accepted
    only if its weights match the gradient: the shape alone would also accept unrelated layers.

    Raises:
        UsageError: no linear layer matches, so CAM is undefined.
    """
    implied_weights = gradient * gradient[0, 0].numel()
    # Search from the end: the classifier comes last, and earlier layers may have the same shape.
    for module in reversed(list(model.modules())):
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        layer_weights = module.weight.detach().float().flatten(1)
        if layer_weights.shape[1] != gradient.shape[1] or len(layer_weights) <= int(classes.max()):
            continue
        weights = layer_weights[classes][:, :, None, None]
        # The tolerance is 1 %, because the gradient may have been computed in half precision.
        if (implied_weights - weights).abs().max() <= 0.01 * weights.abs().max():
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
    """Weight each map by the softmax, over the maps, of the class's logit for the masked image.

    The mask is the map itself, scaled to [0, 1]. The paper subtracts the logit of a black image.
    This baseline is the same for every map, so it cancels in the softmax.
    """
    scores = torch.empty(maps.shape[:2], device=maps.device)
    for n, k in _image_map_pairs(maps, batch):
        masks = resize_to_image(maps[n, k], (images.shape[-2], images.shape[-1]))
        low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        # A constant map cannot be scaled to [0, 1]: its mask is 0 rather than NaN.
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
    """Weight map k by the relative drop of the class's logit y when map k is 0: (y - y_k) / |y|.

    The paper divides by y, which flips the sign of the whole result if y is negative.
    """

    def scores(n: Tensor, replace: Callable[[str, Tensor], Tensor]) -> Tensor:
        with hook_stages(model, [stage], replace, call):
            return target[n].scores(model(images[n])).float()

    before = torch.empty(len(maps), device=maps.device)
    after = torch.empty(maps.shape[:2], device=maps.device)
    # This hook changes nothing; it makes both scores take the same path, with the same `call`.
    for n in torch.arange(len(maps), device=maps.device).split(batch):
        before[n] = scores(n, lambda _, output: output)
    for n, k in _image_map_pairs(maps, batch):
        after[n, k] = scores(n, partial(_zero_map, k))
    drop = before[:, None] - after
    weights = torch.where(before[:, None] != 0, drop / before.abs()[:, None], drop)
    return (weights[:, :, None, None] * maps).sum(1)


PERTURBATION_METHODS: dict[str, Callable[..., Any]] = {
    "score-cam": score_cam,
    "ablation-cam": ablation_cam,
}


def _image_map_pairs(maps: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the image index and the map index of every map, up to `batch` pairs at a time."""
    # A batch may span several images, so that it is full even if a stage has few maps.
    pair_indices = torch.arange(len(maps) * maps.shape[1], device=maps.device)
    for chunk in pair_indices.split(batch):
        yield chunk // maps.shape[1], chunk % maps.shape[1]


def _zero_map(k: Tensor, stage: str, output: Tensor) -> Tensor:
    """Return a copy of `output` in which map k[n] of image n is 0."""
    ablated = output.clone()
    ablated[torch.arange(len(k), device=k.device), k] = 0
    return ablated
