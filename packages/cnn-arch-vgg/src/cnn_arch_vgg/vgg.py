"""VGG: very deep networks of 3x3 convolutions.

K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition",
ICLR 2015, arXiv:1409.1556. Columns A, B, D and E of Table 1 (conv3-64: 64 kernels of 3x3; every
convolution is followed by a ReLU):

    stage         A               B               D               E         maps @ size
    input                      224x224 RGB image                              3 @ 224x224
    conv1     conv3-64      2 conv3-64      2 conv3-64      2 conv3-64       64 @ 224x224
    pool1                         max 2x2                                    64 @ 112x112
    conv2     conv3-128     2 conv3-128     2 conv3-128     2 conv3-128     128 @ 112x112
    pool2                         max 2x2                                   128 @ 56x56
    conv3   2 conv3-256     2 conv3-256     3 conv3-256     4 conv3-256     256 @ 56x56
    pool3                         max 2x2                                   256 @ 28x28
    conv4   2 conv3-512     2 conv3-512     3 conv3-512     4 conv3-512     512 @ 28x28
    pool4                         max 2x2                                   512 @ 14x14
    conv5   2 conv3-512     2 conv3-512     3 conv3-512     4 conv3-512     512 @ 14x14
    pool5                         max 2x2                                   512 @ 7x7
    fc6                        FC-4096, dropout                            4096
    fc7                        FC-4096, dropout                            4096
    fc8                           FC-1000                                  1000

    trainable  132,863,336     133,047,848     138,357,544     143,667,240
    Table 2          133 M           133 M           138 M           144 M

Departures from the paper, all as in torchvision:
  Convolutions are initialised after He et al. (2015), fc6 to fc8 from N(0, 0.01^2); the paper
  draws all weights from N(0, 0.1^2) (variance 0.01), and starts B, D and E from a trained A.
  For image sizes other than 224x224, from 32x32 up, maps are averaged to 7x7 after pool5; the
  paper instead applies fc6 to larger images as a 7x7 convolution (section 3.2).
  vgg11_bn to vgg19_bn have batch normalisation (Ioffe and Szegedy, 2015) after each convolution.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_vgg.table1 import TABLE_1
from cnn_core.layers import Classifier, he_normal_, require_size

__all__ = [
    "ConvBNReLU",
    "ConvReLU",
    "VGG",
    "stage",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]

# Shapes are N C H W; sizes in comments are for the default input, 3x224x224.


class ConvReLU(nn.Conv2d):
    """conv3: a padded 3x3 convolution followed by ReLU: N cin H W -> N cout H W."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()


class ConvBNReLU(nn.Module):
    """conv3 with batch normalisation before the ReLU: N cin H W -> N cout H W."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel_size=3, padding=1)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu_()


Conv3 = Callable[[int, int], nn.Module]


def stage(conv3: Conv3, n: int, cin: int, cout: int) -> nn.Sequential:
    """n convolutions with `cout` maps each: N cin H W -> N cout H W."""
    return nn.Sequential(*[conv3(cin if i == 0 else cout, cout) for i in range(n)])


class VGG(Classifier):
    """One column of Table 1, with the authors' layer names: N C H W -> N classes."""

    classifier = "fc8"

    # fmt: off
    def __init__(
        self, column: str, conv3: Conv3, num_classes: int = 1000, in_channels: int = 3
    ) -> None:
        super().__init__()
        n1, n2, n3, n4, n5 = TABLE_1[column]
        self.conv1 = stage(conv3, n1, in_channels, 64)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = stage(conv3, n2,  64, 128)
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = stage(conv3, n3, 128, 256)
        self.pool3 = nn.MaxPool2d(2)
        self.conv4 = stage(conv3, n4, 256, 512)
        self.pool4 = nn.MaxPool2d(2)
        self.conv5 = stage(conv3, n5, 512, 512)
        self.pool5 = nn.MaxPool2d(2)
        self.fc6   = nn.Linear(512 * 7 * 7, 4096)
        self.fc7   = nn.Linear(4096, 4096)
        self.fc8   = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(0.5)  # section 3.1
        he_normal_(self, fan="out", linear_std=0.01)  # as in torchvision

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 32)               # N   3 224 224
        x = self.pool1(self.conv1(x))     # N  64 112 112
        x = self.pool2(self.conv2(x))     # N 128  56  56
        x = self.pool3(self.conv3(x))     # N 256  28  28
        x = self.pool4(self.conv4(x))     # N 512  14  14
        return self.pool5(self.conv5(x))  # N 512   7   7

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 7)                   # N 512 7 7
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))  # N 4096
        x = self.dropout(F.relu(self.fc7(x)))             # N 4096
        return self.fc8(x)                                # N 1000
    # fmt: on


def vgg11(num_classes: int = 1000, in_channels: int = 3) -> VGG:
    """Column A of Table 1."""
    return VGG("A", ConvReLU, num_classes, in_channels)


def vgg13(num_classes: int = 1000, in_channels: int = 3) -> VGG:
    """Column B of Table 1."""
    return VGG("B", ConvReLU, num_classes, in_channels)


def vgg16(num_classes: int = 1000, in_channels: int = 3) -> VGG:
    """Column D of Table 1."""
    return VGG("D", ConvReLU, num_classes, in_channels)


def vgg19(num_classes: int = 1000, in_channels: int = 3) -> VGG:
    """Column E of Table 1."""
    return VGG("E", ConvReLU, num_classes, in_channels)


def vgg11_bn(num_classes: int = 1000, in_channels: int = 3) -> VGG:
    """Column A of Table 1, with batch normalisation."""
    return VGG("A", ConvBNReLU, num_classes, in_channels)


def vgg13_bn(num_classes: int = 1000, in_channels: int = 3) -> VGG:
    """Column B of Table 1, with batch normalisation."""
    return VGG("B", ConvBNReLU, num_classes, in_channels)


def vgg16_bn(num_classes: int = 1000, in_channels: int = 3) -> VGG:
    """Column D of Table 1, with batch normalisation."""
    return VGG("D", ConvBNReLU, num_classes, in_channels)


def vgg19_bn(num_classes: int = 1000, in_channels: int = 3) -> VGG:
    """Column E of Table 1, with batch normalisation."""
    return VGG("E", ConvBNReLU, num_classes, in_channels)
