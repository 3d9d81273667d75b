"""Optimizers over named parameters that keep all their state in named tensors.

They call torch's own functions, so the results are bit-identical to `torch.optim.SGD(fused=True)`,
`AdamW(fused=True)` and `RMSprop`. They do not use torch's optimizer classes, for three reasons:
creating one imports torch's compiler, which takes two thirds of the CPU time of `import torch`;
their steps take several times as long; and saving their state needs pickle or a mapping from
indices to parameters.
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

from cnn_core import registry
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.text import did_you_mean

__all__ = ["AdamW", "Group", "Optimizer", "RMSprop", "SGD", "make_optimizer", "stage_of"]


@dataclass(frozen=True)
class Group:
    """Named parameters that share a learning-rate multiplier and a weight decay."""

    parameters: Mapping[str, nn.Parameter]
    factor: float = 1.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class GroupTensors:
    """Parameters of one group and their state. All lists are in the order of `parameters`."""

    parameters: list[Tensor]
    state: list[list[Tensor]]  # one list for each of the optimizer's `state_names`
    counts: list[Tensor]  # step count of each parameter; empty unless `counts_steps`
    weight_decay: float


class Optimizer:
    """Base class of the optimizers.

    `state` maps names such as "momentum.c1.weight" to state tensors. Parameters without a gradient
    are not changed.
    """

    state_names: tuple[str, ...] = ()  # state tensors with the shape of their parameter
    counts_steps = False  # whether to keep a step count for each parameter

    def __init__(self, groups: Iterable[Group]) -> None:
        self.groups: list[Group] = [group for group in groups if group.parameters]
        self.parameters: dict[str, nn.Parameter] = {}
        for group in self.groups:
            self.parameters |= group.parameters
        # torch's GradScaler reads this attribute to unscale the gradients.
        self.param_groups: list[dict[str, Any]] = [{"params": [*self.parameters.values()]}]
        self.state: dict[str, Tensor] = {}
        self._tensors: dict[tuple[str, ...], GroupTensors] = {}  # by parameter names

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update all parameters that have a gradient."""
        for group in self.groups:
            present = [(n, p.grad) for n, p in group.parameters.items() if p.grad is not None]
            if present:
                names, gradients = zip(*present, strict=True)
                self._update([*gradients], self._tensors_of(group, names), lr * group.factor)

    def _tensors_of(self, group: Group, names: tuple[str, ...]) -> GroupTensors:
        """Return the named parameters and their state, from a cache after the first call."""
        if names not in self._tensors:
            parameters: list[Tensor] = [group.parameters[name] for name in names]
            self._init_state(names, parameters)
            state = [[self.state[f"{kind}.{n}"] for n in names] for kind in self.state_names]
            counts = [self.state[f"step.{n}"] for n in names] if self.counts_steps else []
            self._tensors[names] = GroupTensors(parameters, state, counts, group.weight_decay)
        return self._tensors[names]

    def _init_state(self, names: Iterable[str], parameters: list[Tensor]) -> None:
        """Create zeroed state for parameters that have none yet."""
        for name, parameter in zip(names, parameters, strict=True):
            for kind in self.state_names:
                self.state.setdefault(f"{kind}.{name}", torch.zeros_like(parameter))
            if self.counts_steps:
                count = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.state.setdefault(f"step.{name}", count)

    def _update(self, gradients: list[Tensor], tensors: GroupTensors, lr: float) -> None:
        """Update the parameters, their state and their step counts in place."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a saved state; each tensor takes the memory format of its parameter."""
        self._tensors.clear()
        for name, tensor in state.items():
            kind, _, parameter = name.partition(".")
            like = self.parameters[parameter]
            if kind == "step":
                self.state[name] = tensor.to(like.device)
            else:
                self.state[name] = torch.empty_like(like).copy_(tensor)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013).

    v <- momentum v + g,  p <- p - lr v, where g includes weight decay. With Nesterov momentum,
    p <- p - lr (g + momentum v).
    """

    def __init__(self, groups: Iterable[Group], momentum: float, nesterov: bool = True) -> None:
        super().__init__(groups)
        self.momentum = momentum
        self.nesterov: bool = nesterov and momentum > 0
        self.state_names: tuple[str, ...] = ("momentum",) if momentum > 0 else ()

    def _update(self, gradients: list[Tensor], tensors: GroupTensors, lr: float) -> None:
        sgd(
            tensors.parameters,
            gradients,
            [*tensors.state[0]] if tensors.state else [None for _ in gradients],
            fused=True,
            weight_decay=tensors.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
        )


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    state_names: tuple[str, ...] = ("mean", "square")
    counts_steps = True

    def __init__(self, groups: Iterable[Group], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups)
        self.betas = betas
        self.eps = eps

    def _update(self, gradients: list[Tensor], tensors: GroupTensors, lr: float) -> None:
        adamw(
            tensors.parameters,
            gradients,
            tensors.state[0],
            tensors.state[1],
            [],
            tensors.counts,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=lr,
            weight_decay=tensors.weight_decay,
            eps=self.eps,
            maximize=False,
        )


class RMSprop(Optimizer):
    """RMSprop (Hinton 2012, lecture 6e) with momentum, as Inception and MobileNet used it."""

    state_names: tuple[str, ...] = ("square", "momentum")
    counts_steps = True

    def __init__(self, groups: Iterable[Group], momentum: float, alpha: float, eps: float) -> None:
        super().__init__(groups)
        self.momentum = momentum
        self.alpha = alpha
        self.eps = eps

    def _update(self, gradients: list[Tensor], tensors: GroupTensors, lr: float) -> None:
        rmsprop(
            tensors.parameters,
            gradients,
            tensors.state[0],
            [],
            tensors.state[1],
            tensors.counts,
            foreach=True,
            lr=lr,
            alpha=self.alpha,
            eps=self.eps,
            weight_decay=tensors.weight_decay,
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
    """Return the trainable parameters, grouped by learning-rate multiplier and weight decay."""
    for stage in (*recipe.stage_lr, *recipe.freeze):
        _require_stage(model, stage)
    decays = _layer_decays(model, recipe) if recipe.layer_decay != 1 else {}
    grouped: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or stage_of(name, recipe.freeze):
            continue
        # Parameters with one dimension are biases, or the scales and shifts of normalisation.
        exempt = recipe.weight_decay_on == "weights" and parameter.ndim <= 1
        decay = 0.0 if exempt else recipe.weight_decay
        factor = recipe.stage_lr.get(stage_of(name, recipe.stage_lr), 1.0) * decays.get(name, 1.0)
        grouped.setdefault((factor, decay), {})[name] = parameter
    if not grouped:
        raise UsageError("every stage is frozen: nothing is left to train")
    return [Group(parameters, *key) for key, parameters in grouped.items()]


def _layer_decays(model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Return layer_decay ** (number of stages above) for each parameter, by name.

    Only stages with parameters count. Parameters outside of all stages belong to the stage of the
    parameter before them, such as normalisation between two stages.
    """
    names = [name for name, _ in model.named_parameters()]
    known = registry.get_spec(recipe.model).stages
    stages = [stage for stage in known if any(stage_of(name, [stage]) for name in names)]
    decays, stage = {}, stages[0]
    for name in names:
        stage = stage_of(name, stages) or stage
        decays[name] = recipe.layer_decay ** (len(stages) - 1 - stages.index(stage))
    return decays


def stage_of(name: str, stages: Iterable[str]) -> str:
    """Return the innermost of `stages` that contains the parameter or module `name`, or ""."""
    inside = [s for s in stages if name == s or name.startswith(f"{s}.")]
    return max(inside, key=len, default="")


def _require_stage(model: nn.Module, stage: str) -> None:
    """Raise UsageError, with a suggestion, if the network has no module named `stage`."""
    known = [name for name, _ in model.named_modules() if name]
    if stage not in known:
        top = [name for name, _ in model.named_children()]
        raise UsageError(
            f"the network has no stage '{stage}'{did_you_mean(stage, known)}",
            f"its stages: {', '.join(top)}",
        )
