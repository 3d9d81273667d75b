"""Optimizers over named parameters, with their whole state in named tensors.

The arithmetic is torch's own (`torch.optim.sgd.sgd`, `torch.optim.adamw.adamw`, bit for bit
what `torch.optim.SGD` and `torch.optim.AdamW` compute). The classes around it are not used:
making one imports torch's compiler, which costs as much CPU as two thirds of `import torch`,
and their state needs a pickle or a mapping from numbers to parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from cnn_core.training.recipe import Recipe

__all__ = ["AdamW", "Optimizer", "SGD", "make_optimizer"]

Parameters = dict[str, nn.Parameter]


class Optimizer(Protocol):
    """Changes parameters along their gradients."""

    parameters: Parameters
    state: dict[str, Tensor]

    def step(self, lr: float) -> None:
        """Take one step with the gradients that are there."""


class SGD:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013).

    v <- momentum v + g,  p <- p - lr v, where g includes weight decay; with Nesterov's look
    ahead p <- p - lr (g + momentum v).
    """

    def __init__(
        self, parameters: Parameters, momentum: float, weight_decay: float, nesterov: bool = True
    ) -> None:
        self.parameters = parameters
        self.param_groups = [{"params": [*parameters.values()]}]  # what GradScaler looks at
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.nesterov = nesterov and momentum > 0
        self.state: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step with the gradients that are there."""
        names, parameters, gradients = _with_gradients(self.parameters)
        buffers = [self.state.get(f"momentum.{name}") for name in names]
        sgd(
            parameters,
            gradients,
            buffers,
            foreach=True,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
        )
        for name, buffer in zip(names, buffers, strict=True):
            if buffer is not None:
                self.state[f"momentum.{name}"] = buffer


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    def __init__(
        self, parameters: Parameters, betas: tuple[float, float], weight_decay: float
    ) -> None:
        self.parameters = parameters
        self.param_groups = [{"params": [*parameters.values()]}]
        self.betas = betas
        self.weight_decay = weight_decay
        self.state: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step with the gradients that are there."""
        names, parameters, gradients = _with_gradients(self.parameters)
        for name, parameter in zip(names, parameters, strict=True):
            if f"step.{name}" not in self.state:
                self.state[f"step.{name}"] = torch.tensor(0.0)
                self.state[f"mean.{name}"] = torch.zeros_like(parameter)
                self.state[f"square.{name}"] = torch.zeros_like(parameter)
        adamw(
            parameters,
            gradients,
            [self.state[f"mean.{name}"] for name in names],
            [self.state[f"square.{name}"] for name in names],
            [],
            [self.state[f"step.{name}"] for name in names],
            foreach=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def _with_gradients(
    parameters: Mapping[str, nn.Parameter],
) -> tuple[list[str], list[Tensor], list[Tensor]]:
    found = [(name, p, p.grad) for name, p in parameters.items() if p.grad is not None]
    return [n for n, _, _ in found], [p for _, p, _ in found], [g for _, _, g in found]


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer over the model's trainable parameters."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if recipe.optimizer == "adamw":
        return AdamW(parameters, (recipe.momentum, recipe.beta2), recipe.weight_decay)
    return SGD(parameters, recipe.momentum, recipe.weight_decay, recipe.nesterov)
