"""Faster copies of networks: the same outputs, whatever the network does."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnn_core import create_model, get_spec, list_models
from cnn_core.errors import UsageError
from cnn_core.training import Trained, evaluate, inference
from cnn_core.training import trained as trained_module
from cnn_core.training.inference import OptimizedNetwork, optimized, require_bf16

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
CPU = torch.device("cpu")


def with_statistics(model: nn.Module) -> nn.Module:
    """Give batch normalisation running statistics and weights as after a training."""
    generator = torch.Generator().manual_seed(1)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS):
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 1.5)
                if module.affine:
                    uniform(module.weight, 0.5, 1.2)
                    uniform(module.bias, -0.3, 0.3)
    return model.eval()


def network_of(result: OptimizedNetwork) -> nn.Module:
    return result.compute.__self__


def norms_left(result: OptimizedNetwork) -> int:
    # Inference does not use the auxiliary classifiers of GoogLeNet.
    modules = network_of(result).named_modules()
    return sum(isinstance(module, NORMS) and "aux" not in name for name, module in modules)


def case(name: str):
    """Return a model's test; networks with many multiply-accumulates are slow."""
    spec = get_spec(name)
    height = max(spec.min_size, 32)
    macs = spec.macs * height**2 / (spec.input[1] * spec.input[2])
    large = spec.params > 30_000_000 or macs > 1_000_000_000
    return pytest.param(name, marks=[pytest.mark.slow] if large else [])


@pytest.mark.parametrize("name", [case(name) for name in list_models()])
def test_every_network_of_the_zoo_is_optimised_and_gives_the_same_outputs(name, caplog):
    spec = get_spec(name)
    size = max(spec.min_size, 32) if spec.min_size < spec.input[1] else spec.input[1]
    torch.manual_seed(0)
    model = with_statistics(create_model(name))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with caplog.at_level(logging.WARNING, "cnn_core"):
        result = optimized(model, (spec.input[0], size, size))
    assert not caplog.records
    # Other images and another batch size than those of the check inside.
    images = torch.randn(3, spec.input[0], size, size)
    with torch.inference_mode():
        expected, actual = model(images), result(images)
    assert ((actual - expected).abs().max() / expected.abs().max()).item() < 1e-4
    assert actual.shape == expected.shape
    # Pre-activation: no layer can take over the normalisation of concatenated maps.
    total = sum(isinstance(module, NORMS) for module in model.modules())
    assert (norms_left(result) > 0) == name.startswith("densenet")
    without_bottlenecks = name == "densenet40_cifar"
    assert norms_left(result) < total or not total or without_bottlenecks
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


class Branching(nn.Module):
    """The output of the convolution is used by others besides batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        z = self.bn(y)
        return (self.relu(z) + z + y).mean((2, 3))


class Shared(nn.Module):
    """One convolution serves two batch normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.two(self.conv(self.one(self.conv(x)))).mean((2, 3))


class Plain(nn.Module):
    """Convolution and linear layer, each with batch normalisation, called as functions or not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False)
        self.relu, self.fc, self.norm = nn.ReLU6(), nn.Linear(8, 5), nn.BatchNorm1d(5)

    def forward(self, x):
        if x.shape[-1] < 8:
            raise UsageError("too small")
        y = self.relu(self.bn(self.conv(x)) * 1.0)
        return F.relu(self.norm(self.fc(y.mean((2, 3)))))


@pytest.mark.parametrize(("network", "left"), [(Branching, 1), (Shared, 2), (Plain, 0)])
def test_batch_normalisation_is_folded_only_where_nobody_else_reads_its_input(network, left):
    torch.manual_seed(0)
    model = with_statistics(network())
    result = optimized(model, (3, 12, 12))
    images = torch.randn(2, 3, 12, 12)
    assert torch.allclose(result(images), model(images), atol=1e-5)
    assert norms_left(result) == left


def test_a_relu_is_computed_with_its_convolution_only_if_nobody_reads_in_between():
    torch.manual_seed(0)
    chain = with_statistics(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 2, 3))
    )
    fused = network_of(optimized(chain, (3, 12, 12)))
    assert [type(module).__name__ for module in fused.children()] == [
        *("_PackedConv2d", "Identity", "Identity", "_PackedConv2d")
    ]
    kept = network_of(optimized(with_statistics(Branching()), (3, 12, 12)))
    assert isinstance(kept.relu, nn.ReLU)


class Changing(nn.Module):
    """A network that no copy equals."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.calls = nn.Linear(3 * 4 * 4, 2), 0

    def forward(self, x):
        self.calls += 1
        return self.fc(x.flatten(1)) * self.calls


def test_a_network_that_fails_the_check_stays_as_it_is_and_one_line_says_so(caplog):
    model = Changing()
    with caplog.at_level(logging.WARNING, "cnn_core"):
        result = optimized(model, (3, 4, 4))
    assert len(caplog.records) == 1
    assert "the network stays as it is" in caplog.text
    images = torch.randn(1, 3, 4, 4)
    assert torch.equal(result(images), model(images))


def test_outputs_cannot_be_differentiated_and_training_mode_of_the_original_is_kept():
    model = with_statistics(Plain()).train()
    result = optimized(model, (3, 12, 12))
    assert model.training
    assert model.bn.num_batches_tracked == 0
    assert result(torch.randn(1, 3, 12, 12)).is_inference()
    assert not list(result.parameters())


def test_bf16_needs_the_instructions(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    with pytest.raises(UsageError, match="this CPU has no bf16 instructions") as raised:
        require_bf16(CPU)
    assert "--precision fp32" in str(raised.value)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    require_bf16(CPU)


def test_bf16_computes_in_bf16_and_returns_float32(monkeypatch):
    # oneDNN emulates bf16 where there are no instructions.
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no bf16 here")
    monkeypatch.setattr(inference, "require_bf16", lambda device: None)
    torch.manual_seed(0)
    model = with_statistics(Plain())
    images = torch.randn(4, 3, 12, 12)
    result = optimized(model, (3, 12, 12), precision="bf16")
    assert result.precision == "bf16"
    actual, expected = result(images), model(images)
    assert actual.dtype == torch.float32
    assert 0 < (actual - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_failure_of_torch_compile_is_explained(monkeypatch):
    def broken(self, **_):
        def fail(*_):
            raise RuntimeError("no compiler")

        self._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", broken)
    with pytest.raises(UsageError, match=r"torch.compile fails: .*no compiler"):
        optimized(Plain(), (3, 12, 12), compile=True)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_outputs():
    torch.manual_seed(0)
    model = with_statistics(Plain())
    images = torch.randn(4, 3, 12, 12)
    result = optimized(model, (3, 12, 12), compile=True)
    assert torch.allclose(result(images), model(images), atol=1e-5)


def test_evaluation_of_a_run_is_the_same_with_the_optimised_network(digits_run, monkeypatch):
    plain = evaluate(digits_run, device="cpu")
    made = []
    monkeypatch.setattr(
        trained_module, "optimized", lambda *a, **k: made.append(optimized(*a, **k)) or made[-1]
    )
    fast = evaluate(digits_run, device="cpu", optimize=True)
    assert len(made) == 1
    assert fast == pytest.approx(plain, rel=1e-5)
    with pytest.raises(UsageError, match="compile applies to optimised networks"):
        evaluate(digits_run, device="cpu", compile=True)
    with pytest.raises(UsageError, match="precision = 'bf16' applies to optimised networks"):
        evaluate(digits_run, device="cpu", precision="bf16")


def test_networks_on_the_cpu_reuse_freed_memory(digits_run, monkeypatch):
    kept = []
    monkeypatch.setattr("cnn_core.training.trained.keep_memory", lambda: kept.append(1))
    assert Trained(digits_run, device="cpu").model
    assert kept
