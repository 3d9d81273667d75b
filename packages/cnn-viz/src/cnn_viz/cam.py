"""Grad-CAM: which parts of an image speak for a class.

R. R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh, D. Batra, "Grad-CAM: visual
explanations from deep networks via gradient-based localization", ICCV 2017, arXiv:1610.02391.

    alpha_k = mean over positions of d score / d A_k       Eq. 1
    map     = ReLU(sum over k of alpha_k A_k)              Eq. 2

A_k are the feature maps of one stage, score is the class's logit, before the softmax.

K. Vinogradova, A. Dibrov, G. Myers, "Towards interpretable semantic segmentation via
gradient-weighted class activation mapping", AAAI 2020, arXiv:2002.11434 (Seg-Grad-CAM): score is
the sum of the class's logits over a set of pixels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UnknownNameError, UsageError
from cnn_core.tasks.segmentation import two_sided
from cnn_viz.modes import evaluating, same_random_state

__all__ = ["Cam", "grad_cam", "seg_grad_cam"]


@dataclass(frozen=True, kw_only=True)
class Cam:
    """What speaks for one class of each image.

    `raw` is the sum of Eq. 2 before its ReLU: signed, float32, N h w, as small as the stage's
    maps. `classes` (N) are the classes explained, `logits` (N x classes, or N x classes x h x w)
    what the network said, `size` the images' (H, W).
    """

    raw: Tensor
    logits: Tensor
    classes: Tensor
    size: tuple[int, int]

    @property
    def empty(self) -> Tensor:
        """Whether nothing speaks for the class, no position being above 0: bool, N."""
        return ~(self.raw > 0).flatten(1).any(1)

    def heat(self) -> Tensor:
        """Eq. 2 at the images' size, each divided by its maximum: N H W in [0, 1].

        An empty map is 0 everywhere.
        """
        maps = F.interpolate(
            self.raw.relu()[:, None], self.size, mode="bilinear", align_corners=False
        )[:, 0]
        highest = maps.amax((1, 2), keepdim=True)
        return torch.where(highest > 0, maps / highest, 0.0)


def grad_cam(
    model: nn.Module, images: Tensor, stage: str, classes: Tensor | Sequence[int] | None = None
) -> Cam:
    """Explain `classes` (default: the predicted ones) of images, N C H W, at a named stage.

    Nothing is left behind: parameters, their `.grad`, training flags, hooks and the random
    state are as before, also after an exception. Works on frozen weights, and under `no_grad`
    and `inference_mode`.

    Raises:
        UsageError: the stage has no maps or runs more than once, or the classes do not fit.
    """
    chosen = torch.empty(0)

    def score(logits: Tensor) -> Tensor:
        nonlocal chosen
        chosen = _chosen(classes, logits)
        return logits.gather(1, chosen[:, None])

    raw, logits = _explained(model, images, stage, score)
    height, width = images.shape[-2:]
    return Cam(raw=raw, logits=logits, classes=chosen, size=(height, width))


def seg_grad_cam(
    model: nn.Module,
    images: Tensor,
    stage: str,
    classes: Tensor | Sequence[int],
    region: Tensor | None = None,
) -> Cam:
    """Explain one class of each image of a network that segments, N C H W, at a named stage.

    The score is the sum of the class's logits over a `region`, bool, N h w, as large as the
    logits: by default over the pixels that the network takes for the class. Otherwise as
    `grad_cam`.

    Raises:
        UsageError: as `grad_cam`, and if the logits or the region have another shape.
    """
    chosen = torch.empty(0)

    def score(logits: Tensor) -> Tensor:
        nonlocal chosen
        if logits.ndim != 4:
            raise UsageError(f"logits of shape {list(logits.shape)}: expected N classes h w")
        logits = two_sided(logits)
        chosen = _chosen(classes, logits)
        pixels = logits.argmax(1) == chosen[:, None, None] if region is None else region
        if pixels.shape != logits[:, 0].shape:
            raise UsageError(
                f"region of shape {list(pixels.shape)}: expected {list(logits[:, 0].shape)}"
            )
        numbers = torch.arange(len(chosen), device=chosen.device)
        return logits[numbers, chosen] * pixels.to(logits.device)

    raw, logits = _explained(model, images, stage, score)
    height, width = images.shape[-2:]
    return Cam(raw=raw, logits=two_sided(logits), classes=chosen, size=(height, width))


def _explained(
    model: nn.Module, images: Tensor, stage: str, score: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the sum of Eq. 2 for the sum of what `score` makes of logits, and the logits."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        _require_maps(stage, output, kept)
        kept.append(output.detach().requires_grad_())  # the graph begins here
        return kept[0].clone()  # what follows may work in place: on a copy

    with contextlib.ExitStack() as stack:
        stack.enter_context(_stage(model, stage).register_forward_hook(keep))
        stack.enter_context(evaluating(model))
        stack.enter_context(same_random_state(images))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        logits = model(images.detach().clone())
        if not kept:
            raise UsageError(f"stage '{stage}' took no part in the forward pass")
        # Images do not influence each other in eval mode: one sum gives every gradient.
        (gradient,) = torch.autograd.grad(score(logits).sum(), kept)

    maps = kept[0].detach().float()
    alpha = gradient.float().mean((2, 3), keepdim=True)  # Eq. 1
    return (alpha * maps).sum(1), logits.detach()  #       Eq. 2, before its ReLU


def _stage(model: nn.Module, stage: str) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not stage or stage not in modules:
        raise UnknownNameError("stage", stage, [name for name in modules if name])
    return modules[stage]


def _require_maps(stage: str, output: Any, before: list[Tensor]) -> None:
    if before:
        raise UsageError(f"stage '{stage}' runs more than once: name a module that runs once")
    if not isinstance(output, Tensor) or output.ndim != 4:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"stage '{stage}' gives {found}: Grad-CAM needs maps, N C H W")


def _chosen(classes: Tensor | Sequence[int] | None, logits: Tensor) -> Tensor:
    """Return the classes to explain, one for each image."""
    if classes is None:
        return logits.detach().argmax(1)
    chosen = torch.as_tensor(classes, device=logits.device).clone()
    count, known = logits.shape[:2]
    if chosen.shape != (count,) or not bool(((chosen >= 0) & (chosen < known)).all()):
        raise UsageError(
            f"classes = {chosen.tolist()}: expected {count} numbers from 0 to {known - 1}"
        )
    return chosen
