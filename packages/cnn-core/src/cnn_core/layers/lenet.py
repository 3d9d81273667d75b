"""The layers of 1998: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning
applied to document recognition", Proceedings of the IEEE 86(11), 1998, section II.

`fan_in` gives, for each parameter, the number of inputs of the units it belongs to, for
initialisation; `connections` counts them as the paper does, biases included.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EuclideanRBF", "ScaledTanh", "SparseConv2d", "Subsampling"]


class ScaledTanh(nn.Module):
    """f(a) = 1.7159 tanh(2/3 a): f(1) = 1 and f(-1) = -1 (appendix A)."""

    def forward(self, a: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(a * (2 / 3))


class Subsampling(nn.Module):
    """Add the four inputs of each 2x2 window, times a coefficient, plus a bias (S2 and S4).

    One trainable coefficient and one bias per map. N C H W -> N C H/2 W/2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.coefficient: nn.Parameter = nn.Parameter(torch.empty(channels))
        self.bias: nn.Parameter = nn.Parameter(torch.empty(channels))

    def fan_in(self) -> dict[str, Tensor]:
        """4 for each map."""
        four = torch.full_like(self.bias, 4)
        return {"coefficient": four, "bias": four}

    def connections(self, output: torch.Size) -> int:
        """Four inputs and a bias for each unit of the output."""
        return output[1:].numel() * (4 + 1)

    def forward(self, x: Tensor) -> Tensor:
        total = 4 * F.avg_pool2d(x, 2)
        return total * self.coefficient[:, None, None] + self.bias[:, None, None]


class SparseConv2d(nn.Module):
    """A convolution in which each output map sees only some of the input maps (C3, table I).

    `table[j]` lists the input maps that output map j sees. There is one kernel for each entry
    of the table and no other parameter but the biases. N Cin H W -> N len(table) H' W'.
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
        """Kernel area times the number of maps that the output map sees."""
        area = self.weight[0].numel()
        maps = [len(inputs) * area for inputs in self.table]
        kernels = [len(inputs) * area for inputs in self.table for _ in inputs]
        return {"weight": torch.tensor(kernels), "bias": torch.tensor(maps)}

    def connections(self, output: torch.Size) -> int:
        """Each unit's inputs and bias, over all units of the output."""
        return output[2:].numel() * (self.weight.numel() + self.bias.numel())

    def dense_weight(self) -> Tensor:
        """The kernels in their places in an ordinary weight, zero elsewhere."""
        dense = self.weight.new_zeros(self.shape)
        return dense.index_put((self.pairs[0], self.pairs[1]), self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dense_weight(), self.bias)

    def extra_repr(self) -> str:
        cout, cin, k, _ = self.shape
        return f"{cin}, {cout}, kernel_size={k}, kernels={len(self.weight)}"


class EuclideanRBF(nn.Module):
    """Minus the squared distance to each class's fixed code (Eq. 7): N D -> N classes.

    The paper's unit gives the distance itself and the nearest code wins; the sign is turned
    so that, as with every other classifier, the largest output wins. `codes` is classes x D;
    it is a buffer: neither trained nor counted among the parameters.
    """

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    codes: Tensor

    def connections(self, output: torch.Size) -> int:
        """One for each component of each code."""
        return self.codes.numel()

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None, :] - self.codes).square().sum(dim=2)

    def extra_repr(self) -> str:
        return f"{self.codes.shape[1]}, {self.codes.shape[0]}"
