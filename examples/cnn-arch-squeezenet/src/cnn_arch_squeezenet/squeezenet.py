"""SqueezeNet 1.0 and 1.1.

F. N. Iandola, S. Han, M. W. Moskewicz, K. Ashraf, W. J. Dally, K. Keutzer, "SqueezeNet:
AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size", 2016, arXiv:1602.07360.

Table 1: numbers of filters in the squeeze layer (s1x1) and in the expand layer (e1x1, e3x3). Sizes
are for images of 224x224; the paper's 111, 55, 27 and 13 belong to images of 227x227.

    layer      maps @ size     filter / stride   s1x1   e1x1   e3x3   parameters
    input        3 @ 224x224
    conv1       96 @ 109x109   7x7 / 2                                    14,208
    maxpool1    96 @ 54x54     3x3 / 2
    fire2      128 @ 54x54                         16     64     64       11,920
    fire3      128 @ 54x54                         16     64     64       12,432
    fire4      256 @ 54x54                         32    128    128       45,344
    maxpool4   256 @ 27x27     3x3 / 2
    fire5      256 @ 27x27                         32    128    128       49,440
    fire6      384 @ 27x27                         48    192    192      104,880
    fire7      384 @ 27x27                         48    192    192      111,024
    fire8      512 @ 27x27                         64    256    256      188,992
    maxpool8   512 @ 13x13     3x3 / 2
    fire9      512 @ 13x13                         64    256    256      197,184
    conv10    1000 @ 13x13     1x1 / 1                                   513,000
    avgpool10 1000 @ 1x1       13x13
                                                                       1,248,424

    1.1, with pooling after conv1, fire3 and fire5:
    conv1       64 @ 111x111   3x3 / 2                                     1,792
    fire2      128 @ 55x55                         16     64     64       11,408
    fire3      as above
    fire4, 5   256 @ 27x27     as above
    fire6, 7   384 @ 13x13     as above
    fire8, 9   512 @ 13x13     as above
                                                                       1,235,496

1.1 is a later version by the authors (github.com/forresti/SqueezeNet): 2.3 times less computation.

Departures from the paper:
  Initialised after He et al. (2015), conv10 from N(0, 0.01^2).
  Pooling keeps incomplete windows at the border, as in Caffe, the framework of the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.layers import Classifier, he_normal_, require_size

__all__ = ["Fire", "SqueezeNet10", "SqueezeNet11", "squeezenet1_0", "squeezenet1_1"]

# Shapes are N C H W; sizes in comments are for the default input, 3x224x224.


class Fire(nn.Module):
    """Squeeze to few maps; expand by 1x1 and 3x3 filters (Fig. 1): N cin H W -> N cout H W."""

    def __init__(self, cin: int, s1x1: int, e1x1: int, e3x3: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(cin, s1x1, kernel_size=1)
        self.expand1x1 = nn.Conv2d(s1x1, e1x1, kernel_size=1)
        self.expand3x3 = nn.Conv2d(s1x1, e3x3, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat((F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))), dim=1)


def pool() -> nn.MaxPool2d:
    """Return overlapping max-pooling, 3x3 with stride 2: N C H W -> N C ~H/2 ~W/2."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


class SqueezeNet(Classifier):
    """The layers that both versions share: most Fire modules, and a head with a map per class."""

    classifier = "conv10"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fire3 = Fire(128, 16, 64, 64)
        self.fire5 = Fire(256, 32, 128, 128)
        self.fire6 = Fire(256, 48, 192, 192)
        self.fire7 = Fire(384, 48, 192, 192)
        self.fire8 = Fire(384, 64, 256, 256)
        self.fire9 = Fire(512, 64, 256, 256)
        self.drop9 = nn.Dropout(0.5)
        self.conv10 = nn.Conv2d(512, num_classes, kernel_size=1)

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv10(self.drop9(x)))  # N 1000 13 13
        return x.mean((2, 3))  #                  N 1000


class SqueezeNet10(SqueezeNet):
    """SqueezeNet 1.0, Table 1: N 3 224 224 -> N 1000."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(in_channels, 96, kernel_size=7, stride=2)
        self.maxpool1 = pool()
        self.fire2 = Fire(96, 16, 64, 64)
        self.fire4 = Fire(128, 32, 128, 128)
        self.maxpool4 = pool()
        self.maxpool8 = pool()
        initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 21)
        x = self.maxpool1(F.relu(self.conv1(x)))  #     N   3 224 224 -> N  96 54 54
        x = self.fire4(self.fire3(self.fire2(x)))  #                     N 256 54 54
        x = self.maxpool4(x)  #                                          N 256 27 27
        x = self.fire6(self.fire5(x))  #                                 N 384 27 27
        x = self.maxpool8(self.fire8(self.fire7(x)))  #                  N 512 13 13
        return self.fire9(x)  #                                          N 512 13 13


class SqueezeNet11(SqueezeNet):
    """SqueezeNet 1.1, with earlier pooling: N 3 224 224 -> N 1000."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__(num_classes)
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, stride=2)
        self.maxpool1 = pool()
        self.fire2 = Fire(64, 16, 64, 64)
        self.fire4 = Fire(128, 32, 128, 128)
        self.maxpool3 = pool()
        self.maxpool5 = pool()
        initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        require_size(x, 17)
        x = self.maxpool1(F.relu(self.conv1(x)))  #     N   3 224 224 -> N  64 55 55
        x = self.maxpool3(self.fire3(self.fire2(x)))  #                  N 128 27 27
        x = self.maxpool5(self.fire5(self.fire4(x)))  #                  N 256 13 13
        x = self.fire7(self.fire6(x))  #                                 N 384 13 13
        return self.fire9(self.fire8(x))  #                              N 512 13 13


def initialise(model: SqueezeNet) -> None:
    """Initialise after He et al. (2015), the last convolution from N(0, 0.01^2), in place."""
    he_normal_(model)
    nn.init.normal_(model.conv10.weight, std=0.01)


def squeezenet1_0(num_classes: int = 1000, in_channels: int = 3) -> SqueezeNet10:
    """SqueezeNet as published in 2016: 1,248,424 parameters."""
    return SqueezeNet10(num_classes, in_channels)


def squeezenet1_1(num_classes: int = 1000, in_channels: int = 3) -> SqueezeNet11:
    """SqueezeNet 1.1: 1,235,496 parameters, 2.3 times less computation."""
    return SqueezeNet11(num_classes, in_channels)
