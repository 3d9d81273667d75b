"""How the stages of a network are connected, found by running it once without contents."""

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
from cnn_core.create import untrained
from cnn_core.layers.tracing import Trace, trace
from cnn_core.weights.native import Weights

__all__ = ["INPUT", "ModelGraph", "strides", "traced", "model_graph"]

INPUT = "input"
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ModelGraph:
    """Which stage's output reaches which stage directly, and what happens inside of them.

    `stages` are those that took part, in the order given. `edges` are (from, to), `INPUT` being
    the image. `additions` counts where a stage adds two
    maps of an image, as a residual block does; `joins` where it concatenates maps.
    """

    stages: tuple[str, ...]
    edges: frozenset[tuple[str, str]]
    additions: Mapping[str, int]
    joins: Mapping[str, int]


def traced(weights: Weights) -> Trace:
    """Return what each stage does that takes part in the network of these weights, at its size."""
    image = (weights.in_channels, *weights.preprocessing.size)
    stages = registry.get_spec(weights.model).stages
    build = partial(untrained, weights)
    return trace(build, model_graph(build, stages, image).stages, image)


def strides(weights: Weights) -> dict[str, int]:
    """Return how many pixels apart the positions of each stage's maps look."""
    return {stage.name: stage.stride for stage in traced(weights).stages}


@torch.no_grad()
def model_graph(
    build: Callable[[], nn.Module], stages: Sequence[str], input: tuple[int, int, int]
) -> ModelGraph:
    """Return how those of the named stages that `build`'s network has are connected, C H W in."""
    with torch.device("meta"):
        model = build().eval()
        image = torch.empty(1, *input)
    found = _Origins(image)
    modules = dict(model.named_modules())
    for stage in [name for name in stages if name in modules]:
        module = modules[stage]
        module.register_forward_pre_hook(partial(found.enter, stage), with_kwargs=True)
        module.register_forward_hook(partial(found.leave, stage))
    with found:
        model(image)
    took_part = tuple(stage for stage in stages if stage in found.seen)
    return ModelGraph(took_part, frozenset(found.edges), dict(found.additions), dict(found.joins))


class _Origins(TorchDispatchMode):
    """Follows from which stages each tensor comes, through the operations between them."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()
        self.edges: set[tuple[str, str]] = set()
        self.additions: Counter[str] = Counter()
        self.joins: Counter[str] = Counter()
        self._inside: list[str] = []
        self._origins: dict[int, frozenset[str]] = {}  # by id
        self._kept: list[Tensor] = []  # so that no id is given twice
        self._keep(image, frozenset([INPUT]))

    def enter(self, stage: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A stage begins: what reaches it comes from these stages."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.edges |= {(origin, stage) for origin in self._of(tensors)}
        self.seen.add(stage)
        self._inside.append(stage)

    def leave(self, stage: str, module: nn.Module, args: Any, output: Any) -> None:
        """A stage ends: what it gives comes from it alone."""
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
        if op in (aten.add, aten.add_) and maps[0].shape == maps[1].shape:
            self.additions[self._inside[-1]] += 1
        elif op is aten.cat:
            self.joins[self._inside[-1]] += 1
