"""The layers of LeNet-5: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning
applied to document recognition", Proceedings of the IEEE 86(11), 1998, section II.

Trainable layers have a method `fan_in` for `lecun_uniform_`, which returns the number of inputs of
a unit for each parameter. Their method `connections` counts connections as the paper does,
including biases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EuclideanRBF", "ScaledTanh", "SparseConv2d", "Subsampling"]


class ScaledTanh(nn.Module):
    """f(a) = 1.7159 tanh(2/3 a), so that f(1) = 1 and f(-1) = -1 (appendix A)."""

    def forward(self, a: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(a * (2 / 3))


class Subsampling(nn.Module):
    """Sum the inputs in each 2x2 window, multiply by a coefficient and add a bias (S2 and S4).

    Each map has one trainable coefficient and one bias. N C H W -> N C H/2 W/2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient: nn.Parameter = nn.Parameter(torch.empty(channels))
        self.bias: nn.Parameter = nn.Parameter(torch.empty(channels))

    def fan_in(self) -> dict[str, Tensor]:
        """Return 4 for every map: the inputs in a 2x2 window."""
        four = torch.full_like(self.bias, 4)
        return {"coefficient": four, "bias": four}

    def connections(self, output: torch.Size) -> int:
        """Return the number of connections: four inputs and a bias for each output unit."""
        return output[1:].numel() * (4 + 1)

    def forward(self, x: Tensor) -> Tensor:
        total = 4 * F.avg_pool2d(x, 2)
        return total * self.coefficient[:, None, None] + self.bias[:, None, None]


class SparseConv2d(nn.Module):
    """A convolution in which each output map is connected to only some input maps (C3, Table I).

    `table[j]` lists the input maps that output map j is connected to. The parameters are one
    kernel for each entry of the table and one bias for each output map.
    N Cin H W -> N len(table) H' W'.
    """

    def __init__(self, in_channels: int, table: Sequence[Sequence[int]], kernel_size: int) -> None:
        super().__init__()
        self.table = table
        pairs = [(j, i) for j, inputs in enumerate(table) for i in inputs]
        self.shape: tuple[int, int, int, int] = (len(table), in_channels, kernel_size, kernel_size)
        self.weight: nn.Parameter = nn.Parameter(torch.empty(len(pairs), kernel_size, kernel_size))
        self.bias: nn.Parameter = nn.Parameter(torch.empty(len(table)))
        self.register_buffer("pairs", torch.tensor(pairs).T.contiguous(), persistent=False)

    pairs: Tensor

    def fan_in(self) -> dict[str, Tensor]:
        """Return, for each kernel and bias, the number of inputs of its output map's units."""
        area = self.weight[0].numel()
        maps = [len(inputs) * area for inputs in self.table]
        kernels = [len(inputs) * area for inputs in self.table for _ in inputs]
        return {"weight": torch.tensor(kernels), "bias": torch.tensor(maps)}

    def connections(self, output: torch.Size) -> int:
        """Return the number of connections: the inputs and one bias for each output unit."""
        return output[2:].numel() * (self.weight.numel() + self.bias.numel())

    def dense_weight(self) -> Tensor:
        """Return the weight of an ordinary convolution, with zeros for unconnected maps."""
        dense = self.weight.new_zeros(self.shape)
        return dense.index_put((self.pairs[0], self.pairs[1]), self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dense_weight(), self.bias)

    def extra_repr(self) -> str:
        cout, cin, k, _ = self.shape
        return f"{cin}, {cout}, kernel_size={k}, kernels={len(self.weight)}"


class EuclideanRBF(nn.Module):
    """The negated squared distance to the fixed code of each class (Eq. 7): N D -> N classes.

    In the paper the output is the squared distance, and the smallest one wins. Here the sign is
    reversed so that the largest output wins, as in every other classifier. `codes`, classes x D,
    is a buffer: it is not trained, and does not count as a parameter.
    """

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    codes: Tensor

    def connections(self, output: torch.Size) -> int:
        """Return the number of connections: one for each component of each code."""
        return self.codes.numel()

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None, :] - self.codes).square().sum(dim=2)

    def extra_repr(self) -> str:
        return f"{self.codes.shape[1]}, {self.codes.shape[0]}"
