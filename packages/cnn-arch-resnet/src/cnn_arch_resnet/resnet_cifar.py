"""Residual networks for CIFAR-10.

K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
arXiv:1512.03385 (December 2015), section 4.2. The first layer is a 3x3 convolution. It is followed
by 6n layers of 3x3 convolutions, 2n for each map size, with a shortcut around each pair:

    output map size   32x32   16x16   8x8
    # layers           1+2n      2n    2n
    # filters            16      32    64

The network ends with global average pooling, a 10-way fully connected layer, and softmax: 6n+2
layers in total. Table 6:

    n                     3       5       7       9      18
    layers               20      32      44      56     110
    parameters         .27M    .46M    .66M    .85M    1.7M
    error on test set  8.75    7.51    7.17    6.97    6.43 %

No shortcut has parameters (option A of section 3.3): where the maps shrink, a shortcut
takes every second pixel and fills the new channels with zeros.

Departures from the paper:
  `resnet..._cifar_b` uses option B, a 1x1 convolution with batch normalisation, where the maps
  shrink; the paper uses it only in its ImageNet networks.
  The network returns logits; the softmax is part of the loss.
The paper does not say which channels are the new ones. Here half of the zeros come before the
existing channels and half after, as in published checkpoints. Stages are named as in
Table 1.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_resnet.resnet import (
    Block,
    Residual,
    basic,
    conv_bn,
    conv_bn_relu,
    stage,
)
from cnn_core.layers import Classifier, he_normal_, require_size

__all__ = [
    "CifarResNet",
    "OptionA",
    "basic_a",
    "resnet110_cifar",
    "resnet110_cifar_b",
    "resnet20_cifar",
    "resnet20_cifar_b",
    "resnet32_cifar",
    "resnet32_cifar_b",
    "resnet44_cifar",
    "resnet44_cifar_b",
    "resnet56_cifar",
    "resnet56_cifar_b",
]

# Shapes are N C H W; sizes in comments are for the default input, 3x32x32.


class OptionA(nn.Module):
    """Option A: take every second pixel and add zero channels: N C H W -> N C+new H/2 W/2."""

    def __init__(self, new: int) -> None:
        super().__init__()
        self.new = new

    def forward(self, x: Tensor) -> Tensor:
        before = self.new // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.new - before))


def basic_a(cin: int, width: int, stride: int) -> Residual:
    """A basic block with option A: N cin H W -> N width H/stride W/stride."""
    # fmt: off
    return Residual(
        conv_bn_relu(cin,   width, 3, stride),
        conv_bn     (width, width, 3),
        shortcut=nn.Identity() if stride == 1 else OptionA(width - cin),
    )
    # fmt: on


class CifarResNet(Classifier):
    """The network of 6n+2 layers: N C 32 32 -> N classes."""

    classifier = "fc"

    def __init__(self, block: Block, n: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        # fmt: off
        self.conv1   = conv_bn_relu(in_channels, 16, kernel=3)
        self.conv2_x = stage(block, 16, 16, 16, n, stride=1)
        self.conv3_x = stage(block, 16, 32, 32, n, stride=2)
        self.conv4_x = stage(block, 32, 64, 64, n, stride=2)
        self.fc      = nn.Linear(64, num_classes)
        # fmt: on
        he_normal_(self)  # section 4.2

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 1)
        x = self.conv1(x)  #      N  3 32 32 -> N 16 32 32
        x = self.conv2_x(x)  #                  N 16 32 32
        x = self.conv3_x(x)  #                  N 32 16 16
        return self.conv4_x(x)  #               N 64  8  8

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # N 64
        return self.fc(x)  #                    N 10


def resnet20_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """20 layers, n = 3, option A: 269,722 parameters."""
    return CifarResNet(basic_a, 3, num_classes, in_channels)


def resnet32_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """32 layers, n = 5, option A: 464,154 parameters."""
    return CifarResNet(basic_a, 5, num_classes, in_channels)


def resnet44_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """44 layers, n = 7, option A: 658,586 parameters."""
    return CifarResNet(basic_a, 7, num_classes, in_channels)


def resnet56_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """56 layers, n = 9, option A: 853,018 parameters."""
    return CifarResNet(basic_a, 9, num_classes, in_channels)


def resnet110_cifar(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """110 layers, n = 18, option A: 1,727,962 parameters."""
    return CifarResNet(basic_a, 18, num_classes, in_channels)


def resnet20_cifar_b(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """20 layers, n = 3, option B: 272,474 parameters."""
    return CifarResNet(basic, 3, num_classes, in_channels)


def resnet32_cifar_b(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """32 layers, n = 5, option B: 466,906 parameters."""
    return CifarResNet(basic, 5, num_classes, in_channels)


def resnet44_cifar_b(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """44 layers, n = 7, option B: 661,338 parameters."""
    return CifarResNet(basic, 7, num_classes, in_channels)


def resnet56_cifar_b(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """56 layers, n = 9, option B: 855,770 parameters."""
    return CifarResNet(basic, 9, num_classes, in_channels)


def resnet110_cifar_b(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """110 layers, n = 18, option B: 1,730,714 parameters."""
    return CifarResNet(basic, 18, num_classes, in_channels)
