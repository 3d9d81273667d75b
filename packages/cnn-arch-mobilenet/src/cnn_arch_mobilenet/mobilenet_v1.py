"""MobileNet v1.

A. G. Howard, M. Zhu, B. Chen, D. Kalenichenko, W. Wang, T. Weyand, M. Andreetto, H. Adam,
"MobileNets: efficient convolutional neural networks for mobile vision applications", 2017,
arXiv:1704.04861, Table 1.

    stage            type / stride   filter shape          input size
    conv1            conv    / s2    3 x 3 x    3 x   32   224 x 224 x    3
    separable1       conv dw / s1    3 x 3 x   32 dw       112 x 112 x   32
                     conv    / s1    1 x 1 x   32 x   64   112 x 112 x   32
    separable2       conv dw / s2    3 x 3 x   64 dw       112 x 112 x   64
                     conv    / s1    1 x 1 x   64 x  128    56 x  56 x   64
    separable3       conv dw / s1    3 x 3 x  128 dw        56 x  56 x  128
                     conv    / s1    1 x 1 x  128 x  128    56 x  56 x  128
    separable4       conv dw / s2    3 x 3 x  128 dw        56 x  56 x  128
                     conv    / s1    1 x 1 x  128 x  256    28 x  28 x  128
    separable5       conv dw / s1    3 x 3 x  256 dw        28 x  28 x  256
                     conv    / s1    1 x 1 x  256 x  256    28 x  28 x  256
    separable6       conv dw / s2    3 x 3 x  256 dw        28 x  28 x  256
                     conv    / s1    1 x 1 x  256 x  512    14 x  14 x  256
    separable7-11    conv dw / s1    3 x 3 x  512 dw        14 x  14 x  512    5 times
                     conv    / s1    1 x 1 x  512 x  512    14 x  14 x  512
    separable12      conv dw / s2    3 x 3 x  512 dw        14 x  14 x  512
                     conv    / s1    1 x 1 x  512 x 1024     7 x   7 x  512
    separable13      conv dw / s1    3 x 3 x 1024 dw         7 x   7 x 1024    Table 1: s2
                     conv    / s1    1 x 1 x 1024 x 1024     7 x   7 x 1024
                     average pool    7 x 7                   7 x   7 x 1024
    fc               linear          1024 x 1000             1 x   1 x 1024

    width    params       multiply-adds at 224, 192, 160, 128 pixels
    1        4,231,976    568,740,352   418,121,728   290,675,200   186,400,768
    0.75     2,585,560    325,400,448
    0.5      1,331,592    149,497,088
    0.25       470,072     41,030,272

Departures from the paper:
  The last depthwise layer has stride 1: Table 1 prints s2, but also 7x7 maps before and after it.
  Layers with stride 2 pad one pixel on each side. The paper does not specify the padding; the
  authors' TensorFlow code pads only at the right and the bottom, which shifts all receptive fields
  by a pixel.
  Initialised after He et al. (2015), by fan-out; the paper gives no initialisation.
The authors' TensorFlow code and timm have ReLU6 where the paper has ReLU; activation="relu6"
builds their network.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UsageError
from cnn_core.layers import Classifier, he_normal_

__all__ = ["MobileNetV1", "mobilenet_v1"]

# Shapes are N C H W; sizes in comments are for the default input, 3x224x224, and width 1.

ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6}


def conv_bn_relu(
    cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, activation: str = "relu"
) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU (section 3.2): N cin H W -> N cout H/s W/s."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    relu = ACTIVATIONS[activation](inplace=True)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(cout), relu=relu))


def depthwise_separable(
    cin: int, cout: int, stride: int = 1, activation: str = "relu"
) -> nn.Sequential:
    """Depthwise 3x3, then pointwise 1x1 (Fig. 3, right): N cin H W -> N cout H/s W/s."""
    layer = partial(conv_bn_relu, activation=activation)
    return nn.Sequential(
        OrderedDict(
            depthwise=layer(cin, cin, kernel=3, stride=stride, groups=cin),
            pointwise=layer(cin, cout, kernel=1),
        )
    )


class MobileNetV1(Classifier):
    """MobileNet v1 (2017): N C H W -> N classes. `width` is alpha, the width multiplier (3.3).

    `activation` is "relu", as in the paper, or "relu6", as in the authors' TensorFlow code.
    """

    classifier = "fc"

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UsageError(f"activation = {activation!r}", f"one of {known}")
        c32, c64, c128, c256, c512, c1024 = scale_channels(width, 32, 64, 128, 256, 512, 1024)
        conv = partial(conv_bn_relu, activation=activation)
        separable = partial(depthwise_separable, activation=activation)
        # fmt: off
        self.conv1       = conv(in_channels, c32, kernel=3, stride=2)
        self.separable1  = separable(c32,    c64)
        self.separable2  = separable(c64,    c128, stride=2)
        self.separable3  = separable(c128,   c128)
        self.separable4  = separable(c128,   c256, stride=2)
        self.separable5  = separable(c256,   c256)
        self.separable6  = separable(c256,   c512, stride=2)
        self.separable7  = separable(c512,   c512)
        self.separable8  = separable(c512,   c512)
        self.separable9  = separable(c512,   c512)
        self.separable10 = separable(c512,   c512)
        self.separable11 = separable(c512,   c512)
        self.separable12 = separable(c512,  c1024, stride=2)
        self.separable13 = separable(c1024, c1024)
        self.fc          = nn.Linear(c1024, num_classes)
        # fmt: on
        he_normal_(self, fan="out", linear_std=0.01)

    def forward_features(self, x: Tensor) -> Tensor:
        # fmt: off
        x = self.conv1(x)           # N    3 224 224 -> N   32 112 112
        x = self.separable1(x)      #                   N   64 112 112
        x = self.separable2(x)      #                   N  128  56  56
        x = self.separable3(x)      #                   N  128  56  56
        x = self.separable4(x)      #                   N  256  28  28
        x = self.separable5(x)      #                   N  256  28  28
        x = self.separable6(x)      #                   N  512  14  14
        x = self.separable7(x)      #                   N  512  14  14
        x = self.separable8(x)      #                   N  512  14  14
        x = self.separable9(x)      #                   N  512  14  14
        x = self.separable10(x)     #                   N  512  14  14
        x = self.separable11(x)     #                   N  512  14  14
        x = self.separable12(x)     #                   N 1024   7   7
        return self.separable13(x)  #                   N 1024   7   7
        # fmt: on

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  #   N 1024
        return self.fc(x)  #                            N 1000


def scale_channels(width: float, *channels: int) -> list[int]:
    """Return each number of channels times `width`, rounded down, at least 8.

    The minimum is that of the authors' code.
    """
    if not width > 0:
        raise UsageError(f"width = {width}: expected a positive number; the paper uses 0.25 to 1")
    return [max(8, int(c * width)) for c in channels]


def mobilenet_v1(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    activation: str = "relu",
) -> MobileNetV1:
    """MobileNet v1: 4.2 million parameters at width 1; the paper uses 1, 0.75, 0.5 and 0.25."""
    return MobileNetV1(num_classes, in_channels, width, activation)
