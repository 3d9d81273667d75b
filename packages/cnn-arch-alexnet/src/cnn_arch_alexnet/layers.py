"""What the AlexNets have in common: a convolution with its ReLU, response normalisation.

A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet classification with deep convolutional
neural networks", Advances in Neural Information Processing Systems 25, 2012, section 3.
"""

from __future__ import annotations

from torch import Tensor, nn

from cnn_core.errors import UsageError

__all__ = ["ConvReLU", "at_least", "response_norm"]


class ConvReLU(nn.Conv2d):
    """A convolution and its f(x) = max(0, x) (section 3.1): N C H W -> N C' H' W'."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()


def response_norm() -> nn.LocalResponseNorm:
    """b = a / (k + alpha * sum of a^2 over n adjacent maps)^beta (section 3.3).

    k = 2, n = 5, alpha = 1e-4, beta = 0.75. torch divides the sum by n: hence the 5 in alpha.
    """
    return nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2)


def at_least(size: int, x: Tensor) -> Tensor:
    """Return images, N C H W, unless a side is below `size`, where nothing is left to pool.

    Raises:
        UsageError: the images are too small.
    """
    height, width = x.shape[-2:]
    if min(height, width) < size:
        raise UsageError(
            f"images of {height}x{width} are too small for this network",
            f"it takes {size}x{size} and larger",
        )
    return x
