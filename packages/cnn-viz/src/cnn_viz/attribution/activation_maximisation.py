"""Find an image that maximises a class's logit, by gradient ascent.

D. Erhan, Y. Bengio, A. Courville, P. Vincent, "Visualizing higher-layer features of a deep
network", technical report 1341, University of Montreal, 2009. Random shifts and slight blurs
suppress meaningless high-frequency patterns that excite the network: C. Olah, A. Mordvintsev,
L. Schubert, "Feature visualization", Distill 2017, doi:10.23915/distill.00007.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_viz.network.inspection import inspection_mode

__all__ = ["maximise_logits"]

NOISE = 0.05  # standard deviation of the initial noise, for images in [0, 1]
STEP_SIZE = 0.02  # root mean square change of the pixels in one step
MAX_SHIFT = 1 / 16  # largest shift in either direction, as a fraction of the image's side
BLUR_EVERY = 4  # blur the images after every fourth step
BLUR_WEIGHTS = (0.1, 0.8, 0.1)  # the blur kernel along each axis


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
    """Return an image that maximises the logit of each class, and the logits before and after.

    The images are N C H W in [0, 1], the logits N x classes. `shape` is C H W; `mean` and `std`,
    one value per channel, normalise images for the network. The same seed gives the same images.
    The network is left unchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    # Sampled on the CPU, so that a seed gives the same images on every device.
    noise = torch.randn(len(classes), *shape, generator=generator).to(mean)
    # Start near grey: at the ends of the range, clamping would stop a pixel from changing.
    images = (0.5 + NOISE * noise).clamp(0, 1)
    mean, std = mean[:, None, None], std[:, None, None]
    with inspection_mode(model, images):
        before = model((images - mean) / std).float()
        for step in range(steps):
            shift = [_random_shift(side, generator) for side in shape[1:]]
            gradient = _normalised_gradient(
                model, images, classes, mean=mean, std=std, shift=shift
            )
            images = (images + STEP_SIZE * gradient).clamp(0, 1)
            if step % BLUR_EVERY == 0:
                images = _blurred(images)
        after = model((images - mean) / std).float()
    return images, before, after


def _random_shift(side: int, generator: torch.Generator) -> int:
    """Return a random shift in pixels along an axis of length `side`."""
    limit = max(round(MAX_SHIFT * side), 1)
    return int(torch.randint(-limit, limit + 1, (), generator=generator))


def _normalised_gradient(
    model: nn.Module,
    images: Tensor,
    classes: Sequence[int],
    *,
    mean: Tensor,
    std: Tensor,
    shift: list[int],
) -> Tensor:
    """Return the gradient of each image's class logit, scaled to a root mean square of 1."""
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        shifted = torch.roll(leaf, shift, dims=(2, 3))
        logits = model((shifted - mean) / std)
        # In eval mode images do not influence each other, so one backward pass from the sum
        # gives the gradient of every image.
        score = logits[torch.arange(len(classes)), list(classes)].sum()
        (gradient,) = torch.autograd.grad(score, leaf)
    # Raw gradients differ by orders of magnitude between networks. Normalised ones allow the same
    # step size for all.
    rms = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
    return torch.where(rms > 0, gradient / rms, 0)


def _blurred(images: Tensor) -> Tensor:
    """Blur each channel slightly, with replicate padding."""
    channels = images.shape[1]
    weights = images.new_tensor(BLUR_WEIGHTS)
    kernel = (weights[:, None] * weights).expand(channels, 1, 3, 3)
    return F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=channels)
