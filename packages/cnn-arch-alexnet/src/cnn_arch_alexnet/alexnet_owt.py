"""AlexNet in one tower, as in torchvision.

A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014,
arXiv:1404.5997, section 5. The paper has no table; this one has the numbers of kernels from its
text:

    layer   kernels             stride   maps @ size    trainable   multiply-adds
    input   image                          3 @ 224x224
    conv1    64 of 11x11x3           4    64 @ 55x55       23,296      70,276,800
    pool1   max 3x3                  2    64 @ 27x27
    conv2   192 of 5x5x64            1   192 @ 27x27      307,392     223,948,800
    pool2   max 3x3                  2   192 @ 13x13
    conv3   384 of 3x3x192           1   384 @ 13x13      663,936     112,140,288
    conv4   256 of 3x3x384           1   256 @ 13x13      884,992     149,520,384
    conv5   256 of 3x3x256           1   256 @ 13x13      590,080      99,680,256
    pool5   max 3x3                  2   256 @ 6x6
    fc6     dropout, fully connected    4096           37,752,832      37,748,736
    fc7     dropout, fully connected    4096           16,781,312      16,777,216
    fc8     fully connected             1000            4,097,000       4,096,000
                                                       61,100,840     714,188,480

Departures from the paper, all as in torchvision:
  conv4 has 256 kernels. The paper's text says 384, but also "0.2% more parameters" than the
  two-tower network, which is true only of 256; the author's single-GPU configuration has 256, too.
  Dropout is applied to the inputs of fc6 and fc7, not to their outputs.
  No response normalisation, and torch's default initialisation.
  A softmax over the classes; the paper trains a thousand independent logistic units.
  Image sizes other than 224x224, from 63x63 up, also work: maps are averaged to 6x6 after pool5.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_alexnet.layers import ConvReLU
from cnn_core.layers import Classifier, require_size

__all__ = ["AlexNetOWT", "alexnet_owt"]

# Shapes are N C H W; sizes in comments are for the default input, 3x224x224.


class AlexNetOWT(Classifier):
    """AlexNet in one tower (2014), without response normalisation: N C H W -> N classes."""

    classifier = "fc8"

    # fmt: off
    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = ConvReLU(in_channels, 64, 11, stride=4, padding=2)
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.conv2 = ConvReLU( 64, 192, 5, padding=2)
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.conv3 = ConvReLU(192, 384, 3, padding=1)
        self.conv4 = ConvReLU(384, 256, 3, padding=1)
        self.conv5 = ConvReLU(256, 256, 3, padding=1)
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.fc6   = nn.Linear(256 * 6 * 6, 4096)
        self.fc7   = nn.Linear(4096, 4096)
        self.fc8   = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 63)               # N   3 224 224
        x = self.pool1(self.conv1(x))     # N  64  27  27
        x = self.pool2(self.conv2(x))     # N 192  13  13
        x = self.conv3(x)                 # N 384  13  13
        x = self.conv4(x)                 # N 256  13  13
        return self.pool5(self.conv5(x))  # N 256   6   6

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 6)                   # N 256 6 6
        x = F.relu(self.fc6(self.dropout(x.flatten(1))))  # N 4096
        x = F.relu(self.fc7(self.dropout(x)))             # N 4096
        return self.fc8(x)                                # N 1000
    # fmt: on


def alexnet_owt(num_classes: int = 1000, in_channels: int = 3) -> AlexNetOWT:
    """AlexNet in one tower, as in torchvision: 61,100,840 parameters."""
    return AlexNetOWT(num_classes, in_channels)
