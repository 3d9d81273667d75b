"""Trace a network: the output shape, parameters, MACs and receptive field of each stage.

The network runs once on torch's meta device. Tensors there have a shape but no data, so tracing
even VGG at 224x224 computes and allocates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Stage", "Trace", "trace"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage. `output` is C H W or C; receptive field and stride are in input pixels."""

    name: str
    output: tuple[int, ...]
    params: int
    macs: int
    receptive_field: int
    stride: int
    connections: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The stages of a network, in the order requested, and the totals of the whole network."""

    stages: tuple[Stage, ...]
    params: int
    macs: int
    connections: int


def trace(
    build: Callable[[], nn.Module], stages: Sequence[str], input: tuple[int, int, int]
) -> Trace:
    """Trace the network that `build` returns, on one image of shape `input`, C H W.

    `stages` are module names. MACs are those of convolutions and matrix products, as counted by
    torch's FlopCounterMode. Connections are counted as in LeCun et al. (1998), including biases.
    """
    with torch.device("meta"):
        model = build().eval()
        image = torch.empty(1, *input)
    outputs: dict[str, Tensor] = {}
    links: dict[str, int] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(partial(_record, name, outputs, links))
    flops = FlopCounterMode(display=False)
    fields = ReceptiveFields()
    with torch.no_grad(), flops, fields:
        fields.start(image)
        model(image)
    counts = flops.get_flop_counts()
    root = type(model).__name__

    def stage(name: str) -> Stage:
        field = fields[outputs[name]]
        inside = [n for inner, n in links.items() if f"{inner}.".startswith(f"{name}.")]
        return Stage(
            name=name,
            output=tuple(outputs[name].shape[1:]),
            params=_trainable(model.get_submodule(name)),
            macs=_macs(counts.get(f"{root}.{name}", {})),
            # With padding the receptive field can exceed the image; cap it at the larger side.
            receptive_field=min(field.size, max(input[1:])),
            stride=field.stride,
            connections=sum(inside),
        )

    return Trace(
        stages=tuple(map(stage, stages)),
        params=_trainable(model),
        macs=_macs(counts["Global"]),
        connections=sum(links.values()),
    )


def _record(
    name: str,
    outputs: dict[str, Tensor],
    links: dict[str, int],
    module: nn.Module,
    _: Any,
    output: Any,
) -> None:
    """Record a module's output and, if it is a layer, its connections. A forward hook."""
    if isinstance(output, Tensor):
        outputs[name] = output
        links[name] = links.get(name, 0) + _connections(module, output.shape)


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _macs(flops: Mapping[Any, int]) -> int:
    return sum(flops.values()) // 2  # torch counts a multiply-accumulate as two operations


def _connections(module: nn.Module, output: torch.Size) -> int:
    """Return a layer's number of connections: inputs and bias, summed over all output units."""
    if hasattr(module, "connections"):
        return int(module.connections(output))  # type: ignore[operator]
    if isinstance(module, nn.Conv2d | nn.Linear):
        inputs = module.weight[0].numel() + (module.bias is not None)
        return output[1:].numel() * inputs
    return 0


@dataclass(frozen=True)
class Field:
    """The receptive field of one position of a feature map: `size` and `stride` in input pixels.

    `cells` is the width of the feature map. Flattening keeps it, because a linear layer on the
    flattened map covers all cells.
    """

    size: int
    stride: int
    cells: int

    def slide(self, kernel: int, stride: int, dilation: int, cells: int) -> Field:
        """Return the field after a sliding window of `kernel` cells that are `dilation` apart."""
        size = self.size + (kernel - 1) * dilation * self.stride
        return Field(size, self.stride * stride, cells)

    def whole(self) -> Field:
        """Return the field of all cells together, for global pooling and linear layers."""
        return Field(self.size + (self.cells - 1) * self.stride, self.stride, 1)


class ReceptiveFields(TorchDispatchMode):
    """Track the receptive field of every tensor through the operations that produce it.

    A dispatch mode intercepts the operations themselves, including residual connections and
    functional calls, which module hooks would miss.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fields: dict[int, Field] = {}  # by id
        self._kept: list[Tensor] = []  # keeps ids unique: the id of a freed tensor can be reused

    def start(self, image: Tensor) -> None:
        """Set the field of the input image: each pixel is its own receptive field."""
        self._keep(image, Field(1, 1, image.shape[-1]))

    def __getitem__(self, tensor: Tensor) -> Field:
        return self._fields[id(tensor)]

    def _keep(self, tensor: Tensor, field: Field) -> None:
        self._fields[id(tensor)] = field
        self._kept.append(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        output = result[0] if isinstance(result, tuple | list) else result
        inputs = [self._fields[id(t)] for t in _tensors(args) if id(t) in self._fields]
        if inputs and isinstance(output, Tensor):
            widest = max(inputs, key=lambda field: field.size)
            self._keep(output, _step(func.overloadpacket, args, widest, output))
        return result


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg])]
    return [a for a in flat if isinstance(a, Tensor)]


def _step(op: Any, args: tuple[Any, ...], field: Field, output: Tensor) -> Field:
    """Return the field after one operation; element-wise operations do not change it."""
    aten = torch.ops.aten
    cells = output.shape[-1] if output.ndim == 4 else field.cells
    if op is aten.convolution:
        kernel, stride, dilation, transposed = args[1].shape[-1], args[3], args[5], args[6]
        if transposed[-1] if isinstance(transposed, list) else transposed:
            # Upsampling: in input pixels, neighbouring outputs are closer than the cells.
            step = max(field.stride // stride[-1], 1)
            return Field(field.size + (-(-kernel // stride[-1]) - 1) * field.stride, step, cells)
        return field.slide(kernel, stride[-1], dilation[-1], cells)
    if op in (aten.max_pool2d_with_indices, aten.avg_pool2d):
        kernel = args[1][-1]
        stride = args[2][-1] if len(args) > 2 and args[2] else kernel
        return field.slide(kernel, stride, 1, cells)
    if op in (aten._adaptive_avg_pool2d, aten.mean) and output.shape[-1] < field.cells:
        return field.whole()
    if op in (aten.addmm, aten.mm):
        return field.whole()
    return Field(field.size, field.stride, cells)
