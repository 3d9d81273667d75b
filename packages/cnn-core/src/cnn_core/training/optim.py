"""Optimizers over named parameters, with their whole state in named tensors.

The arithmetic is torch's own, in its fused form where there is one: bit for bit what
`torch.optim.SGD(fused=True)`, `AdamW(fused=True)` and `RMSprop` compute. The classes around it
are not used: making one imports torch's compiler, which costs as much CPU as two thirds of
`import torch`, a step of theirs costs several times as much, and their state needs a pickle or a
mapping from numbers to parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.text import did_you_mean

__all__ = ["AdamW", "Group", "Optimizer", "RMSprop", "SGD", "make_optimizer", "stage_of"]


@dataclass(frozen=True)
class Group:
    """Parameters by name that share a factor of the learning rate and a weight decay."""

    parameters: Mapping[str, nn.Parameter]
    factor: float = 1.0
    weight_decay: float = 0.0


class Optimizer:
    """Changes parameters along their gradients.

    `state` are tensors by name: what is kept for a parameter, as "momentum.c1.weight". A parameter
    without a gradient is left alone.
    """

    kept: tuple[str, ...] = ()  # tensors like the parameter, for each
    counted = False  # whether each parameter's steps are counted

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups: list[Group] = [group for group in groups if group.parameters]
        self.parameters: dict[str, nn.Parameter] = {}
        for group in self.groups:
            self.parameters |= group.parameters
        # what GradScaler looks at
        self.param_groups: list[dict[str, Any]] = [{"params": [*self.parameters.values()]}]
        self.state: dict[str, Tensor] = {}
        self._lists: dict[
            tuple[str, ...], tuple[list[Tensor], list[list[Tensor]], list[Tensor]]
        ] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step with the gradients that are there."""
        for group in self.groups:
            found = [(n, p.grad) for n, p in group.parameters.items() if p.grad is not None]
            if found:
                names, gradients = zip(*found, strict=True)
                self._update([*gradients], *self._of(group, names), lr * group.factor, group)

    def _of(
        self, group: Group, names: tuple[str, ...]
    ) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor]]:
        """Return parameters, what is kept for them, and their counts: looked up once."""
        if names not in self._lists:
            parameters: list[Tensor] = [group.parameters[name] for name in names]
            self._begin(names, parameters)
            kept = [[self.state[f"{what}.{name}"] for name in names] for what in self.kept]
            counts = [self.state[f"step.{name}"] for name in names] if self.counted else []
            self._lists[names] = (parameters, kept, counts)
        return self._lists[names]

    def _begin(self, names: Iterable[str], parameters: list[Tensor]) -> None:
        """Make the state of parameters that have none yet."""
        for name, parameter in zip(names, parameters, strict=True):
            for what in self.kept:
                self.state.setdefault(f"{what}.{name}", torch.zeros_like(parameter))
            if self.counted:
                count = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.state.setdefault(f"step.{name}", count)

    def _update(
        self,
        gradients: list[Tensor],
        parameters: list[Tensor],
        kept: list[list[Tensor]],
        counts: list[Tensor],
        lr: float,
        group: Group,
    ) -> None:
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a saved state, each tensor laid out in memory as its parameter is."""
        self._lists.clear()
        for name, tensor in state.items():
            what, _, parameter = name.partition(".")
            like = self.parameters[parameter]
            if what == "step":
                self.state[name] = tensor.to(like.device)
            else:
                self.state[name] = torch.empty_like(like).copy_(tensor)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013).

    v <- momentum v + g,  p <- p - lr v, where g includes weight decay; with Nesterov's look
    ahead p <- p - lr (g + momentum v).
    """

    def __init__(self, groups: Iterable[Group], momentum: float, nesterov: bool = True) -> None:
        super().__init__(groups)
        self.momentum = momentum
        self.nesterov: bool = nesterov and momentum > 0
        self.kept: tuple[str, ...] = ("momentum",) if momentum > 0 else ()

    def _update(
        self,
        gradients: list[Tensor],
        parameters: list[Tensor],
        kept: list[list[Tensor]],
        counts: list[Tensor],
        lr: float,
        group: Group,
    ) -> None:
        sgd(
            parameters,
            gradients,
            [*kept[0]] if kept else [None for _ in parameters],
            fused=True,
            weight_decay=group.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
        )


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    kept: tuple[str, ...] = ("mean", "square")
    counted = True

    def __init__(self, groups: Iterable[Group], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups)
        self.betas = betas
        self.eps = eps

    def _update(
        self,
        gradients: list[Tensor],
        parameters: list[Tensor],
        kept: list[list[Tensor]],
        counts: list[Tensor],
        lr: float,
        group: Group,
    ) -> None:
        adamw(
            parameters,
            gradients,
            kept[0],
            kept[1],
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=group.weight_decay,
            eps=self.eps,
            maximize=False,
        )


class RMSprop(Optimizer):
    """RMSprop (Hinton 2012, lecture 6e) with momentum, as Inception and MobileNet used it."""

    kept: tuple[str, ...] = ("square", "momentum")
    counted = True

    def __init__(self, groups: Iterable[Group], momentum: float, alpha: float, eps: float) -> None:
        super().__init__(groups)
        self.momentum = momentum
        self.alpha = alpha
        self.eps = eps

    def _update(
        self,
        gradients: list[Tensor],
        parameters: list[Tensor],
        kept: list[list[Tensor]],
        counts: list[Tensor],
        lr: float,
        group: Group,
    ) -> None:
        rmsprop(
            parameters,
            gradients,
            kept[0],
            [],
            kept[1],
            counts,
            foreach=True,
            lr=lr,
            alpha=self.alpha,
            eps=self.eps,
            weight_decay=group.weight_decay,
            momentum=self.momentum,
            centered=False,
        )


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer over the model's trainable parameters.

    Raises:
        UsageError: `stage_lr` or `freeze` names no stage of the network, or nothing can learn.
    """
    groups = _groups(model, recipe)
    if recipe.optimizer == "adamw":
        return AdamW(groups, (recipe.momentum, recipe.beta2), recipe.eps)
    if recipe.optimizer == "rmsprop":
        return RMSprop(groups, recipe.momentum, recipe.beta2, recipe.eps)
    return SGD(groups, recipe.momentum, recipe.nesterov)


def _groups(model: nn.Module, recipe: Recipe) -> list[Group]:
    """Return the trainable parameters by factor of the rate and weight decay."""
    for stage in (*recipe.stage_lr, *recipe.freeze):
        _require_stage(model, stage)
    found: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or stage_of(name, recipe.freeze):
            continue
        # Biases, and the scales and shifts of normalisation, are vectors.
        exempt = recipe.weight_decay_on == "weights" and parameter.ndim <= 1
        decay = 0.0 if exempt else recipe.weight_decay
        factor = recipe.stage_lr.get(stage_of(name, recipe.stage_lr), 1.0)
        found.setdefault((factor, decay), {})[name] = parameter
    if not found:
        raise UsageError("every stage is frozen: nothing is left to train")
    return [Group(parameters, *key) for key, parameters in found.items()]


def stage_of(name: str, stages: Iterable[str]) -> str:
    """Return the longest of `stages` that a parameter or module is in, or ""."""
    inside = [s for s in stages if name == s or name.startswith(f"{s}.")]
    return max(inside, key=len, default="")


def _require_stage(model: nn.Module, stage: str) -> None:
    """Raise UsageError unless the network has a module of that name; suggests one."""
    known = [name for name, _ in model.named_modules() if name]
    if stage not in known:
        top = [name for name, _ in model.named_children()]
        raise UsageError(
            f"the network has no stage '{stage}'{did_you_mean(stage, known)}",
            f"its stages: {', '.join(top)}",
        )
