"""Optimizers over named parameters, with their whole state in named tensors.

The arithmetic is torch's own, fused where torch has a fused form: bit for bit the results of
`torch.optim.SGD(fused=True)`, `AdamW(fused=True)` and `RMSprop`. Torch's optimizer classes are
not used: making one imports torch's compiler, which costs two thirds of the CPU time of
`import torch`; their step costs several times as much; and saving their state needs pickle or a
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


@dataclass(frozen=True)
class Tensors:
    """Parameters of one group and their state, each list in the order of the parameters."""

    parameters: list[Tensor]
    kept: list[list[Tensor]]  # a list for each name in the optimizer's `kept`
    counts: list[Tensor]  # steps taken; empty unless the optimizer counts them
    weight_decay: float


class Optimizer:
    """Changes parameters along their gradients.

    `state` maps names such as "momentum.c1.weight" to the tensors that are kept for a parameter.
    A parameter without a gradient is not changed.
    """

    kept: tuple[str, ...] = ()  # names of the tensors of a parameter's shape that are kept for it
    counted = False  # whether each parameter's steps are counted

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups: list[Group] = [group for group in groups if group.parameters]
        self.parameters: dict[str, nn.Parameter] = {}
        for group in self.groups:
            self.parameters |= group.parameters
        # torch's GradScaler reads this to unscale the gradients
        self.param_groups: list[dict[str, Any]] = [{"params": [*self.parameters.values()]}]
        self.state: dict[str, Tensor] = {}
        self._tensors: dict[tuple[str, ...], Tensors] = {}  # by the names of the parameters

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Take one step with the gradients that are there."""
        for group in self.groups:
            found = [(n, p.grad) for n, p in group.parameters.items() if p.grad is not None]
            if found:
                names, gradients = zip(*found, strict=True)
                self._update([*gradients], self._tensors_of(group, names), lr * group.factor)

    def _tensors_of(self, group: Group, names: tuple[str, ...]) -> Tensors:
        """Return the named parameters and their state, which is looked up only once."""
        if names not in self._tensors:
            parameters: list[Tensor] = [group.parameters[name] for name in names]
            self._begin(names, parameters)
            kept = [[self.state[f"{what}.{name}"] for name in names] for what in self.kept]
            counts = [self.state[f"step.{name}"] for name in names] if self.counted else []
            self._tensors[names] = Tensors(parameters, kept, counts, group.weight_decay)
        return self._tensors[names]

    def _begin(self, names: Iterable[str], parameters: list[Tensor]) -> None:
        """Make the state of parameters that have none yet."""
        for name, parameter in zip(names, parameters, strict=True):
            for what in self.kept:
                self.state.setdefault(f"{what}.{name}", torch.zeros_like(parameter))
            if self.counted:
                count = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.state.setdefault(f"step.{name}", count)

    def _update(self, gradients: list[Tensor], of: Tensors, lr: float) -> None:
        """Take one step: change the parameters, the kept tensors and the counts in place."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a saved state; each tensor gets the memory layout of its parameter."""
        self._tensors.clear()
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

    def _update(self, gradients: list[Tensor], of: Tensors, lr: float) -> None:
        sgd(
            of.parameters,
            gradients,
            [*of.kept[0]] if of.kept else [None for _ in gradients],
            fused=True,
            weight_decay=of.weight_decay,
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

    def _update(self, gradients: list[Tensor], of: Tensors, lr: float) -> None:
        adamw(
            of.parameters,
            gradients,
            of.kept[0],
            of.kept[1],
            [],
            of.counts,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=of.weight_decay,
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

    def _update(self, gradients: list[Tensor], of: Tensors, lr: float) -> None:
        rmsprop(
            of.parameters,
            gradients,
            of.kept[0],
            [],
            of.kept[1],
            of.counts,
            foreach=True,
            lr=lr,
            alpha=self.alpha,
            eps=self.eps,
            weight_decay=of.weight_decay,
            momentum=self.momentum,
            centered=False,
        )


def make_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimizer over the model's trainable parameters.

    Raises:
        UsageError: `stage_lr` or `freeze` names an unknown stage, or every stage is frozen.
    """
    groups = _groups(model, recipe)
    if recipe.optimizer == "adamw":
        return AdamW(groups, (recipe.momentum, recipe.beta2), recipe.eps)
    if recipe.optimizer == "rmsprop":
        return RMSprop(groups, recipe.momentum, recipe.beta2, recipe.eps)
    return SGD(groups, recipe.momentum, recipe.nesterov)


def _groups(model: nn.Module, recipe: Recipe) -> list[Group]:
    """Return the trainable parameters, grouped by learning-rate factor and weight decay."""
    for stage in (*recipe.stage_lr, *recipe.freeze):
        _require_stage(model, stage)
    found: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or stage_of(name, recipe.freeze):
            continue
        # Vectors are the biases, and the scales and shifts of normalisation.
        exempt = recipe.weight_decay_on == "weights" and parameter.ndim <= 1
        decay = 0.0 if exempt else recipe.weight_decay
        factor = recipe.stage_lr.get(stage_of(name, recipe.stage_lr), 1.0)
        found.setdefault((factor, decay), {})[name] = parameter
    if not found:
        raise UsageError("every stage is frozen: nothing is left to train")
    return [Group(parameters, *key) for key, parameters in found.items()]


def stage_of(name: str, stages: Iterable[str]) -> str:
    """Return the longest of `stages` that contains a parameter or module, or ""."""
    inside = [s for s in stages if name == s or name.startswith(f"{s}.")]
    return max(inside, key=len, default="")


def _require_stage(model: nn.Module, stage: str) -> None:
    """Raise UsageError unless the network has a module of that name; suggest similar ones."""
    known = [name for name, _ in model.named_modules() if name]
    if stage not in known:
        top = [name for name, _ in model.named_children()]
        raise UsageError(
            f"the network has no stage '{stage}'{did_you_mean(stage, known)}",
            f"its stages: {', '.join(top)}",
        )
