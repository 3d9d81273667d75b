"""EfficientNet-Lite.

M. Tan, Q. V. Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML
2019, arXiv:1905.11946, Table 1, with the changes of the EfficientNet-Lite model card (TensorFlow's
TPU repository, models/official/efficientnet/lite, 2020). A row of Table 1 describes n layers with
c output channels; the first of them has stride s. MBConv6 expands its input to 6 times as many
channels.

                                    input of                       c of           n of
    stage     operator         s    lite0    lite1    lite2        lite0,1 lite2  lite0 lite1,2
    stage1    conv 3x3         2    224x224  240x240  260x260        32     32      1     1
    stage2    MBConv1, 3x3     1    112x112  120x120  130x130        16     16      1     1
    stage3    MBConv6, 3x3     2    112x112  120x120  130x130        24     24      2     3
    stage4    MBConv6, 5x5     2     56x56    60x60    65x65         40     48      2     3
    stage5    MBConv6, 3x3     2     28x28    30x30    33x33         80     88      3     4
    stage6    MBConv6, 5x5     1     14x14    15x15    17x17        112    120      3     4
    stage7    MBConv6, 5x5     2     14x14    15x15    17x17        192    208      4     5
    stage8    MBConv6, 3x3     1      7x7      8x8      9x9         320    352      1     1
    stage9    conv 1x1         1      7x7      8x8      9x9        1280   1280      1     1
              average pool            7x7      8x8      9x9        1280   1280
    fc        linear                  1x1      1x1      1x1        1000   1000

    model    width   depth   dropout    params       multiply-adds
    lite0     1.0     1.0      0.2      4,652,008    385,187,552
    lite1     1.0     1.1      0.2      5,416,680    600,185,232
    lite2     1.1     1.2      0.3      6,092,072    859,736,272

Departures from the paper:
  Those of the model card: no squeeze-and-excitation; ReLU6 instead of Swish; the width does not
  scale stages 1 and 9, and the depth does not scale stages 2 and 8.
  The network returns logits; the softmax is part of the loss.
Where the paper leaves details open, the network follows the authors' code:
  padding: TensorFlow's "SAME"
  epsilon of batch normalisation: 0.001
  dropout: before the last layer
  stochastic depth: with a rate that grows linearly over the blocks, from 0 in the first
  initialisation: see `initialise_`
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UsageError
from cnn_core.layers import Classifier, he_normal_

__all__ = ["EfficientNetLite", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]

DROP_CONNECT = 0.2  # stochastic depth: 1 minus the survival probability of 0.8 (section 5.2)

# Shapes are N C H W; sizes in comments are for lite0 and its default input, 3x224x224.


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's "SAME" padding of one axis, in pixels: (before, after).

    The output has size / stride pixels, rounded up. If the total is odd, the right or the bottom
    gets the extra pixel. At stride 2 the padding depends on whether `size` is even.
    """
    output = -(-size // stride)  # rounded up
    total = max((output - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: N cin H W -> N cout H/s W/s, rounded up."""

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = map(
            same_padding, x.shape[2:], self.kernel_size, self.stride
        )
        # The convolution itself can pad only by the same number on both sides.
        if (top, left) != (bottom, right):
            x = F.pad(x, (0, right - left, 0, bottom - top))
        return F.conv2d(
            x, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups
        )


class StochasticDepth(nn.Dropout):
    """In training, set each image's x to 0 with probability p, else divide it by 1 - p.

    Source: G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Q. Weinberger, "Deep networks with stochastic
    depth", ECCV 2016. The authors of EfficientNet call it drop connect.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(x.new_ones(len(x), 1, 1, 1), self.p)


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, no ReLU6: N cin H W -> N cout H/s W/s, rounded up."""
    conv = SameConv2d(cin, cout, kernel, stride, groups=groups, bias=False)
    bn = nn.BatchNorm2d(cout, eps=1e-3, momentum=0.01)  # TensorFlow's momentum: 1 - 0.01
    return nn.Sequential(OrderedDict(conv=conv, bn=bn))


def conv_bn_relu6(
    cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6, which suits low precision (model card)."""
    layer = conv_bn(cin, cout, kernel, stride, groups)
    layer.add_module("relu6", nn.ReLU6(inplace=True))
    return layer


class MBConv(nn.Module):
    """Expand to t times the channels, filter depthwise, project linearly, as in MobileNet v2.

    If input and output have the same shape, the input is added. In training, `drop` is the
    probability that an image takes only this shortcut.
    N cin H W -> N cout H/s W/s, rounded up.
    """

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, t: int, drop: float) -> None:
        super().__init__()
        width = t * cin
        self.expand = conv_bn_relu6(cin, width, kernel=1) if t > 1 else nn.Identity()
        self.depthwise = conv_bn_relu6(width, width, kernel, stride, groups=width)
        self.project = conv_bn(width, cout, kernel=1)
        self.residual = stride == 1 and cin == cout
        self.drop = StochasticDepth(drop if self.residual else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + self.drop(y) if self.residual else y


def mbconvs(
    cin: int, cout: int, drops: Iterator[float], *, k: int, t: int, n: int, s: int
) -> nn.Sequential:
    """One row of Table 1: n layers, the first with stride s. Each takes the next of `drops`."""
    first = MBConv(cin, cout, k, s, t, next(drops))
    return nn.Sequential(first, *(MBConv(cout, cout, k, 1, t, next(drops)) for _ in range(n - 1)))


class EfficientNetLite(Classifier):
    """EfficientNet-Lite (2020): N C H W -> N classes.

    `width` and `depth` are the multipliers w and d of compound scaling (Eq. 3).

    Raises:
        UsageError: `width` or `depth` is not positive.
    """

    classifier = "fc"

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        depth: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        c16, c24, c40, c80, c112, c192, c320 = scale_channels(width, 16, 24, 40, 80, 112, 192, 320)
        n3, n4, n5, n6, n7 = scale_layers(depth, 2, 2, 3, 3, 4)
        blocks = 1 + n3 + n4 + n5 + n6 + n7 + 1
        drops = (DROP_CONNECT * block / blocks for block in range(blocks))
        # fmt: off
        self.stage1  = conv_bn_relu6(in_channels, 32, kernel=3, stride=2)
        self.stage2  = mbconvs(32,   c16,  drops, k=3, t=1, n=1,  s=1)
        self.stage3  = mbconvs(c16,  c24,  drops, k=3, t=6, n=n3, s=2)
        self.stage4  = mbconvs(c24,  c40,  drops, k=5, t=6, n=n4, s=2)
        self.stage5  = mbconvs(c40,  c80,  drops, k=3, t=6, n=n5, s=2)
        self.stage6  = mbconvs(c80,  c112, drops, k=5, t=6, n=n6, s=1)
        self.stage7  = mbconvs(c112, c192, drops, k=5, t=6, n=n7, s=2)
        self.stage8  = mbconvs(c192, c320, drops, k=3, t=6, n=1,  s=1)
        self.stage9  = conv_bn_relu6(c320, 1280, kernel=1)
        self.dropout = nn.Dropout(dropout)
        self.fc      = nn.Linear(1280, num_classes)
        # fmt: on
        initialise_(self)

    def forward_features(self, x: Tensor) -> Tensor:
        # fmt: off
        x = self.stage1(x)     # N    3 224 224 -> N   32 112 112
        x = self.stage2(x)     #                   N   16 112 112
        x = self.stage3(x)     #                   N   24  56  56
        x = self.stage4(x)     #                   N   40  28  28
        x = self.stage5(x)     #                   N   80  14  14
        x = self.stage6(x)     #                   N  112  14  14
        x = self.stage7(x)     #                   N  192   7   7
        x = self.stage8(x)     #                   N  320   7   7
        return self.stage9(x)  #                   N 1280   7   7
        # fmt: on

    def forward_head(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # N 1280
        return self.fc(self.dropout(x))  #            N 1000


def initialise_(model: EfficientNetLite) -> None:
    """Draw all weights as the authors' code does, in place.

    Convolutions follow He et al. (2015), by fan-out. The weights of the last layer are uniform
    between -1 / sqrt(classes) and 1 / sqrt(classes).
    """
    he_normal_(model, fan="out")
    limit = model.fc.out_features**-0.5
    nn.init.uniform_(model.fc.weight, -limit, limit)


def scale_channels(width: float, *channels: int) -> list[int]:
    """Return each number of channels times `width`, rounded to a multiple of 8, at least 8.

    As in the authors' code, a number that rounding would reduce by more than 10 % is rounded up.
    """
    if not width > 0:
        raise UsageError(f"width = {width}: expected a positive number, such as 1.1 for lite2")
    wanted = [c * width for c in channels]
    nearest = [max(8, int(w + 4) // 8 * 8) for w in wanted]
    return [n + 8 if n < 0.9 * w else n for n, w in zip(nearest, wanted, strict=True)]


def scale_layers(depth: float, *layers: int) -> list[int]:
    """Return each number of layers times `depth`, rounded up."""
    if not depth > 0:
        raise UsageError(f"depth = {depth}: expected a positive number, such as 1.2 for lite2")
    return [math.ceil(depth * n) for n in layers]


def efficientnet_lite0(num_classes: int = 1000, in_channels: int = 3) -> EfficientNetLite:
    """EfficientNet-Lite0, for 224x224: 4.7 million parameters."""
    return EfficientNetLite(num_classes, in_channels, width=1.0, depth=1.0, dropout=0.2)


def efficientnet_lite1(num_classes: int = 1000, in_channels: int = 3) -> EfficientNetLite:
    """EfficientNet-Lite1, for 240x240: 5.4 million parameters."""
    return EfficientNetLite(num_classes, in_channels, width=1.0, depth=1.1, dropout=0.2)


def efficientnet_lite2(num_classes: int = 1000, in_channels: int = 3) -> EfficientNetLite:
    """EfficientNet-Lite2, for 260x260: 6.1 million parameters."""
    return EfficientNetLite(num_classes, in_channels, width=1.1, depth=1.2, dropout=0.3)
