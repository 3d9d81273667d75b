"""U-Net.

O. Ronneberger, P. Fischer, T. Brox, "U-Net: convolutional networks for biomedical image
segmentation", MICCAI 2015, arXiv:1505.04597, Fig. 1. Each level has two unpadded 3x3 convolutions
with ReLU. The contracting path halves the maps by 2x2 max-pooling; the expanding path doubles them
by 2x2 up-convolutions and concatenates the maps of the same level, cropped at the centre.

    stage    operation                                maps @ size       copied and cropped
    input    image tile                                  1 @ 572x572
    down.1   conv 3x3, conv 3x3                         64 @ 568x568    to 392x392
    down.2   max-pool 2x2, conv 3x3, conv 3x3          128 @ 280x280    to 200x200
    down.3   max-pool 2x2, conv 3x3, conv 3x3          256 @ 136x136    to 104x104
    down.4   max-pool 2x2, conv 3x3, conv 3x3          512 @ 64x64      to 56x56
    bottom   max-pool 2x2, conv 3x3, conv 3x3         1024 @ 28x28
    up.4     up-conv 2x2, concat, conv 3x3, conv 3x3   512 @ 52x52
    up.3     up-conv 2x2, concat, conv 3x3, conv 3x3   256 @ 100x100
    up.2     up-conv 2x2, concat, conv 3x3, conv 3x3   128 @ 196x196
    up.1     up-conv 2x2, concat, conv 3x3, conv 3x3    64 @ 388x388
    output   conv 1x1                                    2 @ 388x388

23 convolutional layers, 31,030,658 parameters, 150,428,424,448 multiply-accumulates.

Departures from the paper: none. Where the paper is silent or ambiguous:
  The copied maps come first in the concatenation, as drawn in Fig. 1; in the authors' released
  code they come last, and each up-convolution is followed by a ReLU, which Fig. 1 does not show.
  An up-convolution is a transposed convolution with stride 2, as in the released code.
  Dropout "at the end of the contracting path" is placed as in the released code, before the last
  pooling (so that it applies to the copied maps, too) and after the bottom, with probability 0.5.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.errors import UsageError
from cnn_core.layers import he_normal_

__all__ = ["UNet", "unet"]

# Shapes are N C H W; sizes in comments are for the default input, 1x572x572.


def convs(cin: int, cout: int, dropout: float = 0.0) -> nn.Sequential:
    """Two unpadded 3x3 convolutions with ReLU: N cin H W -> N cout H-4 W-4."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(cin, cout, kernel_size=3),
            relu1=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(cout, cout, kernel_size=3),
            relu2=nn.ReLU(inplace=True),
            dropout=nn.Dropout(dropout),
        )
    )


class Up(nn.Module):
    """A level of the expanding path: N cin H W, N cin/2 H' W' -> N cin/2 2H-4 2W-4."""

    def __init__(self, cin: int) -> None:
        super().__init__()
        self.upconv = nn.ConvTranspose2d(cin, cin // 2, kernel_size=2, stride=2)
        self.convs = convs(cin, cin // 2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.upconv(x)
        return self.convs(torch.cat([centre_crop(skip, x.shape[-2:]), x], dim=1))


def centre_crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return the central `size` of maps: the upsampled maps are smaller than the copied ones."""
    top, left = (x.shape[-2] - size[0]) // 2, (x.shape[-1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]]


class UNet(nn.Module):
    """U-Net (2015): images, N C H W -> logits of their central part, N classes h w.

    `depth` is the number of pooling layers, `width` the number of maps of the first level.
    """

    def __init__(
        self, num_classes: int = 2, in_channels: int = 1, depth: int = 4, width: int = 64
    ) -> None:
        super().__init__()
        require_positive(depth=depth, width=width)
        self.depth = depth
        levels = range(1, depth + 1)
        maps = [in_channels, *(width * 2**i for i in range(depth + 1))]
        rates = [0.0] * depth + [0.5]  # "at the end of the contracting path"
        self.down = nn.ModuleDict({f"{i}": convs(maps[i - 1], maps[i], rates[i]) for i in levels})
        self.bottom = convs(maps[depth], maps[depth + 1], rates[depth])
        self.up = nn.ModuleDict({f"{i}": Up(maps[i + 1]) for i in reversed(levels)})
        self.output = nn.Conv2d(width, num_classes, kernel_size=1)
        he_normal_(self)  # section 3: sqrt(2/N)

    def forward(self, x: Tensor) -> Tensor:
        require_sizes(x.shape[-2:], self.depth)
        skips = []
        for down in self.down.values():
            x = down(x)  #             N    1 572 572 -> N   64 568 568, ... N 512 64 64
            skips.append(x)
            x = F.max_pool2d(x, 2)  #                    N   64 284 284, ... N 512 32 32
        x = self.bottom(x)  #                            N 1024  28  28
        for up, skip in zip(self.up.values(), reversed(skips), strict=True):
            x = up(x, skip)  #                           N  512  52  52, ... N 64 388 388
        return self.output(x)  #                         N    2 388 388


def require_positive(**values: int) -> None:
    """Raise UsageError unless each value is a positive integer."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} = {value!r}: expected a positive integer")


def require_sizes(sizes: Sequence[int], depth: int) -> None:
    """Raise UsageError unless every pooling layer gets maps of even size (section 2).

    For depth 4 the valid sides are 188, 204, ... 572, ...; the smallest leaves an output of 4x4.
    """
    step, smallest = 2**depth, 12 * 2**depth - 4
    for size in sizes:
        if size < smallest or (size - smallest) % step:
            below = max(size - (size - smallest) % step, smallest)
            raise UsageError(
                f"image size {sizes[0]} x {sizes[1]}: the sides of U-Net's images must be "
                f"{smallest} + {step} k pixels; nearest to {size} are {below} and {below + step}",
                "extend the image by mirroring it at its borders, as in the paper",
            )


def unet(num_classes: int = 2, in_channels: int = 1, depth: int = 4, width: int = 64) -> UNet:
    """U-Net as published in 2015: 572x572 -> 388x388, 31,030,658 parameters."""
    return UNet(num_classes, in_channels, depth, width)
