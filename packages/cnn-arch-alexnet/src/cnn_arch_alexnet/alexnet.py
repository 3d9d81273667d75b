"""AlexNet.

A. Krizhevsky, I. Sutskever, G. E. Hinton, "ImageNet classification with deep convolutional
neural networks", Advances in Neural Information Processing Systems 25, 2012. The paper has no
table of its layers; this one is compiled from section 3.5 and Fig. 2:

    layer   kernels             stride   maps @ size    trainable   multiply-adds
    input   image                          3 @ 227x227
    conv1    96 of 11x11x3           4    96 @ 55x55       34,944     105,415,200
    norm1   response, n = 5               96 @ 55x55
    pool1   max 3x3                  2    96 @ 27x27
    conv2   256 of 5x5x48            1   256 @ 27x27      307,456     223,948,800
    norm2   response, n = 5              256 @ 27x27
    pool2   max 3x3                  2   256 @ 13x13
    conv3   384 of 3x3x256           1   384 @ 13x13      885,120     149,520,384
    conv4   384 of 3x3x192           1   384 @ 13x13      663,936     112,140,288
    conv5   256 of 3x3x192           1   256 @ 13x13      442,624      74,760,192
    pool5   max 3x3                  2   256 @ 6x6
    fc6     fully connected, dropout    4096           37,752,832      37,748,736
    fc7     fully connected, dropout    4096           16,781,312      16,777,216
    fc8     fully connected             1000            4,097,000       4,096,000
                                                       60,965,224     724,406,816

The network has two towers, one on each of two GPUs. In conv2, conv4 and conv5 each tower sees only
its own half of the maps (hence kernels of depth 48 and 192); conv3 and fc6 to fc8 see all maps.

Departures from the paper:
  One device: the towers are the two groups of a grouped convolution.
  Images are 227x227: with the paper's 224x224, conv1 would have 54.25 positions, not 55.
  Other image sizes, from 67x67 up, also work: the maps are averaged to 6x6 after pool5, which
  changes nothing at 227x227.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_alexnet.layers import ConvReLU, response_norm
from cnn_core.layers import Classifier, require_size

__all__ = ["AlexNet", "alexnet", "krizhevsky_normal_"]

# Shapes are N C H W; sizes in comments are for the default input, 3x227x227.


class AlexNet(Classifier):
    """AlexNet (2012), with the layer names of the authors' release: N C H W -> N classes."""

    classifier = "fc8"

    # fmt: off
    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = ConvReLU(in_channels, 96, 11, stride=4)
        self.norm1 = response_norm()
        self.pool1 = nn.MaxPool2d(3, stride=2)  # 3 > 2: windows overlap (section 3.4)
        self.conv2 = ConvReLU( 96, 256, 5, padding=2, groups=2)
        self.norm2 = response_norm()
        self.pool2 = nn.MaxPool2d(3, stride=2)
        self.conv3 = ConvReLU(256, 384, 3, padding=1)
        self.conv4 = ConvReLU(384, 384, 3, padding=1, groups=2)
        self.conv5 = ConvReLU(384, 256, 3, padding=1, groups=2)
        self.pool5 = nn.MaxPool2d(3, stride=2)
        self.fc6   = nn.Linear(256 * 6 * 6, 4096)
        self.fc7   = nn.Linear(4096, 4096)
        self.fc8   = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(0.5)  # section 4.2
        krizhevsky_normal_(self)

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 67)                        # N   3 227 227
        x = self.pool1(self.norm1(self.conv1(x)))  # N  96  27  27
        x = self.pool2(self.norm2(self.conv2(x)))  # N 256  13  13
        x = self.conv3(x)                          # N 384  13  13
        x = self.conv4(x)                          # N 384  13  13
        return self.pool5(self.conv5(x))           # N 256   6   6

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 6)                   # N 256 6 6
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))  # N 4096
        x = self.dropout(F.relu(self.fc7(x)))             # N 4096
        return self.fc8(x)                                # N 1000
    # fmt: on


def krizhevsky_normal_(model: AlexNet) -> None:
    """Draw weights from N(0, 0.01^2) and set biases to 1 or 0, in place (section 5).

    A bias of 1 gives the ReLUs of conv2, conv4, conv5, fc6 and fc7 positive inputs at first, which
    speeds up early learning.
    """
    for name, layer in model.named_children():
        if isinstance(layer, ConvReLU | nn.Linear):
            positive_bias = name in ("conv2", "conv4", "conv5", "fc6", "fc7")
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, 1.0 if positive_bias else 0.0)


def alexnet(num_classes: int = 1000, in_channels: int = 3) -> AlexNet:
    """AlexNet as published in 2012: 60,965,224 parameters in two towers."""
    return AlexNet(num_classes, in_channels)
