"""Saliency maps: four methods that attribute a class's logit to pixels of the image.

All maps are signed and have the resolution of the image; y is the class's logit. As in
`cnn_viz.attribution.cam`, the network is left unchanged, and frozen weights, `no_grad`,
`inference_mode` and `autocast` are supported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cnn_core.errors import UsageError
from cnn_viz.attribution.target import Classes, Target
from cnn_viz.network.inspection import inspection_mode

__all__ = ["guided_backprop", "integrated_gradients", "occlusion", "score_drops", "smooth_grad"]

# The ReLU functions to intercept; nn.ReLU6 calls hardtanh. The functions are intercepted and not
# the modules: backward hooks on nn.ReLU miss functional calls and fail on in-place ones.
RELUS = {F.relu, F.relu6, F.hardtanh, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


class GuidedReLU(TorchFunctionMode):
    """While active, set the negative gradients that pass back through a ReLU to 0."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        y = function(*args, **(kwargs or {}))
        if function in RELUS and y.requires_grad:
            y.register_hook(torch.relu)
        return y


def guided_backprop(model: nn.Module, images: Tensor, classes: Classes = None) -> Tensor:
    """Return dy / dx, N C H W, with negative gradients blocked at every ReLU.

    J. T. Springenberg et al., "Striving for simplicity", ICLR workshop 2015, arXiv:1412.6806. The
    maps hardly depend on the weights: J. Adebayo et al., NeurIPS 2018, arXiv:1810.03292.

    Raises:
        UsageError: the classes do not match the images and logits.
    """
    images = images.detach()
    with inspection_mode(model, images):
        target = _target(model, images, classes)
        with GuidedReLU():
            return _gradient(model, images, target)


def smooth_grad(
    model: nn.Module,
    images: Tensor,
    classes: Classes = None,
    *,
    samples: int = 25,
    noise: float = 0.15,
    seed: int = 0,
) -> Tensor:
    """Return dy / dx, N C H W, averaged over noisy copies of each image.

    `noise` is the standard deviation of Gaussian noise, as a fraction of the image's value range.

    D. Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017, arXiv:1706.03825.

    Raises:
        UsageError: the classes do not match the images and logits, or `samples` is below 1.
    """
    _require_positive("samples", samples)
    images = images.detach()
    sigma = noise * (images.amax((1, 2, 3), keepdim=True) - images.amin((1, 2, 3), keepdim=True))
    generator = torch.Generator().manual_seed(seed)
    with inspection_mode(model, images):
        target, total = _target(model, images, classes), torch.zeros_like(images)
        for _ in range(samples):
            # Sampled on the CPU, so that a seed gives the same noise on every device.
            values = torch.randn(images.shape, generator=generator).to(images)
            total += _gradient(model, images + sigma * values, target)
        return total / samples


def integrated_gradients(
    model: nn.Module,
    images: Tensor,
    classes: Classes = None,
    *,
    baseline: Tensor | float = 0.0,
    steps: int = 50,
) -> Tensor:
    """Return the contribution of each input value to y(x) - y(x'), N C H W.

    x is the image and x' the baseline. The contribution is (x - x') times the mean of dy / dx on
    the straight line from x' to x, by the midpoint rule. The contributions sum to y(x) - y(x'), up
    to the error of the midpoint rule.

    M. Sundararajan, A. Taly, Q. Yan, "Axiomatic attribution for deep networks", ICML 2017,
    arXiv:1703.01365, Eq. 1 and 3.

    Raises:
        UsageError: the classes do not match the images and logits, or `steps` is below 1.
    """
    _require_positive("steps", steps)
    images = images.detach()
    with inspection_mode(model, images):
        target, total = _target(model, images, classes), torch.zeros_like(images)
        difference = images - baseline
        for step in range(steps):
            # For the same error, midpoints need far fewer steps than endpoints.
            total += _gradient(model, baseline + difference * ((step + 0.5) / steps), target)
        return difference * total / steps


def occlusion(
    model: nn.Module,
    images: Tensor,
    classes: Classes = None,
    *,
    window: int = 8,
    stride: int = 4,
    fill: float = 0.0,
) -> Tensor:
    """Return the drop in y for each pixel, N H W: the mean over the windows that cover it.

    Square windows of `fill`, with a side of `window` pixels, are placed every `stride` pixels;
    at the right and lower borders they may extend beyond the image. Each window costs a
    forward pass per image.

    M. D. Zeiler and R. Fergus, "Visualizing and understanding convolutional networks", ECCV 2014,
    arXiv:1311.2901, section 4.2.

    Raises:
        UsageError: the classes do not match the images and logits, or window or stride is below 1.
    """
    images = images.detach()
    with inspection_mode(model, images):
        target = _target(model, images, classes)
        return score_drops(lambda x: target.scores(model(x)).float(), images, window, stride, fill)


def score_drops(
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    window: int,
    stride: int,
    fill: float = 0.0,
) -> Tensor:
    """Return the mean drop in `score` for each pixel, N H W, as in `occlusion`.

    `score` maps images, N C H W, to one number per image, N.

    Raises:
        UsageError: window or stride is below 1.
    """
    _require_positive("window", window)
    _require_positive("stride", stride)
    before = score(images.clone())
    total = torch.zeros(len(images), *images.shape[2:], device=images.device)
    count = torch.zeros_like(total[0])
    for rows, columns in product(*(_windows(size, window, stride) for size in total.shape[1:])):
        covered = images.clone()
        covered[:, :, rows, columns] = fill
        total[:, rows, columns] += (before - score(covered))[:, None, None]
        count[rows, columns] += 1
    return torch.where(count > 0, total / count, 0)  # a stride larger than the window leaves gaps


def _target(model: nn.Module, images: Tensor, classes: Classes) -> Target:
    return Target.of_images(model(images.clone()), classes)


@torch.enable_grad()
def _gradient(model: nn.Module, images: Tensor, target: Target) -> Tensor:
    """Return dy / dx, N C H W, without computing gradients of the weights."""
    images = images.clone().requires_grad_()
    # Pass a copy: the first layer may work in place, which autograd does not allow on a leaf.
    score = target.scores(model(images.clone())).sum()
    return torch.autograd.grad(score, images)[0]


def _windows(size: int, window: int, stride: int) -> Iterator[slice]:
    """Yield the windows along one axis, as slices."""
    # There is at least one window, even if it is larger than the image.
    for start in range(0, max(size - window + stride, 1), stride):
        if start < size:
            yield slice(start, start + window)


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{name} = {value}: expected a positive number")
