"""GoogLeNet with batch normalisation, as in torchvision.

After C. Szegedy, W. Liu, Y. Jia, P. Sermanet, S. Reed, D. Anguelov, D. Erhan, V. Vanhoucke,
A. Rabinovich, "Going deeper with convolutions", CVPR 2015, arXiv:1409.4842 (2014), Table 1:

    type            patch   output         #1x1  #3x3    #3x3  "5x5"   "5x5" pool
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
    max pool        2x2/2   7x7x832
    inception (5a)          7x7x832        256    160     320    32     128   128
    inception (5b)          7x7x1024       384    192     384    48     128   128
    avg pool        7x7/1   1x1x1024
    dropout (20%)           1x1x1024
    linear                  1x1x1000

Departures from the paper, all as in torchvision:
  Batch normalisation (eps 0.001) after every convolution; convolutions have no bias. No local
  response normalisation.
  The 5x5 convolutions are 3x3 (pytorch/vision#906).
  The last max pooling is 2x2, and dropout is 20 %.
  The auxiliary classifiers pool adaptively to 4x4, with 4x4 windows on the 14x14 maps; the
  paper's windows are 5x5 with stride 3.
  The final average pooling is global (7x7 at 224x224), so other input sizes work.
  Weights are drawn from N(0, 0.01^2).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.layers import Classifier, require_size

__all__ = ["GoogLeNetBN", "googlenet_bn"]

# Shapes are N C H W; sizes in comments are for the default input, 3x224x224.


class Conv(nn.Module):
    """A padded convolution, batch normalisation, ReLU: N cin H W -> N cout H/stride W/stride."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Fig. 2(b), with the columns of Table 1 as arguments; the 5x5 convolutions are 3x3."""

    def __init__(
        self, cin: int, n1x1: int, r3x3: int, n3x3: int, r5x5: int, n5x5: int, proj: int
    ) -> None:
        super().__init__()
        self.conv1x1 = Conv(cin, n1x1, 1)
        self.reduce3x3 = Conv(cin, r3x3, 1)
        self.conv3x3 = Conv(r3x3, n3x3, 3)
        self.reduce5x5 = Conv(cin, r5x5, 1)
        self.conv5x5 = Conv(r5x5, n5x5, 3)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.pool_proj = Conv(cin, proj, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch1 = self.conv1x1(x)
        branch2 = self.conv3x3(self.reduce3x3(x))
        branch3 = self.conv5x5(self.reduce5x5(x))
        branch4 = self.pool_proj(self.pool(x))
        return torch.cat([branch1, branch2, branch3, branch4], 1)


class Auxiliary(Classifier):
    """An auxiliary classifier (section 5): N C 14 14 -> N classes."""

    classifier = "linear"

    def __init__(self, cin: int, num_classes: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(4)
        self.conv = Conv(cin, 128, 1)
        self.fc = nn.Linear(4 * 4 * 128, 1024)
        self.dropout = nn.Dropout(0.7)
        self.linear = nn.Linear(1024, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.conv(self.avg_pool(x))  #         N 512 14 14 -> N  128 4 4
        return F.relu(self.fc(x.flatten(1)))  #                   N 1024

    def forward_head(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x))  #                    N 1000


class GoogLeNetBN(Classifier):
    """GoogLeNet with batch normalisation: N C 224 224 -> N classes.

    In training mode it returns (logits, aux2, aux1), where aux2 and aux1 are the logits of the
    auxiliary classifiers on (4d) and (4a). `aux=False` builds the network without them.
    """

    classifier = "linear"
    aux_weight: ClassVar[float] = 0.3  # of each auxiliary loss (section 5)

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, aux: bool = True) -> None:
        super().__init__()
        # fmt: off
        self.conv1       = Conv(in_channels, 64, 7, stride=2)
        self.pool1       = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2       = nn.Sequential(Conv(64, 64, 1), Conv(64, 192, 3))
        self.pool2       = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        #                            in  #1x1  #3x3r #3x3 "5x5"r "5x5" proj
        self.inception3a = Inception(192,  64,  96, 128,  16,  32,  32)
        self.inception3b = Inception(256, 128, 128, 192,  32,  96,  64)
        self.pool3       = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception4a = Inception(480, 192,  96, 208,  16,  48,  64)
        self.inception4b = Inception(512, 160, 112, 224,  24,  64,  64)
        self.inception4c = Inception(512, 128, 128, 256,  24,  64,  64)
        self.inception4d = Inception(512, 112, 144, 288,  32,  64,  64)
        self.inception4e = Inception(528, 256, 160, 320,  32, 128, 128)
        self.pool4       = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.inception5a = Inception(832, 256, 160, 320,  32, 128, 128)
        self.inception5b = Inception(832, 384, 192, 384,  48, 128, 128)
        self.avg_pool    = nn.AdaptiveAvgPool2d(1)
        self.dropout     = nn.Dropout(0.2)
        self.linear      = nn.Linear(1024, num_classes)
        self.aux1        = Auxiliary(512, num_classes) if aux else None  # on (4a)
        self.aux2        = Auxiliary(528, num_classes) if aux else None  # on (4d)
        # fmt: on
        torchvision_normal_(self)

    # fmt: off
    def up_to_4a(self, x: Tensor) -> Tensor:
        """Run the layers up to (4a)."""
        require_size(x, 15)
        x = self.conv1(x)              # N 3 224 224 -> N   64 112 112
        x = self.pool1(x)              #                N   64  56  56
        x = self.conv2(x)              #                N  192  56  56
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
        x = self.up_to_4a(x)
        aux1 = self.aux1(x)
        x = self.from_4b_to_4d(x)
        aux2 = self.aux2(x)
        x = self.from_4e_to_5b(x)
        return self.forward_head(x), aux2, aux1

    def reset_classifier(self, num_classes: int) -> None:
        super().reset_classifier(num_classes)
        for auxiliary in (self.aux1, self.aux2):
            if auxiliary is not None:
                auxiliary.reset_classifier(num_classes)


def torchvision_normal_(model: nn.Module) -> None:
    """Draw weights from N(0, 0.01^2), in place.

    torchvision truncates that distribution at 200 standard deviations, which has no effect.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.01)


def googlenet_bn(num_classes: int = 1000, in_channels: int = 3, aux: bool = True) -> GoogLeNetBN:
    """torchvision's GoogLeNet: 6,624,904 parameters, 13,004,888 with auxiliary classifiers."""
    return GoogLeNetBN(num_classes, in_channels, aux)
