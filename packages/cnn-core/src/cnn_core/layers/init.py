"""Weight initialisation methods, named after their authors."""

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

    Source: K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", ICCV 2015. n is the
    fan-in (`fan` "in", Eq. 10) or the fan-out ("out", Eq. 14), within groups if a convolution is
    grouped. If `linear_std` is given, weights of linear layers come from N(0, linear_std^2).
    Normalisation layers keep their defaults.
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
    """Return the number of inputs of a unit or, for "out", of units that read its output."""
    if isinstance(module, nn.Linear):
        return module.in_features if fan == "in" else module.out_features
    if isinstance(module, nn.ConvTranspose2d) and module.kernel_size == module.stride:
        positions = 1  # without overlap, each output pixel depends on one input pixel
    else:
        positions = module.kernel_size[0] * module.kernel_size[1]
    maps = module.in_channels if fan == "in" else module.out_channels
    return maps * positions // module.groups


@torch.no_grad()
def lecun_uniform_(model: nn.Module) -> None:
    """Draw every weight and bias from U(-2.4/F, 2.4/F) in place; F is the fan-in of its unit.

    Source: LeCun et al. (1998), appendix A. The range keeps the weighted sums in the steep part of
    the scaled tanh. F follows from the weight's shape for convolutions and linear layers. Other
    layers with parameters need a method `fan_in()` that returns F for each parameter.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            limit = 2.4 / _fan_in(module, name)
            limit = limit.view(-1, *[1] * (parameter.ndim - 1))
            parameter.uniform_(-1, 1).mul_(limit)


def _fan_in(module: nn.Module, name: str) -> Tensor:
    """Return the number of inputs of each unit, per row of the parameter or one for all."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return torch.tensor([module.weight[0].numel()])
    return cast(Tensor, module.fan_in()[name])  # type: ignore[operator]
