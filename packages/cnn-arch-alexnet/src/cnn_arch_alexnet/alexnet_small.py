"""AlexNet for small images: 32x32 (CIFAR-10) and 96x96 (STL-10). Not a published network.

After A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet classification with deep
convolutional neural networks", Advances in Neural Information Processing Systems 25, 2012: one
of its two towers, with a first layer that keeps the size of small images.

    layer   kernels             stride   maps @ size    trainable   multiply-adds
    input   image                          3 @ 32x32
    conv1    48 of 5x5x3             1    48 @ 32x32        3,648       3,686,400
    norm1   response, n = 5               48 @ 32x32
    pool1   max 3x3                  2    48 @ 16x16
    conv2   128 of 5x5x48            1   128 @ 16x16      153,728      39,321,600
    norm2   response, n = 5              128 @ 16x16
    pool2   max 3x3                  2   128 @ 8x8
    conv3   192 of 3x3x128           1   192 @ 8x8        221,376      14,155,776
    conv4   192 of 3x3x192           1   192 @ 8x8        331,968      21,233,664
    conv5   128 of 3x3x192           1   128 @ 8x8        221,312      14,155,776
    pool5   max 3x3                  2   128 @ 4x4
    fc6     fully connected, dropout    2048            4,196,352       4,194,304
    fc7     fully connected, dropout    2048            4,196,352       4,194,304
    fc8     fully connected               10               20,490          20,480
                                                        9,345,226     100,962,304

Departures from the paper:
  One of the two towers, with its widths: half the maps, half the fully connected units.
  conv1 has 5x5 kernels with stride 1 instead of 11x11 with stride 4.
  Pooling rounds sizes up, so that each pooling layer halves the maps of 32x32 images exactly.
  Maps are averaged to 4x4 before fc6 (from 12x12 at 96x96); fc6 has 2,048 inputs, not 9,216.
  Initialised after He et al. (2015), with biases of 0.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_alexnet.layers import ConvReLU, response_norm
from cnn_core.layers import Classifier, he_normal_, require_size

__all__ = ["AlexNetSmall", "alexnet_small"]

# Shapes are N C H W; sizes in comments are for the default input, 3x32x32.


class AlexNetSmall(Classifier):
    """One tower of AlexNet, for small images: N C H W -> N classes."""

    classifier = "fc8"

    # fmt: off
    def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = ConvReLU(in_channels, 48, 5, padding=2)
        self.norm1 = response_norm()
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = ConvReLU( 48, 128, 5, padding=2)
        self.norm2 = response_norm()
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv3 = ConvReLU(128, 192, 3, padding=1)
        self.conv4 = ConvReLU(192, 192, 3, padding=1)
        self.conv5 = ConvReLU(192, 128, 3, padding=1)
        self.pool5 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.fc6   = nn.Linear(128 * 4 * 4, 2048)
        self.fc7   = nn.Linear(2048, 2048)
        self.fc8   = nn.Linear(2048, num_classes)
        self.dropout = nn.Dropout(0.5)
        he_normal_(self)

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 8)                         # N   3 32 32
        x = self.pool1(self.norm1(self.conv1(x)))  # N  48 16 16
        x = self.pool2(self.norm2(self.conv2(x)))  # N 128  8  8
        x = self.conv3(x)                          # N 192  8  8
        x = self.conv4(x)                          # N 192  8  8
        return self.pool5(self.conv5(x))           # N 128  4  4

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 4)                   # N 128 4 4
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))  # N 2048
        x = self.dropout(F.relu(self.fc7(x)))             # N 2048
        return self.fc8(x)                                # N   10
    # fmt: on


def alexnet_small(num_classes: int = 10, in_channels: int = 3) -> AlexNetSmall:
    """One tower of AlexNet, for 32x32 and 96x96: 9,345,226 parameters."""
    return AlexNetSmall(num_classes, in_channels)
