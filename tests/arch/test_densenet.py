"""DenseNet against the paper's tables, torchvision, pytorchcv, and networks written out."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_densenet.densenet import Bottleneck, Composite, RecomputedComposite
from cnn_arch_densenet.densenet_cifar import (
    DenseNetCIFAR,
    densenet40_cifar,
    densenet100_cifar,
    plain,
)
from cnn_arch_densenet.recomputed import frozen_statistics
from cnn_core.layers import features
from networks import (
    adopted,
    assert_same,
    build,
    close,
    count,
    images,
    key_maps,
    layers,
    lively,
    lively_network,
    names_of,
    on_meta,
    traced,
)

NAMES = names_of("densenet")
CIFAR = ["densenet100_cifar", "densenet40_cifar"]
IMAGENET = [name for name in NAMES if name not in CIFAR]

# Huang et al. (2016), Table 1: growth rate and layers of the four blocks; section 3 for CIFAR.
TABLE_1 = {
    "densenet121": (32, (6, 12, 24, 16)),
    "densenet169": (32, (6, 12, 32, 32)),
    "densenet201": (32, (6, 12, 48, 32)),
    "densenet161": (48, (6, 12, 36, 24)),
}


# --- numbers -------------------------------------------------------------------------------


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
    stages = traced(name).stages
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
    assert count(model) == params


# --- torchvision and pytorchcv -------------------------------------------------------------


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
    names = key_maps("densenet100_cifar")["pytorchcv"]
    model = lively_network("densenet100_cifar")
    state = names.to_theirs(model.state_dict())
    twin = adopted(lambda: theirs.densenet100_k12_bc_cifar10(num_classes=10), state)
    for train in (False, True):
        assert_same(model.train(train), twin.train(train), images(32), 1e-6)
    assert names.to_ours(twin.state_dict()).keys() == model.state_dict().keys()


def test_pytorchcvs_plain_network_is_another():
    theirs = pytest.importorskip("pytorchcv.models.densenet_cifar")
    with torch.device("meta"):
        twin = theirs.densenet40_k12_cifar10(num_classes=10)
    assert count(twin) == 599_050  # its transitions compress


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
    model = lively(make()).double().train(train)
    weights, x = model.state_dict(), images(16, batch=3).double()
    assert_same(
        model, lambda x: literal_densenet_cifar(weights, x, n, train), x, 1e-10, gradient_rtol=1e-7
    )


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
    model = build(name, num_classes=10, **options).train()
    frugal = build(name, num_classes=10, memory_efficient=True, **options).train()
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


# --- behaviour -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["densenet121", *CIFAR])
def test_features_are_those_of_the_last_relu_before_the_pool(name):
    model = lively_network(name, num_classes=10).eval()
    x = images(32)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert (maps >= 0).all()
        assert (maps == 0).any()
        assert torch.equal(features(model, x, ("norm",))["norm"], maps)


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
    for model in (build("densenet121"), build("densenet40_cifar")):
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
    x = images(16, channels=8)
    assert abs((composite(x) == 0).float().mean() - 0.2) < 0.02
    assert (composite.eval()(x) != 0).all()
    assert {composite.dropout for composite in layers(on_meta("densenet121"), Composite)} == {0}
