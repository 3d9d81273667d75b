"""GoogLeNet.

C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, V. Vanhoucke,
A. Rabinovich, "Going deeper with convolutions", CVPR 2015, arXiv:1409.4842 (2014), Table 1:

    type            patch   output         #1x1  #3x3    #3x3  #5x5    #5x5  pool
                    /stride                      reduce        reduce        proj
    convolution     7x7/2   112x112x64
    max pool        3x3/2   56x56x64
    convolution     3x3/1   56x56x192              64     192
    max pool        3x3/2   28x28x192
    inception (3a)          28x28x256       64     96     128    16      32    32
    inception (3b)          28x28x480      128    128     192    32      96    64
    max pool        3x3/2   14x14x480
    inception (4a)          14x14x512      192     96     208    16      48    64
    inception (4b)          14x14x512      160    112     224    24      64    64
    inception (4c)          14x14x512      128    128     256    24      64    64
    inception (4d)          14x14x528      112    144     288    32      64    64
    inception (4e)          14x14x832      256    160     320    32     128   128
    max pool        3x3/2   7x7x832
    inception (5a)          7x7x832        256    160     320    32     128   128
    inception (5b)          7x7x1024       384    192     384    48     128   128
    avg pool        7x7/1   1x1x1024
    dropout (40%)           1x1x1024
    linear                  1x1x1000

Two auxiliary classifiers, in training only, on top of (4a) and (4d): avg pool 5x5/3 to 4x4, 1x1
convolution with 128 filters, fully connected layer with 1024 units, dropout (70%), linear. Their
losses are added with a weight of 0.3 each.

Departures from the paper, and choices where it is silent:
  The paper gives neither the constants of the local response normalisation (Fig. 3) nor the
  initialisation: both are taken from BVLC's replication (Caffe, models/bvlc_googlenet).
  The final average pooling is global (7x7 at 224x224), so other input sizes work.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UsageError
from cnn_core.layers import Classifier, require_size

__all__ = ["GoogLeNet", "googlenet"]

# Shapes are N C H W; sizes in comments are for the default input, 3x224x224.


class Conv(nn.Conv2d):
    """A padded convolution with ReLU: N cin H W -> N cout H/stride W/stride."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1) -> None:
        super().__init__(cin, cout, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class Inception(nn.Module):
    """Fig. 2(b): four branches, concatenated. The arguments are the columns of Table 1."""

    def __init__(
        self, cin: int, n1x1: int, r3x3: int, n3x3: int, r5x5: int, n5x5: int, proj: int
    ) -> None:
        super().__init__()
        self.conv1x1 = Conv(cin, n1x1, 1)
        self.reduce3x3 = Conv(cin, r3x3, 1)
        self.conv3x3 = Conv(r3x3, n3x3, 3)
        self.reduce5x5 = Conv(cin, r5x5, 1)
        self.conv5x5 = Conv(r5x5, n5x5, 5)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.pool_proj = Conv(cin, proj, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch1 = self.conv1x1(x)
        branch2 = self.conv3x3(self.reduce3x3(x))
        branch3 = self.conv5x5(self.reduce5x5(x))
        branch4 = self.pool_proj(self.pool(x))
        return torch.cat([branch1, branch2, branch3, branch4], 1)  # the filter concatenation


class Auxiliary(Classifier):
    """An auxiliary classifier (section 5): N C 14 14 -> N classes."""

    classifier = "linear"

    def __init__(self, cin: int, num_classes: int) -> None:
        super().__init__()
        self.avg_pool = nn.AvgPool2d(5, stride=3)
        self.conv = Conv(cin, 128, 1)
        self.fc = nn.Linear(4 * 4 * 128, 1024)
        self.dropout = nn.Dropout(0.7)
        self.linear = nn.Linear(1024, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.conv(self.avg_pool(x))  #         N 512 14 14 -> N  128 4 4
        return F.relu(self.fc(x.flatten(1)))  #                   N 1024

    def forward_head(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x))  #                    N 1000


class GoogLeNet(Classifier):
    """GoogLeNet (2014): N C 224 224 -> N classes.

    In training mode it returns (logits, aux2, aux1), where aux2 and aux1 are the logits of the
    auxiliary classifiers on (4d) and (4a). `aux=False` builds the network without them.
    """

    classifier = "linear"
    aux_weight: ClassVar[float] = 0.3  # of each auxiliary loss (section 5)
    # Smallest and largest image side for which the maps of the auxiliary classifiers are 4x4.
    aux_size_range: ClassVar[tuple[int, int]] = (223, 270)

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, aux: bool = True) -> None:
        super().__init__()
        # fmt: off
        self.conv1       = Conv(in_channels, 64, 7, stride=2)
        self.pool1       = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1       = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)
        self.conv2       = nn.Sequential(Conv(64, 64, 1), Conv(64, 192, 3))
        self.norm2       = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)
        self.pool2       = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        #                            in  #1x1  #3x3r #3x3 #5x5r #5x5 proj
        self.inception3a = Inception(192,  64,  96, 128,  16,  32,  32)
        self.inception3b = Inception(256, 128, 128, 192,  32,  96,  64)
        self.pool3       = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(480, 192,  96, 208,  16,  48,  64)
        self.inception4b = Inception(512, 160, 112, 224,  24,  64,  64)
        self.inception4c = Inception(512, 128, 128, 256,  24,  64,  64)
        self.inception4d = Inception(512, 112, 144, 288,  32,  64,  64)
        self.inception4e = Inception(528, 256, 160, 320,  32, 128, 128)
        self.pool4       = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception5a = Inception(832, 256, 160, 320,  32, 128, 128)
        self.inception5b = Inception(832, 384, 192, 384,  48, 128, 128)
        self.avg_pool    = nn.AdaptiveAvgPool2d(1)
        self.dropout     = nn.Dropout(0.4)
        self.linear      = nn.Linear(1024, num_classes)
        self.aux1        = Auxiliary(512, num_classes) if aux else None  # on (4a)
        self.aux2        = Auxiliary(528, num_classes) if aux else None  # on (4d)
        # fmt: on
        bvlc_xavier_(self)

    # fmt: off
    def up_to_4a(self, x: Tensor) -> Tensor:
        """Run the layers up to (4a)."""
        require_size(x, 31)
        x = self.conv1(x)              # N 3 224 224 -> N   64 112 112
        x = self.norm1(self.pool1(x))  #                N   64  56  56
        x = self.norm2(self.conv2(x))  #                N  192  56  56
        x = self.pool2(x)              #                N  192  28  28
        x = self.inception3a(x)        #                N  256  28  28
        x = self.inception3b(x)        #                N  480  28  28
        x = self.pool3(x)              #                N  480  14  14
        return self.inception4a(x)     #                N  512  14  14

    def from_4b_to_4d(self, x: Tensor) -> Tensor:
        """Run (4b) to (4d) on the output of (4a)."""
        x = self.inception4b(x)        #                N  512  14  14
        x = self.inception4c(x)        #                N  512  14  14
        return self.inception4d(x)     #                N  528  14  14

    def from_4e_to_5b(self, x: Tensor) -> Tensor:
        """Run (4e) to (5b) on the output of (4d)."""
        x = self.inception4e(x)        #                N  832  14  14
        x = self.pool4(x)              #                N  832   7   7
        x = self.inception5a(x)        #                N  832   7   7
        return self.inception5b(x)     #                N 1024   7   7

    def forward_features(self, x: Tensor) -> Tensor:
        return self.from_4e_to_5b(self.from_4b_to_4d(self.up_to_4a(x)))

    def forward_head(self, x: Tensor) -> Tensor:
        x = self.avg_pool(x)           #                N 1024   1   1
        x = self.dropout(x.flatten(1)) #                N 1024
        return self.linear(x)          #                N 1000
    # fmt: on

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        if not self.training or self.aux1 is None or self.aux2 is None:
            return self.forward_head(self.forward_features(x))
        self.require_aux_size(x)
        x = self.up_to_4a(x)
        aux1 = self.aux1(x)
        x = self.from_4b_to_4d(x)
        aux2 = self.aux2(x)
        x = self.from_4e_to_5b(x)
        return self.forward_head(x), aux2, aux1

    def require_aux_size(self, x: Tensor) -> None:
        """Raise UsageError if the auxiliary classifiers cannot take images of this size."""
        (low, high), (height, width) = self.aux_size_range, x.shape[2:]
        if not (low <= height <= high and low <= width <= high):
            raise UsageError(
                f"googlenet with its auxiliary classifiers trains on images of {low}x{low} to "
                f"{high}x{high} pixels, not {height}x{width}",
                "aux=False trains without them, on images of 31x31 or more",
            )

    def reset_classifier(self, num_classes: int) -> None:
        super().reset_classifier(num_classes)
        for auxiliary in (self.aux1, self.aux2):
            if auxiliary is not None:
                auxiliary.reset_classifier(num_classes)


def bvlc_xavier_(model: nn.Module) -> None:
    """Draw weights from U(-a, a), a = sqrt(3 / fan-in), and set biases to 0.2, in place.

    The biases of the final linear layers are 0. This is Caffe's "xavier" filler, as in BVLC's
    replication.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            limit = math.sqrt(3 / module.weight[0].numel())
            nn.init.uniform_(module.weight, -limit, limit)
            assert module.bias is not None
            nn.init.constant_(module.bias, 0 if name.endswith("linear") else 0.2)


def googlenet(num_classes: int = 1000, in_channels: int = 3, aux: bool = True) -> GoogLeNet:
    """GoogLeNet as published: 6,998,552 parameters, 13,378,280 with auxiliary classifiers."""
    return GoogLeNet(num_classes, in_channels, aux)
