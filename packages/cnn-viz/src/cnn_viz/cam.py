"""Grad-CAM: which parts of an image speak for a class.

R. R. Selvaraju, M. Cogswell, A. Das, R. Vedantam, D. Parikh, D. Batra, "Grad-CAM: visual
explanations from deep networks via gradient-based localization", ICCV 2017, arXiv:1610.02391.

    alpha_k = mean over positions of d score / d A_k       Eq. 1
    map     = ReLU(sum over k of alpha_k A_k)              Eq. 2

A_k are the feature maps of one stage, score is the class's logit, before the softmax.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UnknownNameError, UsageError

__all__ = ["Cam", "grad_cam"]


@dataclass(frozen=True, kw_only=True)
class Cam:
    """What speaks for one class of each image.

    `raw` is the sum of Eq. 2 before its ReLU: signed, float32, N h w, as small as the stage's
    maps. `classes` (N) are the classes explained, `logits` (N x classes) what the network said,
    `size` the images' (H, W).
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
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        _require_maps(stage, output, kept)
        kept.append(output.detach().requires_grad_())  # the graph begins here
        return kept[0].clone()  # what follows may work in place: on a copy

    with contextlib.ExitStack() as stack:
        stack.enter_context(_stage(model, stage).register_forward_hook(keep))
        stack.enter_context(_evaluating(model))
        stack.enter_context(_same_random_state(images))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        logits = model(images.detach().clone())
        if not kept:
            raise UsageError(f"stage '{stage}' took no part in the forward pass")
        chosen = _chosen(classes, logits)
        # Images do not influence each other in eval mode: one sum gives every gradient.
        score = logits.gather(1, chosen[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, kept)

    maps = kept[0].detach().float()
    alpha = gradient.float().mean((2, 3), keepdim=True)  # Eq. 1
    raw = (alpha * maps).sum(1)  #                         Eq. 2, before its ReLU
    height, width = images.shape[-2:]
    return Cam(raw=raw, logits=logits.detach(), classes=chosen, size=(height, width))


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
    count, known = logits.shape
    if chosen.shape != (count,) or not bool(((chosen >= 0) & (chosen < known)).all()):
        raise UsageError(
            f"classes = {chosen.tolist()}: expected {count} numbers from 0 to {known - 1}"
        )
    return chosen


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and afterwards each module back to what it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _same_random_state(images: Tensor) -> contextlib.AbstractContextManager[None]:
    """Give the random state back as it was, also if the network draws in eval mode."""
    return torch.random.fork_rng([images.device] if images.is_cuda else [])
