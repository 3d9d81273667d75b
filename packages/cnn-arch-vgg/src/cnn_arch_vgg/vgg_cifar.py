"""VGG for 32x32 images, with batch normalisation and one linear layer. Not a published network.

After K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015, arXiv:1409.1556: the convolutions of columns A and D of Table 1. Their
five pooling layers reduce a 32x32 image to 1x1, so one linear layer suffices. This is the usual
variant for CIFAR-10, as in github.com/kuangliu/pytorch-cifar.

    stage         A               D         maps @ size
    input         32x32 RGB image             3 @ 32x32
    conv1     conv3-64      2 conv3-64       64 @ 32x32
    pool1             max 2x2                64 @ 16x16
    conv2     conv3-128     2 conv3-128     128 @ 16x16
    pool2             max 2x2               128 @ 8x8
    conv3   2 conv3-256     3 conv3-256     256 @ 8x8
    pool3             max 2x2               256 @ 4x4
    conv4   2 conv3-512     3 conv3-512     512 @ 4x4
    pool4             max 2x2               512 @ 2x2
    conv5   2 conv3-512     3 conv3-512     512 @ 2x2
    pool5             max 2x2               512 @ 1x1
    fc                 FC-10                 10

    trainable   9,231,114      14,728,266

Departures from the paper:
  Images are 32x32; for larger images, maps are averaged to 1x1 after pool5.
  One linear layer on 512 maps instead of three fully connected layers; no dropout.
  Batch normalisation (Ioffe and Szegedy, 2015) after every convolution.
  Initialised like vgg11 to vgg19: after He et al. (2015), the last layer from N(0, 0.01^2).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_vgg.table1 import TABLE_1
from cnn_arch_vgg.vgg import ConvBNReLU, stage
from cnn_core.layers import Classifier, he_normal_, require_size

__all__ = ["VGGCifar", "vgg11_cifar", "vgg16_cifar"]

# Shapes are N C H W; sizes in comments are for the default input, 3x32x32.


class VGGCifar(Classifier):
    """The convolutions of one column of Table 1 and a linear layer: N C H W -> N classes."""

    classifier = "fc"

    # fmt: off
    def __init__(self, column: str, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        n1, n2, n3, n4, n5 = TABLE_1[column]
        self.conv1 = stage(ConvBNReLU, n1, in_channels, 64)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = stage(ConvBNReLU, n2,  64, 128)
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = stage(ConvBNReLU, n3, 128, 256)
        self.pool3 = nn.MaxPool2d(2)
        self.conv4 = stage(ConvBNReLU, n4, 256, 512)
        self.pool4 = nn.MaxPool2d(2)
        self.conv5 = stage(ConvBNReLU, n5, 512, 512)
        self.pool5 = nn.MaxPool2d(2)
        self.fc    = nn.Linear(512, num_classes)
        he_normal_(self, fan="out", linear_std=0.01)

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 32)               # N   3 32 32
        x = self.pool1(self.conv1(x))     # N  64 16 16
        x = self.pool2(self.conv2(x))     # N 128  8  8
        x = self.pool3(self.conv3(x))     # N 256  4  4
        x = self.pool4(self.conv4(x))     # N 512  2  2
        return self.pool5(self.conv5(x))  # N 512  1  1

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1)   # N 512  1  1
        return self.fc(x.flatten(1))      # N  10
    # fmt: on


def vgg11_cifar(num_classes: int = 10, in_channels: int = 3) -> VGGCifar:
    """Column A of Table 1 for 32x32: 9,231,114 parameters."""
    return VGGCifar("A", num_classes, in_channels)


def vgg16_cifar(num_classes: int = 10, in_channels: int = 3) -> VGGCifar:
    """Column D of Table 1 for 32x32: 14,728,266 parameters."""
    return VGGCifar("D", num_classes, in_channels)
