"""Initialisations, each named after its authors."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

__all__ = ["he_normal_", "lecun_uniform_"]

CONVOLUTIONS = nn.Conv2d | nn.ConvTranspose2d


@torch.no_grad()
def he_normal_(
    model: nn.Module, fan: Literal["in", "out"] = "in", linear_std: float | None = None
) -> None:
    """Draw weights from N(0, 2/n) and set biases to 0, in place.

    K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", ICCV 2015: n is the fan-in
    of a unit (`fan` "in", Eq. 10) or its fan-out ("out", Eq. 14), counted within its group of
    channels. Linear layers are drawn from N(0, linear_std^2) if `linear_std` is given.
    Normalisation layers keep their default, the identity.
    """
    for module in model.modules():
        if not isinstance(module, CONVOLUTIONS | nn.Linear):
            continue
        if isinstance(module, nn.Linear) and linear_std is not None:
            module.weight.normal_(0, linear_std)
        else:
            module.weight.normal_(0, (2 / _fan(module, fan)) ** 0.5)
        if module.bias is not None:
            module.bias.zero_()


def _fan(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, fan: str) -> int:
    """Return the number of inputs of one unit, or the number of units that read it."""
    if isinstance(module, nn.Linear):
        return module.in_features if fan == "in" else module.out_features
    if isinstance(module, nn.ConvTranspose2d) and module.kernel_size == module.stride:
        positions = 1  # windows do not overlap: each output pixel reads one input pixel
    else:
        positions = module.kernel_size[0] * module.kernel_size[1]
    maps = module.in_channels if fan == "in" else module.out_channels
    return maps * positions // module.groups


@torch.no_grad()
def lecun_uniform_(model: nn.Module) -> None:
    """Draw every weight and bias from U(-2.4/F, 2.4/F), F the fan-in of its unit, in place.

    LeCun et al. (1998), appendix A. The range keeps the weighted sums in the steep part of the
    scaled tanh. A layer's `fan_in()`, if it has that method, gives F for each of its parameters;
    convolutions and linear layers have F in the shape of their weight.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            limit = 2.4 / _fan_in(module, name)
            limit = limit.view(-1, *[1] * (parameter.ndim - 1))
            parameter.uniform_(-1, 1).mul_(limit)


def _fan_in(module: nn.Module, name: str) -> Tensor:
    """Return the number of inputs of each unit, one for each row of the parameter."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return torch.tensor([module.weight[0].numel()])
    return cast(Tensor, module.fan_in()[name])  # type: ignore[operator]
