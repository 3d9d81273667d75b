"""Find the graph of a network's stages by one forward pass on the meta device.

Meta tensors have shapes but no data, so even the largest network needs almost no memory or time.
The edges come from following tensors, not from module names: skip connections, additions and
concatenations happen in `forward`, between the modules.
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

__all__ = ["INPUT", "ModelGraph", "model_graph", "strides", "trace_stages"]

INPUT = "input"
NO_ORIGINS: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ModelGraph:
    """The stages of a network and the connections between them.

    `stages` are the requested stages that the forward pass uses. `edges` are pairs (from, to),
    where `INPUT` is the image. `additions` is how often each stage adds two maps, as a residual
    block does; `joins` is how often it concatenates maps.
    """

    stages: tuple[str, ...]
    edges: frozenset[tuple[str, str]]
    additions: Mapping[str, int]
    joins: Mapping[str, int]


def trace_stages(weights: Weights) -> Trace:
    """Return the shapes, parameters and receptive fields of the stages that the network uses."""
    image = (weights.in_channels, *weights.preprocessing.size)
    stages = registry.get_spec(weights.model).stages
    build = partial(build_untrained, weights)
    return trace(build, model_graph(build, stages, image).stages, image)


def strides(weights: Weights) -> dict[str, int]:
    """Return the stride of each stage: the distance in pixels between neighbouring positions."""
    return {stage.name: stage.stride for stage in trace_stages(weights).stages}


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
    used = tuple(stage for stage in stages if stage in tracker.used_stages)
    return ModelGraph(used, frozenset(tracker.edges), dict(tracker.additions), dict(tracker.joins))


class _OriginTracker(TorchDispatchMode):
    """Record the stages that each tensor comes from, across the operations between stages."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.used_stages: set[str] = set()
        self.edges: set[tuple[str, str]] = set()
        self.additions: Counter[str] = Counter()
        self.joins: Counter[str] = Counter()
        self._open_stages: list[str] = []
        self._origins: dict[int, frozenset[str]] = {}  # by id of the tensor
        self._tensors: list[Tensor] = []  # keeps tensors alive, so that no id is reused
        self._set_origins(image, frozenset([INPUT]))

    def enter(self, stage: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Record an edge from each origin of the inputs to the stage that starts."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.edges |= {(origin, stage) for origin in self._origins_of(tensors)}
        self.used_stages.add(stage)
        self._open_stages.append(stage)

    def leave(self, stage: str, module: nn.Module, args: Any, output: Any) -> None:
        """Make the stage that ends the only origin of its outputs."""
        self._open_stages.pop()
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._set_origins(leaf, frozenset([stage]))

    def _set_origins(self, tensor: Tensor, origins: frozenset[str]) -> None:
        self._origins[id(tensor)] = origins
        self._tensors.append(tensor)

    def _origins_of(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        return NO_ORIGINS.union(*(self._origins.get(id(tensor), NO_ORIGINS) for tensor in tensors))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs))
        # Parameters have no origin, so adding a bias does not count as merging maps.
        maps = [leaf for leaf in leaves if isinstance(leaf, Tensor) and id(leaf) in self._origins]
        if self._open_stages and len(maps) > 1:
            self._count(func.overloadpacket, maps)
        origins = self._origins_of(maps)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and origins:
                self._set_origins(leaf, origins)
        return result

    def _count(self, op: Any, maps: Sequence[Tensor]) -> None:
        """Count an addition or a concatenation of maps for the innermost stage."""
        aten = torch.ops.aten
        # Only equal shapes: a broadcast addition, e.g. of one value per channel, merges no maps.
        if op in (aten.add, aten.add_) and maps[0].shape == maps[1].shape:
            self.additions[self._open_stages[-1]] += 1
        elif op is aten.cat:
            self.joins[self._open_stages[-1]] += 1
