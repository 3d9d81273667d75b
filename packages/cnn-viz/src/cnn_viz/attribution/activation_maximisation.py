"""Images that a class's logit is high for, found by climbing its gradient.

D. Erhan, Y. Bengio, A. Courville, P. Vincent, "Visualizing higher-layer features of a deep
network", technical report 1341, University of Montreal, 2009. Small shifts and blurs on the way
keep the image from filling with what only one grid of pixels answers to: C. Olah, A. Mordvintsev,
L. Schubert, "Feature visualization", Distill 2017, doi:10.23915/distill.00007.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_viz.network.inspection import inspection_mode

__all__ = ["maximised"]

NOISE = 0.05  # standard deviation of the start, of images in [0, 1]
RATE = 0.02  # how far a step moves pixels, root mean square, of images in [0, 1]
SHIFT = 1 / 16  # of the side, at most, either way
BLUR_EVERY = 4  # steps
KERNEL = (0.1, 0.8, 0.1)  # of the blur, each way


def maximise_logits(
    model: nn.Module,
    classes: Sequence[int],
    shape: tuple[int, int, int],
    mean: Tensor,
    std: Tensor,
    *,
    steps: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an image for each class, N C H W in [0, 1], and logits, N x classes, before, after.

    `shape` is C H W; `mean` and `std`, one for each channel, make of an image what the network
    sees. The same seed gives the same images. Leaves the network as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(classes), *shape, generator=generator).to(mean)
    pictures = (0.5 + NOISE * noise).clamp(0, 1)
    mean, std = mean[:, None, None], std[:, None, None]
    with inspection_mode(model, pictures):
        before = model((pictures - mean) / std).float()
        for step in range(steps):
            shift = [_drawn(side, generator) for side in shape[1:]]
            pictures = (
                pictures + RATE * _uphill(model, pictures, classes, mean, std, shift)
            ).clamp(0, 1)
            if step % BLUR_EVERY == 0:
                pictures = _blurred(pictures)
        after = model((pictures - mean) / std).float()
    return pictures, before, after


def _drawn(side: int, generator: torch.Generator) -> int:
    """Return by how many pixels the network sees the image shifted."""
    most = max(round(SHIFT * side), 1)
    return int(torch.randint(-most, most + 1, (), generator=generator))


def _uphill(
    model: nn.Module,
    pictures: Tensor,
    classes: Sequence[int],
    mean: Tensor,
    std: Tensor,
    shift: list[int],
) -> Tensor:
    """Return the gradient of each image's logit, its root mean square being 1."""
    with torch.enable_grad():
        leaf = pictures.detach().clone().requires_grad_()
        seen = torch.roll(leaf, shift, dims=(2, 3))
        logits = model((seen - mean) / std)
        # Images do not influence each other in eval mode: one sum gives every gradient.
        score = logits[torch.arange(len(classes)), list(classes)].sum()
        (gradient,) = torch.autograd.grad(score, leaf)
    size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
    return torch.where(size > 0, gradient / size, 0)


def _blurred(pictures: Tensor) -> Tensor:
    """Blur slightly, each channel by itself, with the border repeated."""
    channels = pictures.shape[1]
    line = pictures.new_tensor(KERNEL)
    kernel = (line[:, None] * line).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)
