"""One value of a convolution's output with its inputs: window, kernel, bias and activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cnn_core.errors import UsageError
from cnn_viz.network.inspection import inspection_mode

__all__ = ["ConvolutionStep", "MapPosition", "convolution_step", "first_feature_maps"]

MapPosition = tuple[int, int, int]  # channel, row, column


@dataclass(frozen=True, kw_only=True)
class ConvolutionStep:
    """One output of a convolution, sum(window * kernel) + bias, and the activations after it.

    `window` and `kernel` are C k k, float64. The window begins at `corner`, (row, column) of the
    image, negative inside the padding. `output` is the value that the network computed; `steps`
    are the elementwise operations that follow, each with its result.
    """

    layer: str
    channel: int
    position: tuple[int, int]
    corner: tuple[int, int]
    span: tuple[int, int]
    window: Tensor
    kernel: Tensor
    bias: float | None
    output: float
    steps: tuple[tuple[str, float], ...]

    @property
    def products(self) -> Tensor:
        """The elementwise product of window and kernel."""
        return self.window * self.kernel

    @property
    def sum(self) -> float:
        """The sum of the products and the bias: equal to `output` up to rounding."""
        return float(self.products.sum()) + (self.bias or 0.0)


def convolution_step(
    model: nn.Module, image: Tensor, place: MapPosition | None = None
) -> ConvolutionStep:
    """Return one output of the first convolution with its inputs, for an image 1 C H W.

    `place` is its channel, row and column; by default those of the highest output. The network is
    left unchanged.

    Raises:
        UsageError: there is no convolution, it is not used, or `place` is out of range.
    """
    name, conv, tracer = _trace_first_convolution(model, image, place)
    return _describe_step(name, conv, tracer)


def first_feature_maps(model: nn.Module, image: Tensor) -> tuple[str, Tensor]:
    """Return the first convolution's name and its output for an image 1 C H W: maps, C h w.

    Raises:
        UsageError: there is no convolution, or it is not used.
    """
    name, _, tracer = _trace_first_convolution(model, image, None)
    return name, tracer.kept[1][0]


def _trace_first_convolution(
    model: nn.Module, image: Tensor, place: MapPosition | None
) -> tuple[str, nn.Conv2d, _ConvolutionTracer]:
    name, conv = _first_convolution(model)
    tracer = _ConvolutionTracer(place)
    hook = conv.register_forward_pre_hook(tracer.arm)
    try:
        with inspection_mode(model, image), tracer:
            model(image.detach().clone())
    finally:
        hook.remove()
    if not tracer.kept:
        raise UsageError(f"the first convolution, {name}, is not used: nothing to explain")
    return name, conv, tracer


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise UsageError(f"{type(model).__name__} has no convolution: nothing to explain")


def _describe_step(name: str, conv: nn.Conv2d, tracer: _ConvolutionTracer) -> ConvolutionStep:
    """Cut out the window and the kernel of the output that was traced, of y = conv(x)."""
    x, y, weight, *bias = tracer.kept
    flat = torch.tensor(tracer.place)
    channel, row, column = (int(n) for n in torch.unravel_index(flat, y[0].shape))
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    # PyTorch's own resolution of the padding, including padding="same".
    sides = conv._reversed_padding_repeated_twice  # left, right, top, bottom
    # In float64, so that the sum shows the network's rounding and not ours.
    padded = F.pad(x, sides, mode=mode)[0].double().cpu()
    kernel = weight[channel].double().cpu()
    # With groups, an output sees only the input channels of its group.
    group = channel // (conv.out_channels // conv.groups) * len(kernel)
    top, left = row * conv.stride[0], column * conv.stride[1]
    dilation, size = conv.dilation, kernel.shape[1:]
    span = ((size[0] - 1) * dilation[0] + 1, (size[1] - 1) * dilation[1] + 1)
    window = padded[
        group : group + len(kernel),
        top : top + span[0] : dilation[0],
        left : left + span[1] : dilation[1],
    ]
    return ConvolutionStep(
        layer=name,
        channel=channel,
        position=(row, column),
        corner=(top - sides[2], left - sides[0]),
        span=span,
        window=window,
        kernel=kernel,
        bias=float(bias[0][channel]) if bias else None,
        output=float(y[0, channel, row, column]),
        steps=tuple(tracer.steps),
    )


_ATEN = torch.ops.aten
NAMES: dict[Any, Callable[[Any], str]] = {  # of elementwise operations
    **dict.fromkeys((_ATEN.relu, _ATEN.relu_), lambda args: "ReLU"),
    **dict.fromkeys((_ATEN.tanh, _ATEN.tanh_), lambda args: "tanh"),
    **dict.fromkeys((_ATEN.sigmoid, _ATEN.sigmoid_), lambda args: "sigmoid"),
    **dict.fromkeys((_ATEN.silu, _ATEN.silu_), lambda args: "SiLU"),
    **dict.fromkeys((_ATEN.gelu, _ATEN.gelu_), lambda args: "GELU"),
    **dict.fromkeys(
        (_ATEN.hardtanh, _ATEN.hardtanh_), lambda args: f"clamp to {args[1]:g}…{args[2]:g}"
    ),
    **dict.fromkeys(
        (
            _ATEN.native_batch_norm,
            _ATEN._native_batch_norm_legit_no_training,
            _ATEN.cudnn_batch_norm,
            _ATEN.miopen_batch_norm,
        ),
        lambda args: "batch norm",
    ),
    **dict.fromkeys(
        (_ATEN.mul, _ATEN.mul_),
        lambda args: next((f"times {a:.4g}" for a in args if isinstance(a, float | int)), ""),
    ),
}


class _ConvolutionTracer(TorchDispatchMode):
    """Record the inputs of a convolution and follow one of its outputs.

    It intercepts the operation and not the module, because a subclass of `Conv2d` may do more
    than convolve, for example apply a ReLU in place.
    """

    def __init__(self, wanted: MapPosition | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.wanted = wanted
        self.steps: list[tuple[str, float]] = []
        self.kept: list[Tensor] = []  # x, y, weights, and the bias if there is one
        self._x: Tensor | None = None
        self._followed: Tensor | None = None
        self.place = 0

    def arm(self, module: nn.Module, inputs: Any) -> None:
        """Note that the layer begins: the next convolution is the one to record."""
        # A copy, as the layer may overwrite its input.
        self._x = inputs[0].clone()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        followed = self._followed is not None and any(arg is self._followed for arg in args)
        result = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        if op is _ATEN.convolution and self._x is not None and not self.kept:
            given = [part.detach() for part in args[1:3] if part is not None]
            self.kept = [self._x, result.clone(), *given]
            self._followed, self.place = result, self._flat_index(result[0])
        # Copies do not change the value. Batch norm returns a tuple, the output first.
        elif followed and op not in (_ATEN.clone, _ATEN.detach):
            self._record(op, args, result[0] if isinstance(result, tuple | list) else result)
        return result

    def _flat_index(self, maps: Tensor) -> int:
        """Return the flat index, in maps C h w, of the requested output."""
        if self.wanted is None:
            return int(maps.argmax())
        channel, row, column = self.wanted
        sizes = zip(self.wanted, maps.shape, strict=True)
        if not all(0 <= index < size for index, size in sizes):
            raise UsageError(f"place {self.wanted}: expected one of {list(maps.shape)}")
        return int((channel * maps.shape[1] + row) * maps.shape[2] + column)

    def _record(self, op: Any, args: tuple[Any, ...], output: Tensor) -> None:
        """Record an elementwise operation and follow its output; stop at any other operation."""
        name = NAMES[op](args) if op in NAMES else ""
        self._followed = output if name else None
        if name:
            self.steps.append((name, float(output.reshape(-1)[self.place])))
