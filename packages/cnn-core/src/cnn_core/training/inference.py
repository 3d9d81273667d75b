"""Copy a network for inference: the same outputs in less time.

Batch normalisation is folded into the convolution or linear layer before it. The weights get the
channels_last memory format. On the CPU, convolutions are packed once in oneDNN's own format,
together with the ReLU that follows them, instead of at every call.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode

from cnn_core.errors import UsageError
from cnn_core.plugins.discovery import describe
from cnn_core.training.device import autocast

__all__ = ["OptimizedNetwork", "optimized", "require_bf16"]

log: logging.Logger = logging.getLogger("cnn_core")

# Relative to the largest output. Folding changes only the rounding, by about 1e-6 in float32; bf16
# has two to three significant digits.
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
CHECKED = 2  # random images
# oneDNN chooses the format of the packed weights for a batch size; others work, but may be slower.
TYPICAL_BATCH = 16
RELUS: dict[type, tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}


class OptimizedNetwork(nn.Module):
    """A network for inference only: normalised float32 images, N C H W, to float32 logits.

    It has no parameters, and its outputs cannot be differentiated.
    """

    def __init__(
        self, network: nn.Module, memory_format: torch.memory_format, precision: str
    ) -> None:
        super().__init__()
        # A function, not a submodule: `to(memory_format=…)` must not change the network again.
        self.compute: Any = network.__call__
        self.memory_format: torch.memory_format = memory_format
        self.precision: str = precision

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalised images."""
        with torch.inference_mode(), autocast(images.device, self.precision):
            logits: Tensor = self.compute(images.contiguous(memory_format=self.memory_format))
        return logits.float()


def optimized(
    model: nn.Module,
    input: tuple[int, int, int],
    *,
    precision: str = "fp32",
    compile: bool = False,
) -> OptimizedNetwork:
    """Return a copy of a network that computes the same outputs faster.

    The copy is checked with random images of shape `input`, C H W: its outputs may differ by 1e-4
    of the largest output. If they differ more, a warning is logged, and the copy is an unchanged
    one. With `precision` "bf16" convolutions and linear layers compute in bfloat16, and the limit
    is 5e-2. With `compile`, torch.compile generates code for the network, which takes a minute.

    Raises:
        UsageError: the hardware has no bf16 instructions, or torch.compile fails.
    """
    network = copy.deepcopy(model).eval()
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    if precision == "bf16":
        require_bf16(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(CHECKED, *input, generator=generator).to(device)
    traced = _trace(network, images)
    relus = _fold(network, traced)
    network = network.to(memory_format=torch.channels_last)
    if compile:
        network.compile(options={"freezing": True})
    elif device.type == "cpu" and torch.backends.mkldnn.is_available():
        _pack(network, traced, relus, torch.bfloat16 if precision == "bf16" else torch.float32)
    result = OptimizedNetwork(network, torch.channels_last, precision)
    difference = _difference(_checked_outputs(result, images, compile), traced.outputs)
    # `difference > limit` would be false for NaN.
    if difference <= TOLERANCES[precision]:
        return result
    log.warning(
        "the network stays as it is: the outputs of the optimised copy differ by %.1e of the "
        "largest output",
        difference,
    )
    return OptimizedNetwork(copy.deepcopy(model).eval(), torch.preserve_format, "fp32")


def require_bf16(device: torch.device) -> None:
    """Raise UsageError unless the device has bf16 instructions: emulation is up to 30x slower."""
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Older versions of torch cannot say.
        found: dict[str, Any] = {}
        if device.type == "cpu":
            found = getattr(torch.cpu, "get_capabilities", dict)()
        supported = any(found.get(name) for name in BF16_INSTRUCTIONS)
    if not supported:
        raise UsageError(
            f"precision = 'bf16': this {device.type.upper()} has no bf16 instructions",
            "use --precision fp32",
        )


@dataclass(frozen=True)
class _Traced:
    """One run of a network, by module name.

    `links` maps a layer to the layer that produces its input, if nobody else uses that tensor.
    `inputs` are the shapes of the inputs of all layers that ran exactly once.
    """

    outputs: Tensor
    links: Mapping[str, str]
    inputs: Mapping[str, torch.Size]


class _Uses(TorchDispatchMode):
    """Count how often each tensor is used as the input of an operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[int, int] = {}  # by id
        self.kept: list[Any] = []  # keeps ids unique: the id of a freed tensor can be reused

    def of(self, tensor: Tensor) -> int:
        """Return how often a tensor has been used so far."""
        return self.counts.get(id(tensor), 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for arg in args:
            for item in arg if isinstance(arg, list | tuple) else [arg]:
                if isinstance(item, Tensor):
                    self.counts[id(item)] = self.of(item) + 1
        self.kept += [args, result]
        return result


def _trace(network: nn.Module, images: Tensor) -> _Traced:
    """Run a network once, and find out which layer feeds which.

    The code of the networks is not analysed, so it may contain conditions on shapes.
    """
    uses, makers = _Uses(), dict[int, str]()
    calls: dict[str, list[tuple[Tensor, int]]] = {}
    # Containers would claim the outputs of their last layers.
    leaves = {n: m for n, m in network.named_modules() if not next(m.children(), None)}

    def before(name: str, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            calls.setdefault(name, []).append((inputs[0], uses.of(inputs[0])))

    def after(name: str, output: Any) -> None:
        # In-place layers and nn.Identity return their input, which another layer has made.
        makers.setdefault(id(output), name)

    with torch.no_grad(), uses, _hooks(leaves, before, after):
        outputs = network(images)
    once = {name: found[0] for name, found in calls.items() if len(found) == 1}
    links = {}
    for name, (tensor, used_before) in once.items():
        maker = makers.get(id(tensor))
        # After an in-place layer, further uses are uses of its output.
        alone = getattr(leaves[name], "inplace", False) or uses.of(tensor) == 1
        if maker in once and maker != name and used_before == 0 and alone:
            links[name] = maker
    return _Traced(outputs, links, {name: tensor.shape for name, (tensor, _) in once.items()})


@contextmanager
def _hooks(leaves: Mapping[str, nn.Module], before: Any, after: Any) -> Iterator[None]:
    """Call `before` and `after` with the name of each layer that runs, and its input or output."""
    handles = []
    for name, module in leaves.items():
        handles.append(
            module.register_forward_pre_hook(lambda _, inputs, name=name: before(name, inputs))
        )
        handles.append(
            module.register_forward_hook(lambda _, inputs, output, name=name: after(name, output))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fold(network: nn.Module, traced: _Traced) -> dict[str, str]:
    """Fold batch normalisation, in place; return the ReLU after each layer, by module name."""
    folded = {}
    for name, maker in traced.links.items():
        norm, layer = network.get_submodule(name), network.get_submodule(maker)
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d) or norm.running_mean is None:
            continue
        if isinstance(layer, nn.Conv2d):
            network.set_submodule(maker, fuse_conv_bn_eval(layer, norm))
        elif isinstance(layer, nn.Linear):
            network.set_submodule(maker, fuse_linear_bn_eval(layer, norm))
        else:
            continue
        network.set_submodule(name, nn.Identity())
        folded[name] = maker
    return {
        folded.get(maker, maker): name
        for name, maker in traced.links.items()
        if type(network.get_submodule(name)) in RELUS
    }


class _PackedConv2d(nn.Module):
    """A convolution with its weights in oneDNN's format, and the ReLU after it, if any."""

    def __init__(
        self, conv: nn.Conv2d, input: torch.Size, relu: nn.Module | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.dtype: torch.dtype = dtype
        geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        shape = [TYPICAL_BATCH, *input[1:]]
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        weight = conv.weight.detach().to(dtype).to_mkldnn()
        # Plain attributes: most methods of nn.Module fail on tensors in oneDNN's format.
        self.weight = (pack(weight, *geometry, shape),)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        activation, scalars = RELUS[type(relu)] if relu is not None else ("none", [])
        self.settings: tuple[Any, ...] = (*geometry, activation, scalars, "")

    def forward(self, x: Tensor) -> Tensor:
        convolution = torch.ops.mkldnn._convolution_pointwise
        result: Tensor = convolution(x.to(self.dtype), self.weight[0], self.bias, *self.settings)
        return result


def _pack(
    network: nn.Module, traced: _Traced, relus: Mapping[str, str], dtype: torch.dtype
) -> None:
    """Replace all plain convolutions that ran once by packed ones, in place."""
    for name, shape in traced.inputs.items():
        conv = network.get_submodule(name)
        # Subclasses may compute something else.
        if type(conv) is not nn.Conv2d or isinstance(conv.padding, str):
            continue
        if conv.padding_mode != "zeros":
            continue
        relu = relus.get(name)
        after = network.get_submodule(relu) if relu is not None else None
        network.set_submodule(name, _PackedConv2d(conv, shape, after, dtype))
        if relu is not None:
            network.set_submodule(relu, nn.Identity())


def _checked_outputs(network: nn.Module, images: Tensor, compile: bool) -> Tensor:
    """Return the outputs of an optimised network; the first call compiles it."""
    try:
        outputs: Tensor = network(images)
    except Exception as error:  # torch.compile raises many types of exception
        if not compile:
            raise
        message = f"torch.compile fails: {describe(error)}"
        raise UsageError(message, "leave out --compile; it needs a C++ compiler") from error
    return outputs


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest expected absolute value."""
    if actual.shape != expected.shape:
        return math.inf
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()
