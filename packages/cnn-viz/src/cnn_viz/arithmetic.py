"""One number of a feature map, with all that it is computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cnn_core.errors import UsageError
from cnn_viz.modes import untouched

__all__ = ["Arithmetic", "highest"]


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """One output of a convolution: sum(window * kernel) + bias, and what activations make of it.

    `window` and `kernel` are C k k, float64. The window begins at `corner`, (row, column) of the
    image, below 0 where it lies in the padding. `output` is the network's own number; `steps`
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
        return self.window * self.kernel

    @property
    def sum(self) -> float:
        """The products' sum and the bias: `output`, but for the order of additions."""
        return float(self.products.sum()) + (self.bias or 0.0)


def highest(model: nn.Module, image: Tensor) -> Arithmetic:
    """Return how the highest output of the first convolution comes about, for an image 1 C H W.

    Leaves the network as it was.

    Raises:
        UsageError: there is no convolution, or it takes no part.
    """
    name, conv = _first(model)
    following = _Following()
    hook = conv.register_forward_pre_hook(following.arm)
    try:
        with untouched(model, image), following:
            model(image.detach().clone())
    finally:
        hook.remove()
    if not following.kept:
        raise UsageError(f"the first convolution, {name}, takes no part: nothing to explain")
    return _explained(name, conv, following)


def _first(model: nn.Module) -> tuple[str, nn.Conv2d]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise UsageError(f"{type(model).__name__} has no convolution: nothing to explain")


def _explained(name: str, conv: nn.Conv2d, following: _Following) -> Arithmetic:
    """Cut out what the highest of y = conv(x) is computed from."""
    x, y, weight, *bias = following.kept
    channel, row, column = (int(n) for n in torch.unravel_index(y[0].argmax(), y[0].shape))
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    sides = conv._reversed_padding_repeated_twice  # left, right, top, bottom
    padded = F.pad(x, sides, mode=mode)[0].double().cpu()
    kernel = weight[channel].double().cpu()
    group = channel // (conv.out_channels // conv.groups) * len(kernel)
    top, left = row * conv.stride[0], column * conv.stride[1]
    steps_of, size = conv.dilation, kernel.shape[1:]
    span = ((size[0] - 1) * steps_of[0] + 1, (size[1] - 1) * steps_of[1] + 1)
    window = padded[
        group : group + len(kernel),
        top : top + span[0] : steps_of[0],
        left : left + span[1] : steps_of[1],
    ]
    return Arithmetic(
        layer=name,
        channel=channel,
        position=(row, column),
        corner=(top - sides[2], left - sides[0]),
        span=span,
        window=window,
        kernel=kernel,
        bias=float(bias[0][channel]) if bias else None,
        output=float(y[0, channel, row, column]),
        steps=tuple(following.steps),
    )


aten = torch.ops.aten
NAMES: dict[Any, Callable[[Any], str]] = {  # of operations that act on each number by itself
    **dict.fromkeys((aten.relu, aten.relu_), lambda args: "ReLU"),
    **dict.fromkeys((aten.tanh, aten.tanh_), lambda args: "tanh"),
    **dict.fromkeys((aten.sigmoid, aten.sigmoid_), lambda args: "sigmoid"),
    **dict.fromkeys((aten.silu, aten.silu_), lambda args: "SiLU"),
    **dict.fromkeys((aten.gelu, aten.gelu_), lambda args: "GELU"),
    **dict.fromkeys(
        (aten.hardtanh, aten.hardtanh_), lambda args: f"limited to {args[1]:g}…{args[2]:g}"
    ),
    **dict.fromkeys(
        (
            aten.native_batch_norm,
            aten._native_batch_norm_legit_no_training,
            aten.cudnn_batch_norm,
            aten.miopen_batch_norm,
        ),
        lambda args: "batch norm",
    ),
    **dict.fromkeys(
        (aten.mul, aten.mul_),
        lambda args: next((f"times {a:.4g}" for a in args if isinstance(a, float | int)), ""),
    ),
}


class _Following(TorchDispatchMode):
    """Keeps what a convolution computes with, and follows its highest number from there.

    A layer may do more than convolve: what counts is the operation itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[str, float]] = []
        self.kept: list[Tensor] = []  # x, y, weights, and the bias if there is one
        self._x: Tensor | None = None
        self._tensor: Tensor | None = None
        self._place = 0

    def arm(self, module: nn.Module, inputs: Any) -> None:
        """The layer begins: its convolution is the next."""
        self._x = inputs[0].clone()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        followed = self._tensor is not None and any(arg is self._tensor for arg in args)
        result = func(*args, **(kwargs or {}))
        op = func.overloadpacket
        if op is aten.convolution and self._x is not None and not self.kept:
            given = [part.detach() for part in args[1:3] if part is not None]
            self.kept = [self._x, result.clone(), *given]
            self._tensor, self._place = result, int(result[0].argmax())
        elif followed and op not in (aten.clone, aten.detach):
            self._follow(op, args, result[0] if isinstance(result, tuple | list) else result)
        return result

    def _follow(self, op: Any, args: tuple[Any, ...], output: Tensor) -> None:
        """Go on to the output of an operation on each number; any other ends it."""
        name = NAMES[op](args) if op in NAMES else ""
        self._tensor = output if name else None
        if name:
            self.steps.append((name, float(output.reshape(-1)[self._place])))
