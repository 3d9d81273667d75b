"""MobileNet v2.

M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, "MobileNetV2: inverted residuals and
linear bottlenecks", CVPR 2018, arXiv:1801.04381, Table 2. A row describes n layers with c output
channels and expansion factor t; the first of them has stride s.

    stage          operator        t      c   n   s    input size
    conv1          conv2d 3x3      -     32   1   2    224 x 224 x    3
    bottleneck1    bottleneck      1     16   1   1    112 x 112 x   32
    bottleneck2    bottleneck      6     24   2   2    112 x 112 x   16
    bottleneck3    bottleneck      6     32   3   2     56 x  56 x   24
    bottleneck4    bottleneck      6     64   4   2     28 x  28 x   32
    bottleneck5    bottleneck      6     96   3   1     14 x  14 x   64
    bottleneck6    bottleneck      6    160   3   2     14 x  14 x   96
    bottleneck7    bottleneck      6    320   1   1      7 x   7 x  160
    conv2          conv2d 1x1      -   1280   1   1      7 x   7 x  320
                   avgpool 7x7     -      -   1   -      7 x   7 x 1280
    fc             conv2d 1x1      -   1000   -          1 x   1 x 1280

    width    params       multiply-adds
    1.4      6,108,776    582,195,824
    1        3,504,872    300,774,272
    0.75     2,636,424    209,069,792
    0.5      1,968,680     97,131,840
    0.35     1,677,128     59,285,808

Departures from the paper:
  Layers with stride 2 pad one pixel on each side, as in torchvision. The paper does not specify
  the padding; the authors' TensorFlow code pads only at the right and the bottom.
  Dropout of 0.2 before the last layer, as in the authors' code; the paper does not mention it.
  Initialised after He et al. (2015), by fan-out; the paper gives no initialisation.
Table 4 of the paper gives 6.9 million parameters for width 1.4; the network of Table 2 has 6.1
million.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UsageError
from cnn_core.layers import Classifier, he_normal_

__all__ = ["MobileNetV2", "mobilenet_v2"]

# Shapes are N C H W; sizes in comments are for the default input, 3x224x224, and width 1.


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, no ReLU: N cin H W -> N cout H/s W/s."""
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(cout)))


def conv_bn_relu6(
    cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6, which suits low precision (section 4)."""
    layer = conv_bn(cin, cout, kernel, stride, groups)
    layer.add_module("relu6", nn.ReLU6(inplace=True))
    return layer


class Bottleneck(nn.Module):
    """Expand to t times the channels, filter depthwise, project linearly (Table 1).

    If input and output have the same shape, the input is added (Fig. 4d).
    N cin H W -> N cout H/stride W/stride.
    """

    def __init__(self, cin: int, cout: int, stride: int, t: int) -> None:
        super().__init__()
        self.expand = conv_bn_relu6(cin, t * cin, kernel=1) if t > 1 else nn.Identity()
        self.depthwise = conv_bn_relu6(t * cin, t * cin, kernel=3, stride=stride, groups=t * cin)
        self.project = conv_bn(t * cin, cout, kernel=1)
        self.residual = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def bottlenecks(cin: int, cout: int, *, t: int, n: int, s: int) -> nn.Sequential:
    """One row of Table 2: n bottlenecks, the first with stride s."""
    first = Bottleneck(cin, cout, s, t)
    return nn.Sequential(first, *(Bottleneck(cout, cout, 1, t) for _ in range(n - 1)))


class MobileNetV2(Classifier):
    """MobileNet v2 (2018): N C H W -> N classes. `width` is the width multiplier (section 4)."""

    classifier = "fc"

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        c32, c16, c24, c64, c96, c160, c320 = scale_channels(width, 32, 16, 24, 64, 96, 160, 320)
        (c1280,) = scale_channels(max(width, 1.0), 1280)  # never narrower (section 4)
        # fmt: off
        self.conv1       = conv_bn_relu6(in_channels, c32, kernel=3, stride=2)
        self.bottleneck1 = bottlenecks(c32,  c16,  t=1, n=1, s=1)
        self.bottleneck2 = bottlenecks(c16,  c24,  t=6, n=2, s=2)
        self.bottleneck3 = bottlenecks(c24,  c32,  t=6, n=3, s=2)
        self.bottleneck4 = bottlenecks(c32,  c64,  t=6, n=4, s=2)
        self.bottleneck5 = bottlenecks(c64,  c96,  t=6, n=3, s=1)
        self.bottleneck6 = bottlenecks(c96,  c160, t=6, n=3, s=2)
        self.bottleneck7 = bottlenecks(c160, c320, t=6, n=1, s=1)
        self.conv2       = conv_bn_relu6(c320, c1280, kernel=1)
        self.dropout     = nn.Dropout(0.2)
        self.fc          = nn.Linear(c1280, num_classes)
        # fmt: on
        he_normal_(self, fan="out", linear_std=0.01)

    def forward_features(self, x: Tensor) -> Tensor:
        # fmt: off
        x = self.conv1(x)        # N    3 224 224 -> N   32 112 112
        x = self.bottleneck1(x)  #                   N   16 112 112
        x = self.bottleneck2(x)  #                   N   24  56  56
        x = self.bottleneck3(x)  #                   N   32  28  28
        x = self.bottleneck4(x)  #                   N   64  14  14
        x = self.bottleneck5(x)  #                   N   96  14  14
        x = self.bottleneck6(x)  #                   N  160   7   7
        x = self.bottleneck7(x)  #                   N  320   7   7
        return self.conv2(x)     #                   N 1280   7   7
        # fmt: on

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # N 1280
        return self.fc(self.dropout(x))  #            N 1000


def scale_channels(width: float, *channels: int) -> list[int]:
    """Return each number of channels times `width`, rounded to a multiple of 8, at least 8.

    As in the authors' code, a number that rounding would reduce by more than 10 % is rounded up.
    """
    if not width > 0:
        raise UsageError(
            f"width = {width}: expected a positive number; the paper uses 0.35 to 1.4"
        )
    wanted = [c * width for c in channels]
    nearest = [max(8, int(w + 4) // 8 * 8) for w in wanted]
    return [n + 8 if n < 0.9 * w else n for n, w in zip(nearest, wanted, strict=True)]


def mobilenet_v2(num_classes: int = 1000, in_channels: int = 3, width: float = 1.0) -> MobileNetV2:
    """MobileNet v2: 3.5 million parameters at width 1; the paper uses 0.35 to 1.4."""
    return MobileNetV2(num_classes, in_channels, width)
