"""Show how a convolution computes one output, from the window to the activation after it."""

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
    """One output of a convolution, sum(window * kernel) + bias, and the operations after it.

    `position` is the row and column of the output in the feature map `channel`. `window` and
    `kernel` are C k k, float64. `corner` is the window's top left pixel, (row, column), negative
    inside the padding, and `span` its height and width in pixels, including dilation. `output` is
    the value that the network computed. `steps` are the elementwise operations that follow, each
    with its result.
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
        """The elementwise product of the window and the kernel."""
        return self.window * self.kernel

    @property
    def sum(self) -> float:
        """The sum of the products and the bias; equal to `output` up to rounding."""
        return float(self.products.sum()) + (self.bias or 0.0)


def convolution_step(
    model: nn.Module, image: Tensor, position: MapPosition | None = None
) -> ConvolutionStep:
    """Explain one output of the first convolution, for an image 1 C H W.

    `position` is the channel, row and column of the output; the default is the highest output.
    The network is left unchanged.

    Raises:
        UsageError: there is no convolution, it is not used, or `position` is out of range.
    """
    name, conv, tracer = _trace_first_convolution(model, image, position)
    return _describe_step(name, conv, tracer)


def first_feature_maps(model: nn.Module, image: Tensor) -> tuple[str, Tensor]:
    """Return the name of the first convolution and its feature maps, C h w, for an image 1 C H W.

    Raises:
        UsageError: there is no convolution, or it is not used.
    """
    name, _, tracer = _trace_first_convolution(model, image, None)
    return name, tracer.operands[1][0]


def _trace_first_convolution(
    model: nn.Module, image: Tensor, position: MapPosition | None
) -> tuple[str, nn.Conv2d, _ConvolutionTracer]:
    name, conv = _first_convolution(model)
    tracer = _ConvolutionTracer(position)
    hook = conv.register_forward_pre_hook(tracer.arm)
    try:
        with inspection_mode(model, image), tracer:
            model(image.detach().clone())
    finally:
        hook.remove()
    if not tracer.operands:
        raise UsageError(f"the first convolution, {name}, is not used: nothing to explain")
    return name, conv, tracer


def _first_convolution(model: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise UsageError(f"{type(model).__name__} has no convolution: nothing to explain")


def _describe_step(name: str, conv: nn.Conv2d, tracer: _ConvolutionTracer) -> ConvolutionStep:
    """Return the traced output of y = conv(x) with its window and kernel."""
    x, y, weight, *bias = tracer.operands
    flat = torch.tensor(tracer.flat_index)
    channel, row, column = (int(n) for n in torch.unravel_index(flat, y[0].shape))
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    # The padding in pixels as PyTorch resolves it, even for padding="same".
    padding = conv._reversed_padding_repeated_twice  # left, right, top, bottom
    # In float64, so that any difference from the output is the network's rounding, not ours.
    padded = F.pad(x, padding, mode=mode)[0].double().cpu()
    kernel = weight[channel].double().cpu()
    # With groups, an output depends only on the input channels of its group.
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
        corner=(top - padding[2], left - padding[0]),
        span=span,
        window=window,
        kernel=kernel,
        bias=float(bias[0][channel]) if bias else None,
        output=float(y[0, channel, row, column]),
        steps=tuple(tracer.steps),
    )


_ATEN = torch.ops.aten
ACTIVATION_NAMES: dict[Any, Callable[[Any], str]] = {  # by operation
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
    """Record the operands of one convolution, and follow one output through later operations.

    The tracer intercepts the operation and not the module, because a subclass of `Conv2d` may do
    more than convolve, for example apply a ReLU in place.
    """

    def __init__(self, requested: MapPosition | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.requested = requested
        self.steps: list[tuple[str, float]] = []
        self.operands: list[Tensor] = []  # x, y, the weights, and the bias if there is one
        self._x: Tensor | None = None
        self._followed: Tensor | None = None
        self.flat_index = 0

    def arm(self, module: nn.Module, inputs: Any) -> None:
        """Record the next convolution: the layer is about to run."""
        # Copy the input, because the layer may overwrite it.
        self._x = inputs[0].clone()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        is_followed = self._followed is not None and any(arg is self._followed for arg in args)
        result = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        if op is _ATEN.convolution and self._x is not None and not self.operands:
            weight_and_bias = [part.detach() for part in args[1:3] if part is not None]
            self.operands = [self._x, result.clone(), *weight_and_bias]
            self._followed, self.flat_index = result, self._requested_index(result[0])
        # Copies do not change the value. Batch norm returns a tuple; its first item is the output.
        elif is_followed and op not in (_ATEN.clone, _ATEN.detach):
            self._record(op, args, result[0] if isinstance(result, tuple | list) else result)
        return result

    def _requested_index(self, maps: Tensor) -> int:
        """Return the flat index of the requested output in maps, C h w."""
        if self.requested is None:
            return int(maps.argmax())
        channel, row, column = self.requested
        sizes = zip(self.requested, maps.shape, strict=True)
        if not all(0 <= index < size for index, size in sizes):
            raise UsageError(
                f"position {self.requested}: outside the maps of shape {list(maps.shape)}"
            )
        return int((channel * maps.shape[1] + row) * maps.shape[2] + column)

    def _record(self, op: Any, args: tuple[Any, ...], output: Tensor) -> None:
        """Record an elementwise operation and follow its output; stop at any other operation."""
        name = ACTIVATION_NAMES[op](args) if op in ACTIVATION_NAMES else ""
        self._followed = output if name else None
        if name:
            self.steps.append((name, float(output.reshape(-1)[self.flat_index])))
