"""DenseNet against the paper's tables, torchvision, pytorchcv, and networks written out."""

from __future__ import annotations

import copy
import importlib
import pickle
import re
from functools import cache, partial

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_densenet import plugin
from cnn_arch_densenet.densenet import Bottleneck, Composite, DenseNet, RecomputedComposite
from cnn_arch_densenet.densenet_cifar import (
    DenseNetCIFAR,
    densenet40_cifar,
    densenet100_cifar,
    plain,
)
from cnn_arch_densenet.recomputed import frozen_statistics
from cnn_arch_densenet.weights import key_maps
from cnn_core.errors import UsageError
from cnn_core.layers import Trace, features, trace

SPECS = {spec.name: spec for spec in plugin.cnnzoo_models()}
NAMES = sorted(SPECS)
CIFAR = ["densenet100_cifar", "densenet40_cifar"]
IMAGENET = [name for name in NAMES if name not in CIFAR]

# Parameters, multiply-accumulates, entries of the state dict.
GOLDEN = {
    "densenet121": (7_978_856, 2_834_161_664, 727),
    "densenet169": (14_149_480, 3_359_843_328, 1015),
    "densenet201": (20_013_928, 4_291_365_888, 1207),
    "densenet161": (28_681_000, 7_727_907_072, 967),
    "densenet40_cifar": (1_019_722, 264_812_928, 236),
    "densenet100_cifar": (769_162, 287_929_692, 596),
}
# Huang et al. (2016), Table 1: growth rate and layers of the four blocks; section 3 for CIFAR.
TABLE_1 = {
    "densenet121": (32, (6, 12, 24, 16)),
    "densenet169": (32, (6, 12, 32, 32)),
    "densenet201": (32, (6, 12, 48, 32)),
    "densenet161": (48, (6, 12, 36, 24)),
}


def build(name: str, **options: object) -> nn.Module:
    module, _, function = SPECS[name].target.partition(":")
    return getattr(importlib.import_module(module), function)(**options)


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build(name, **options)


@cache
def traced(name: str) -> Trace:
    spec = SPECS[name]
    return trace(lambda: build(name), spec.stages, spec.input)


def images(size: int, batch: int = 2, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randn(batch, channels, size, size, generator=generator)


def moved(model: nn.Module) -> nn.Module:
    """Give batch normalisation something to do in eval mode."""
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.normal_(std=0.1)
    return model


def gradient(logits: Tensor, x: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(logits.square().mean() + logits.mean(), x)
    return found


def close(found: Tensor, expected: Tensor, relative: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= relative * expected.abs().max())


def layers(model: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


# --- numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_parameters_macs_and_state_are_the_golden_ones(name):
    spec = SPECS[name]
    params, macs, entries = GOLDEN[name]
    found = traced(name)
    assert (found.params, found.macs) == (spec.params, spec.macs) == (params, macs)
    assert len(on_meta(name).state_dict()) == entries


@pytest.mark.parametrize("name", IMAGENET)
def test_stages_have_the_sizes_of_table_1(name):
    growth, depths = TABLE_1[name]
    width, side = 2 * growth, 56
    expected = [(width, 112, 112), (width, 56, 56)]
    for i, depth in enumerate(depths):
        width += depth * growth
        expected.append((width, side, side))
        if i < 3:
            width, side = width // 2, side // 2
            expected.append((width, side, side))
    expected += [(width, 7, 7), (1000,)]
    assert [stage.output for stage in traced(name).stages] == expected
    assert len(layers(on_meta(name), nn.Conv2d)) + 1 == int(name.removeprefix("densenet"))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("densenet40_cifar", [16, 160, 160, 304, 304, 448, 448]),
        ("densenet100_cifar", [24, 216, 108, 300, 150, 342, 342]),
    ],
)
def test_cifar_stages_have_the_papers_sizes(name, sizes):
    spec = SPECS[name]
    stages = trace(lambda: build(name), spec.stages, spec.input).stages
    sides = [32, 32, 16, 16, 8, 8, 8]
    maps = [(c, s, s) for c, s in zip(sizes, sides, strict=True)]
    assert [stage.output for stage in stages] == [*maps, (10,)]
    depth = int(re.sub(r"\D", "", name))
    assert len(layers(on_meta(name), nn.Conv2d)) + 1 == depth


# Table 2: a network's depth L, growth rate k, bottlenecks, and parameters in millions.
@pytest.mark.parametrize(
    ("depth", "growth", "bottleneck", "params"),
    [
        (40, 12, False, 1_019_722),
        (100, 12, False, 6_979_642),
        (100, 24, False, 27_249_082),
        (100, 12, True, 769_162),
        (250, 24, True, 15_324_406),
        (190, 40, True, 25_624_430),
    ],
)
def test_every_row_of_table_2_can_be_built(depth, growth, bottleneck, params):
    n = (depth - 4) // (6 if bottleneck else 3)
    with torch.device("meta"):
        if bottleneck:
            model = DenseNetCIFAR(Bottleneck, n, growth, 2 * growth, 0.5)
        else:
            model = DenseNetCIFAR(plain, n, growth, 16, 1.0)
    assert sum(p.numel() for p in model.parameters()) == params


# --- torchvision and pytorchcv -------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGENET)
def test_torchvisions_network_gives_the_same_outputs_and_gradients(name):
    torch.manual_seed(1)
    names = key_maps(name)["torchvision"]
    model = moved(build(name, num_classes=10))
    twin = getattr(torchvision.models, name)(num_classes=10)
    twin.load_state_dict(names.to_theirs(model.state_dict()))
    x = images(64).requires_grad_()
    for train in (False, True):
        found, expected = model.train(train)(x), twin.train(train)(x)
        assert torch.equal(found, expected)
        assert torch.equal(gradient(found, x), gradient(expected, x))
    ours = names.to_ours(twin.state_dict())  # running averages, once moved, included
    assert list(ours) == list(model.state_dict())
    assert all(torch.equal(value, ours[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", IMAGENET)
def test_the_files_that_torchvision_publishes_have_dots_in_their_names(name):
    now, files = key_maps(name)["torchvision"], key_maps(name)["torchvision-files"]
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value
        for key, value in state.items()
    }
    assert old.keys() != state.keys()
    ours = files.to_ours(old)
    assert ours.keys() == now.to_ours(state).keys() == on_meta(name).state_dict().keys()
    assert files.to_theirs(ours).keys() == old.keys()


def test_pytorchcvs_bc_network_gives_the_same_outputs_and_gradients():
    theirs = pytest.importorskip("pytorchcv.models.densenet_cifar")
    torch.manual_seed(1)
    names = key_maps("densenet100_cifar")["pytorchcv"]
    model = moved(densenet100_cifar())
    twin = theirs.densenet100_k12_bc_cifar10(num_classes=10)
    twin.load_state_dict(names.to_theirs(model.state_dict()))
    x = images(32).requires_grad_()
    for train in (False, True):
        found, expected = model.train(train)(x), twin.train(train)(x)
        assert close(found, expected, 1e-6)
        assert close(gradient(found, x), gradient(expected, x), 1e-6)
    assert names.to_ours(twin.state_dict()).keys() == model.state_dict().keys()


def test_pytorchcvs_plain_network_is_another():
    theirs = pytest.importorskip("pytorchcv.models.densenet_cifar")
    with torch.device("meta"):
        twin = theirs.densenet40_k12_cifar10(num_classes=10)
    assert sum(p.numel() for p in twin.parameters()) == 599_050  # its transitions compress
    assert key_maps("densenet40_cifar") == {}
    assert SPECS["densenet40_cifar"].key_maps == ""


# --- the paper, written out ----------------------------------------------------------------


def literal_densenet_cifar(state: dict[str, Tensor], x: Tensor, n: int, train: bool) -> Tensor:
    """Eq. 2 and section 3, straight from the paper; shared by DenseNet and DenseNet-BC."""

    def normalise(name: str, x: Tensor) -> Tensor:
        gamma, beta = state[f"{name}.weight"], state[f"{name}.bias"]
        if train:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        else:
            mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        y = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return gamma[:, None, None] * y + beta[:, None, None]

    def composite(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        x = normalise(f"{name}.norm", x).clamp(min=0)
        return F.conv2d(x, weight, padding=(weight.shape[-1] - 1) // 2)

    def layer(name: str, x: Tensor) -> Tensor:
        if f"{name}.reduce.conv.weight" in state:
            return composite(f"{name}.grow", composite(f"{name}.reduce", x))
        return composite(name, x)

    x = F.conv2d(x, state["conv.weight"], padding=1)
    for block in (1, 2, 3):
        for i in range(n):
            x = torch.cat([x, layer(f"block{block}.layers.{i}", x)], 1)
        if block < 3:
            x = composite(f"transition{block}", x)
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    x = normalise("norm.0", x).clamp(min=0).mean((2, 3))
    return x @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize(("make", "n"), [(densenet40_cifar, 12), (densenet100_cifar, 16)])
@pytest.mark.parametrize("train", [False, True])
def test_the_paper_written_out_gives_the_same_outputs_and_gradients(make, n, train):
    torch.manual_seed(0)
    model = moved(make()).double().train(train)
    x = images(16, batch=3).double().requires_grad_()
    expected = literal_densenet_cifar(model.state_dict(), x, n, train)
    found = model(x)
    assert close(found, expected, 1e-10)
    assert close(gradient(found, x), gradient(expected, x), 1e-7)


# --- memory-efficient mode -----------------------------------------------------------------


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor], int]:
    """A forward and a backward pass: logits, gradients, bytes kept between the two."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(x)
    logits.square().mean().backward()
    return logits, {name: p.grad for name, p in model.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("densenet121", {}, 64),
        ("densenet40_cifar", {"dropout": 0.2}, 16),
        ("densenet100_cifar", {"dropout": 0.2}, 16),
    ],
)
def test_memory_efficient_training_has_the_same_numbers_and_keeps_less(name, options, size):
    torch.manual_seed(0)
    model = build(name, num_classes=10, **options).train()
    frugal = build(name, num_classes=10, memory_efficient=True, **options).train()
    frugal.load_state_dict(model.state_dict())
    x = images(size)
    torch.manual_seed(6)
    logits, gradients, kept = step(model, x)
    torch.manual_seed(6)
    same_logits, same_gradients, less = step(frugal, x)
    assert torch.equal(logits, same_logits)
    assert all(torch.equal(gradients[key], same_gradients[key]) for key in gradients)
    assert less < kept / 2
    # Computing maps twice does not count them twice.
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), frugal.buffers(), strict=True))
    assert frugal.norm[0].num_batches_tracked == 1
    assert (
        frugal.block1.layers[1].state_dict().keys() == model.block1.layers[1].state_dict().keys()
    )
    with torch.no_grad():
        assert torch.equal(model.eval()(x), frugal.eval()(x))


def test_memory_efficient_mode_recomputes_one_composite_of_each_layer():
    for name in ("densenet121", *CIFAR):
        model = on_meta(name, memory_efficient=True)
        depth = sum(len(block.layers) for block in model.children() if hasattr(block, "layers"))
        assert len(layers(model, RecomputedComposite)) == depth
        assert not layers(on_meta(name), RecomputedComposite)


def test_batch_normalisation_works_again_after_a_recomputation_fails():
    composite = RecomputedComposite(3, 4, 1).train()

    def fail() -> None:
        with frozen_statistics(composite.norm):
            assert composite.norm.momentum == 0
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert composite.norm.momentum == 0.1
    assert composite.norm.num_batches_tracked == 0


# --- sizes, classes, channels --------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_images_from_the_minimum_up_are_taken_and_smaller_ones_refused(name, monkeypatch):
    spec = SPECS[name]
    model, smallest = on_meta(name).eval(), spec.min_size
    for size in (smallest, 41) if name in ("densenet121", *CIFAR) else (smallest,):
        x = torch.empty(1, 3, size, size, device="meta")
        assert model(x).shape == (1, spec.num_classes)
    for shape in ((smallest - 1, 64), (64, smallest - 1)):
        message = f"{shape[0]} x {shape[1]}, .* at least {smallest} x {smallest}"
        with pytest.raises(UsageError, match=message):
            model(torch.empty(1, 3, *shape, device="meta"))
    home = "densenet_cifar" if name in CIFAR else "densenet"
    monkeypatch.setattr(f"cnn_arch_densenet.{home}.require_size", lambda *_: None)
    with pytest.raises(RuntimeError):  # the minimum is what the layers need
        model(torch.empty(1, 3, smallest - 1, smallest - 1, device="meta"))


@pytest.mark.parametrize(("name", "classes", "channels"), [(n, 7, 4) for n in NAMES])
def test_classes_and_channels_are_honoured(name, classes, channels):
    model = on_meta(name, num_classes=classes, in_channels=channels).eval()
    assert model(torch.empty(3, channels, 32, 32, device="meta")).shape == (3, classes)
    model.reset_classifier(5)
    assert model.linear.out_features == 5


# --- behaviour -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["densenet121", *CIFAR])
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(0)
    model = build(name, num_classes=10).train()
    F.cross_entropy(model(images(64 if name in IMAGENET else 16)), torch.tensor([3, 7])).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("name", ["densenet121", *CIFAR])
def test_images_of_a_batch_do_not_influence_each_other(name):
    torch.manual_seed(0)
    model = moved(build(name, num_classes=10)).eval()
    x = images(33, batch=3)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
    assert close(together, alone)
    assert together.std(0).min() > 0


@pytest.mark.parametrize("name", ["densenet121", *CIFAR])
def test_features_and_head_make_the_network(name):
    model = moved(build(name, num_classes=10)).eval()
    x = images(32)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert (maps >= 0).all()  # the last ReLU comes before the pool
        assert (maps == 0).any()
        assert torch.equal(model.forward_head(maps), model(x))
        assert torch.equal(features(model, x, ("norm",))["norm"], maps)


@pytest.mark.parametrize("name", ["densenet121", *CIFAR])
def test_a_seed_gives_the_same_network_and_copies_work(name):
    torch.manual_seed(5)
    model = build(name, num_classes=10).eval()
    torch.manual_seed(5)
    same = build(name, num_classes=10, memory_efficient=True).eval()
    x = images(32)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(same(x), expected)
        assert torch.equal(copy.deepcopy(same)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(same))(x), expected)
        last = model.to(memory_format=torch.channels_last)
        assert close(last(x.to(memory_format=torch.channels_last)), expected, 1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert model(x).isfinite().all()
        assert close(model.double()(x.double()).float(), expected, 1e-4)


def test_networks_can_be_exported():
    model = DenseNetCIFAR(partial(plain, memory_efficient=True), 3, 12, 16, 1.0).eval()
    x = images(16)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        assert close(exported(x), model(x))


# --- the paper's details -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_convolutions_have_no_bias_and_are_preceded_by_batch_normalisation(name):
    model = on_meta(name)
    convs = layers(model, nn.Conv2d)
    assert all(conv.bias is None for conv in convs)
    assert len(layers(model, Composite)) == len(convs) - 1  # all but the first
    assert {(norm.eps, norm.momentum) for norm in layers(model, nn.BatchNorm2d)} == {(1e-5, 0.1)}


@pytest.mark.parametrize("name", ["densenet121", "densenet161", "densenet100_cifar"])
def test_bottlenecks_are_4k_wide_and_transitions_halve(name):
    model = on_meta(name)
    growth = TABLE_1[name][0] if name in TABLE_1 else 12
    assert {layer.reduce.conv.out_channels for layer in model.block2.layers} == {4 * growth}
    assert {layer.grow.conv.out_channels for layer in model.block2.layers} == {growth}
    conv = model.transition1.conv
    assert conv.out_channels == conv.in_channels // 2
    first = model.conv if name in CIFAR else model.conv[0]
    assert first.out_channels == 2 * growth


def test_convolutions_are_initialised_after_he():
    torch.manual_seed(0)
    for model in (build("densenet121"), densenet40_cifar()):
        for conv in layers(model, nn.Conv2d):
            expected = (2 / conv.weight[0].numel()) ** 0.5
            tolerance = 4 / (2 * conv.weight.numel()) ** 0.5  # four standard errors
            assert abs(conv.weight.std() / expected - 1) < tolerance
        assert (model.linear.bias == 0).all()
        for norm in layers(model, nn.BatchNorm2d):
            assert (norm.weight == 1).all()
            assert (norm.bias == 0).all()


def test_dropout_follows_every_convolution_but_the_first():
    model = densenet100_cifar(dropout=0.2).train()
    composites = layers(model, Composite)
    assert [composite.dropout for composite in composites] == [0.2] * (3 * 16 * 2 + 2)
    torch.manual_seed(0)
    composite = Composite(8, 64, 1, dropout=0.2).train()
    nn.init.constant_(composite.norm.bias, 9.0)  # ReLU makes no zeros
    x = images(16, 2, 8)
    assert abs((composite(x) == 0).float().mean() - 0.2) < 0.02
    assert (composite.eval()(x) != 0).all()
    assert {composite.dropout for composite in layers(on_meta("densenet121"), Composite)} == {0}


def test_recipes_name_models_and_sizes_of_ours():
    recipes = plugin.cnnzoo_recipes()
    assert [recipe.name for recipe in recipes] == [
        "densenet40_cifar-cifar10-paper",
        "densenet40_cifar-digits",
    ]
    for recipe in recipes:
        assert recipe.settings.get("image_size", 32) >= SPECS[recipe.model].min_size


def test_lazy_names_are_the_classes():
    package = importlib.import_module("cnn_arch_densenet")
    assert package.DenseNet is DenseNet
    assert package.DenseNetCIFAR is DenseNetCIFAR
    assert package.__all__ == sorted(package.__all__)
