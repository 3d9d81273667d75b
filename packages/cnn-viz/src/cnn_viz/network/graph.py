"""The graph of a network's stages, found by one forward pass on the meta device.

Meta tensors have shapes but no data, so even the largest network costs no memory and almost no
time. Edges are found by following tensors and not from module names: skip connections, additions
and concatenations happen in `forward`, between the modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cnn_core import registry
from cnn_core.create import build_untrained
from cnn_core.layers.tracing import Trace, trace
from cnn_core.weights.native import Weights

__all__ = ["INPUT", "ModelGraph", "model_graph", "strides", "traced"]

INPUT = "input"
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ModelGraph:
    """The stages of a network and the connections between them.

    `stages` are those used in the forward pass, in the order given. `edges` are (from, to), with
    `INPUT` for the image. `additions` counts how often a stage adds two maps, as a residual block
    does; `joins` counts how often it concatenates maps.
    """

    stages: tuple[str, ...]
    edges: frozenset[tuple[str, str]]
    additions: Mapping[str, int]
    joins: Mapping[str, int]


def traced(weights: Weights) -> Trace:
    """Return shapes, parameters and receptive fields of the stages that the network uses."""
    image = (weights.in_channels, *weights.preprocessing.size)
    stages = registry.get_spec(weights.model).stages
    build = partial(build_untrained, weights)
    return trace(build, model_graph(build, stages, image).stages, image)


def strides(weights: Weights) -> dict[str, int]:
    """Return each stage's stride: the distance in pixels between neighbouring positions."""
    return {stage.name: stage.stride for stage in traced(weights).stages}


@torch.no_grad()
def model_graph(
    build: Callable[[], nn.Module], stages: Sequence[str], input: tuple[int, int, int]
) -> ModelGraph:
    """Return the graph of the network that `build` returns; `input` is C H W.

    Stages that the network lacks or does not use are left out.
    """
    with torch.device("meta"):
        model = build().eval()
        image = torch.empty(1, *input)
    tracker = _OriginTracker(image)
    modules = dict(model.named_modules())
    for stage in [name for name in stages if name in modules]:
        module = modules[stage]
        module.register_forward_pre_hook(partial(tracker.enter, stage), with_kwargs=True)
        module.register_forward_hook(partial(tracker.leave, stage))
    with tracker:
        model(image)
    took_part = tuple(stage for stage in stages if stage in tracker.seen)
    return ModelGraph(
        took_part, frozenset(tracker.edges), dict(tracker.additions), dict(tracker.joins)
    )


class _OriginTracker(TorchDispatchMode):
    """Record which stages each tensor comes from, through the operations between stages."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()
        self.edges: set[tuple[str, str]] = set()
        self.additions: Counter[str] = Counter()
        self.joins: Counter[str] = Counter()
        self._inside: list[str] = []
        self._origins: dict[int, frozenset[str]] = {}  # by id of the tensor
        self._kept: list[Tensor] = []  # keeps tensors alive, so that no id is reused
        self._keep(image, frozenset([INPUT]))

    def enter(self, stage: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Record the edges to a stage that begins: the origins of its inputs."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.edges |= {(origin, stage) for origin in self._of(tensors)}
        self.seen.add(stage)
        self._inside.append(stage)

    def leave(self, stage: str, module: nn.Module, args: Any, output: Any) -> None:
        """Make a stage that ends the only origin of its outputs."""
        self._inside.pop()
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._keep(leaf, frozenset([stage]))

    def _keep(self, tensor: Tensor, origins: frozenset[str]) -> None:
        self._origins[id(tensor)] = origins
        self._kept.append(tensor)

    def _of(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        return NOTHING.union(*(self._origins.get(id(tensor), NOTHING) for tensor in tensors))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs))
        # Parameters have no origin, so adding a bias does not count as merging maps.
        maps = [leaf for leaf in leaves if isinstance(leaf, Tensor) and id(leaf) in self._origins]
        if self._inside and len(maps) > 1:
            self._count(func.overloadpacket, maps)
        origins = self._of(maps)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and origins:
                self._keep(leaf, origins)
        return result

    def _count(self, op: Any, maps: Sequence[Tensor]) -> None:
        """Count an addition or a concatenation of two maps or more in the innermost stage."""
        aten = torch.ops.aten
        # Equal shapes only: broadcast additions, as of channel weights, merge no two maps.
        if op in (aten.add, aten.add_) and maps[0].shape == maps[1].shape:
            self.additions[self._inside[-1]] += 1
        elif op is aten.cat:
            self.joins[self._inside[-1]] += 1
