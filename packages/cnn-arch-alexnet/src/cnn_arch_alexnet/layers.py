"""Layers shared by the AlexNets: convolution with ReLU, local response normalisation.

A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet classification with deep convolutional
neural networks", Advances in Neural Information Processing Systems 25, 2012, section 3.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["ConvReLU", "response_norm"]


class ConvReLU(nn.Conv2d):
    """A convolution followed by f(x) = max(0, x) (section 3.1): N C H W -> N C' H' W'."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()


def response_norm() -> nn.LocalResponseNorm:
    """Return the layer b = a / (k + alpha * sum of a^2 over n adjacent maps)^beta (section 3.3).

    k = 2, n = 5, alpha = 1e-4, beta = 0.75. The factor 5 cancels torch's division of the sum by n.
    """
    return nn.LocalResponseNorm(size=5, alpha=5 * 1e-4, beta=0.75, k=2)
