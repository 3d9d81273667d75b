"""The networks of the packages here: built on a seed or without values, and compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnn_core.layers import Trace, trace

FOLDER = Path(__file__).parents[2] / "packages"
PACKAGES = sorted(path.name.replace("-", "_") for path in FOLDER.glob("cnn-arch-*"))
PLUGINS = {package: import_module(f"{package}.plugin") for package in PACKAGES}
SPECS = {spec.name: spec for plugin in PLUGINS.values() for spec in plugin.cnnzoo_models()}


def names_of(family: str) -> list[str]:
    return sorted(name for name, spec in SPECS.items() if spec.family == family)


def home_of(name: str) -> str:
    """Return the module that defines a network."""
    return SPECS[name].target.partition(":")[0]


def build(name: str, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return getattr(import_module(home_of(name)), SPECS[name].target.partition(":")[2])(**options)


def on_meta(name: str, **options: Any) -> Any:
    """Build a network without values, which costs neither memory nor random numbers."""
    with torch.device("meta"):
        return build(name, **options)


@cache
def traced(name: str) -> Trace:
    """Return the stages of a network with its default options, at the size of its spec."""
    return trace(lambda: build(name), SPECS[name].stages, SPECS[name].input)


def key_maps(name: str) -> Any:
    """Return the names of a network's parameters in other libraries, by library."""
    module, _, function = SPECS[name].key_maps.partition(":")
    return getattr(import_module(module), function)(name)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def layers(model: nn.Module, kind: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


def images(*size: int, batch: int = 2, channels: int = 3) -> Tensor:
    """Return images that depend on their size only; one number is both sides."""
    generator = torch.Generator().manual_seed(size[0])
    return torch.randn(batch, channels, size[0], size[-1], generator=generator)


@torch.no_grad()
def lively(model: Any, seed: int = 0) -> Any:
    """Draw weights that let signals through, and biases and statistics that all differ."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        norm = isinstance(module, nn.BatchNorm2d)
        own = dict(module.named_parameters(recurse=False))
        for name, tensor in {**own, **(module._buffers if norm else {})}.items():
            if not tensor.is_floating_point():
                tensor.zero_()
            elif tensor.ndim > 1:
                tensor.normal_(generator=draw).mul_((2 / tensor[0].numel()) ** 0.5)
            elif norm and name in ("weight", "running_var"):
                tensor.uniform_(0.5, 1.5, generator=draw)
            else:
                tensor.normal_(generator=draw).mul_(0.1)
    return model


def lively_network(name: str, **options: Any) -> Any:
    """Return a network with the values of `lively`, without drawing its own ones first."""
    return lively(on_meta(name, **options).to_empty(device="cpu"))


def adopted(make: Callable[[], Any], state: dict[str, Tensor]) -> Any:
    """Return another library's network with these weights, which must be all that it has.

    It shares them, which saves half a gigabyte for a VGG, but has statistics of its own.
    """
    with torch.device("meta"):
        model = make()
    moves = re.compile(r"running_|num_batches")
    own = {key: value.clone() if moves.search(key) else value for key, value in state.items()}
    model.load_state_dict(own, strict=True, assign=True)
    return model.requires_grad_()


def with_dropout(model: Any, p: float) -> Any:
    for module in layers(model, nn.Dropout):
        module.p = p
    return model


def close(found: Tensor, expected: Tensor, rtol: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= rtol * expected.abs().max())


def outcome(network: Callable[..., Any], x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return all outputs, and the gradient of one weighting of them for the images.

    Dropout draws the same numbers in every call.
    """
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    outputs = network(x)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    weights = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(o.shape, generator=weights, dtype=o.dtype) * o).sum() for o in outputs)
    (gradient,) = torch.autograd.grad(loss, x)
    return tuple(output.detach() for output in outputs), gradient


def assert_same(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    x: Tensor,
    rtol: float = 0.0,
    gradient_rtol: float | None = None,
) -> None:
    """Assert that two networks have the same outputs and input gradients, to the bit if asked."""
    (outputs, gradient), (expected, expected_gradient) = outcome(ours, x), outcome(theirs, x)
    for found, other in zip(outputs, expected, strict=True):
        assert other.std() > 1e-3
        assert close(found, other, rtol)
    assert expected_gradient.abs().max() > 0
    assert close(gradient, expected_gradient, rtol if gradient_rtol is None else gradient_rtol)
