"""ResNets against the paper and torchvision: counts, shapes, outputs, gradients."""

from __future__ import annotations

import re
from importlib import import_module

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cnn_arch_resnet import plugin
from cnn_arch_resnet.resnet_cifar import CifarResNet, OptionA, basic_a
from cnn_core.layers import features, he_normal_
from networks import (
    SPECS,
    adopted,
    assert_same,
    build,
    count,
    images,
    key_maps,
    lively,
    lively_network,
    names_of,
    on_meta,
    traced,
)

# Multiply-adds that the paper prints (Table 1), in units of 1e9.
PAPER_FLOPS = {
    "resnet18": 1.8,
    "resnet34": 3.6,
    "resnet50_v1": 3.8,
    "resnet101_v1": 7.6,
    "resnet152_v1": 11.3,
}
NAMES = names_of("resnet")


def depth(name):
    return int(re.match(r"resnet(\d+)", name)[1])


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


# Counts and shapes


@pytest.mark.parametrize("name", NAMES)
def test_stages_have_the_papers_sizes(name):
    """Table 1's output sizes; section 4.2's for the paper's CIFAR networks."""
    k = 4 if depth(name) >= 50 else 1
    if SPECS[name].input == (3, 224, 224):
        sizes = [(64, 112), (64 * k, 56), (128 * k, 28), (256 * k, 14), (512 * k, 7)]
    elif name in ("resnet18_cifar", "resnet50_cifar"):
        sizes = [(64, 32), (64 * k, 32), (128 * k, 16), (256 * k, 8), (512 * k, 4)]
    else:
        sizes = [(16, 32), (16, 32), (32, 16), (64, 8)]
    expected = [*((c, s, s) for c, s in sizes), (SPECS[name].num_classes,)]
    assert [stage.output for stage in traced(name).stages] == expected


@pytest.mark.parametrize(("name", "printed"), PAPER_FLOPS.items())
def test_the_papers_flops_are_those_of_the_stride_in_the_first_1x1(name, printed):
    assert abs(SPECS[name].macs / 1e9 - printed) < 0.07
    if name.endswith("_v1"):
        assert SPECS[name.removesuffix("_v1")].macs / 1e9 > printed + 0.2


@pytest.mark.parametrize(
    ("name", "params"),
    [("resnet18", 11_181_642), ("resnet34", 21_289_802), ("resnet50", 23_528_522)],
)
def test_parameters_with_ten_classes(name, params):
    assert count(on_meta(name, num_classes=10)) == params


@pytest.mark.parametrize("name", NAMES)
def test_a_network_has_as_many_layers_as_its_name_says(name):
    modules = on_meta(name).named_modules()
    layers = [key for key, m in modules if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([key for key in layers if "shortcut" not in key]) == depth(name)


@pytest.mark.slow
def test_the_network_of_1202_layers_has_19_4_million_parameters():
    with torch.device("meta"):
        model = CifarResNet(basic_a, 200, 10, 3)
    assert count(model) == 19_421_274
    assert len(model.state_dict()) == 7_208


# Oracles


@pytest.mark.parametrize("layers", [50, 101, 152])
def test_v1_and_v1_5_differ_in_strides_only(layers):
    v1, v15 = on_meta(f"resnet{layers}_v1"), on_meta(f"resnet{layers}")
    assert shapes(v1.state_dict()) == shapes(v15.state_dict())
    for stage in ("conv3_x", "conv4_x", "conv5_x"):
        for model, strides in ((v1, [2, 1, 1]), (v15, [1, 2, 1])):
            first, *rest = model.get_submodule(stage)
            assert [layer.conv.stride[0] for layer in first.residual] == strides
            assert {layer.conv.stride for block in rest for layer in block.residual} == {(1, 1)}


def test_weights_of_v1_5_compute_something_else_in_v1():
    v1, v15 = build("resnet50_v1").eval(), build("resnet50").eval()
    v1.load_state_dict(v15.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(v1(x), v15(x), rtol=0.1)


def literal_cifar(state, n, training):
    """Section 4.2 written out, on a state dict under the names of public checkpoints."""

    def norm(x, name):
        scale, shift = state[f"{name}.weight"], state[f"{name}.bias"]
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        column = (-1, 1, 1)
        x = (x - mean.view(column)) / (var.view(column) + 1e-5).sqrt()
        return x * scale.view(column) + shift.view(column)

    def shrunk(x, name):
        if f"{name}.shortcut.0.weight" in state:  # option B
            projected = F.conv2d(x, state[f"{name}.shortcut.0.weight"], stride=2)
            return norm(projected, f"{name}.shortcut.1")
        zeros = x.new_zeros(len(x), x.shape[1] // 2, *x[0, 0, ::2, ::2].shape)
        return torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)

    def network(x):
        x = norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1").relu()
        for layer in (1, 2, 3):
            for i in range(n):
                name = f"layer{layer}.{i}"
                halve = layer > 1 and i == 0
                weight = state[f"{name}.conv1.weight"]
                y = F.conv2d(x, weight, stride=2 if halve else 1, padding=1)
                y = norm(y, f"{name}.bn1").relu()
                y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
                x = (y + (shrunk(x, name) if halve else x)).relu()
        return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]

    return network


@pytest.mark.parametrize("size", [(32, 32), (17, 21)])
@pytest.mark.parametrize(
    ("name", "n"), [("resnet20_cifar", 3), ("resnet32_cifar", 5), ("resnet20_cifar_b", 3)]
)
def test_section_4_2_written_out_gives_the_same_outputs_and_gradients(name, n, size):
    ours = lively_network(name).double()
    state = key_maps(name)["akamaster"].to_theirs(ours.state_dict())
    for training in (False, True):
        literal = literal_cifar(state, n, training)
        assert_same(ours.train(training), literal, images(*size, batch=4).double(), 1e-9)


def pytorchcv_names(layers):
    """Our beginning of a key for each of theirs; their units count from 1."""
    names = {"features.init_block": "conv1", "output": "fc"}
    for stage in (1, 2, 3):
        for unit in range(1, (layers - 2) // 6 + 1):
            theirs, ours = f"features.stage{stage}.unit{unit}", f"conv{stage + 1}_x.{unit - 1}"
            names[f"{theirs}.body.conv1"] = f"{ours}.residual.0"
            names[f"{theirs}.body.conv2"] = f"{ours}.residual.1"
            names[f"{theirs}.identity_conv"] = f"{ours}.shortcut"
    return names


@pytest.mark.parametrize("depth", [20, 56])
def test_option_b_is_pytorchcvs(depth):
    resnet_cifar = pytest.importorskip("pytorchcv.models.resnet_cifar")
    theirs = lively(getattr(resnet_cifar, f"resnet{depth}_cifar10")())
    state = {}
    for key, value in theirs.state_dict().items():
        begin, ours = next(p for p in pytorchcv_names(depth).items() if key.startswith(p[0] + "."))
        state[ours + key.removeprefix(begin)] = value
    ours = adopted(lambda: build(f"resnet{depth}_cifar_b"), state)
    for training in (False, True):
        assert_same(ours.train(training), theirs.train(training), images(32), 1e-6)


@pytest.mark.parametrize("name", ["resnet20_cifar_b", "resnet110_cifar_b"])
def test_the_two_namings_of_option_b_differ_in_two_words(name):
    keys = list(on_meta(name).state_dict())
    akamaster, chenyaofo = key_maps(name)["akamaster"], key_maps(name)["chenyaofo"]
    expected = [
        akamaster.theirs(key).replace("shortcut", "downsample").replace("linear", "fc")
        for key in keys
    ]
    assert [chenyaofo.theirs(key) for key in keys] == expected
    assert "layer2.0.downsample.1.running_var" in expected


def torchvision_with_3x3_stem(layers):
    model = getattr(torchvision.models, f"resnet{layers}")(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


@pytest.mark.parametrize("layers", [18, 50])
def test_the_3x3_stem_is_torchvisions_network_with_another_first_layer(layers):
    name = f"resnet{layers}_cifar"
    ours = lively_network(name)
    state = key_maps(name)["kuangliu"].to_theirs(ours.state_dict())
    assert "layer4.0.shortcut.0.weight" in state
    assert "linear.bias" in state
    renamed = {
        key.replace("shortcut", "downsample").replace("linear", "fc"): value
        for key, value in state.items()
    }
    theirs = adopted(lambda: torchvision_with_3x3_stem(layers), renamed)
    for training in (False, True):
        assert_same(ours.train(training), theirs.train(training), images(16))


# What the paper says in words


def test_option_a_takes_every_second_pixel_and_zeros_and_has_no_parameters():
    x = torch.randn(2, 16, 5, 7)
    y = OptionA(16)(x)
    assert y.shape == (2, 32, 3, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()
    for name in NAMES:
        if name.endswith("_cifar") and SPECS[name].params < 2_000_000:
            assert not any("shortcut" in key for key in on_meta(name).state_dict())


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_cifar")])
def test_projections_stand_only_where_shapes_differ(name):
    keys = on_meta(name).state_dict()
    projected = {key.partition(".shortcut")[0] for key in keys if ".shortcut." in key}
    shrinking = {key.split(".")[0] + ".0" for key in keys if key.startswith("conv")}
    same = {"conv1.0"}  # the stem has no blocks
    if "cifar" in name or name in ("resnet18", "resnet34"):
        same.add("conv2_x.0")
    assert projected == shrinking - same


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v1", "resnet56_cifar", "resnet18_cifar"])
def test_initialisation_is_he_normal_and_every_block_starts_with_scale_1(name):
    model = build(name, seed=6, num_classes=100)
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            std = (2 / weight[0].numel()) ** 0.5
            tolerance = 5 / weight.numel() ** 0.5  # of the mean, in units of std
            assert abs(weight.mean() / std) < tolerance, module_name
            assert abs(weight.std() / std - 1) < tolerance, module_name
            assert weight.abs().max() > 2.5 * std, module_name  # normal, not uniform
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_initialisation_sets_biases_of_convolutions_to_0():
    conv = nn.Conv2d(3, 8, 3)
    assert conv.bias.abs().max() > 0
    he_normal_(conv)
    assert not conv.bias.any()


def test_padded_pooling_sees_other_windows_than_the_released_networks():
    x = torch.randn(1, 1, 112, 112)
    ours = on_meta("resnet50_v1").pool1(x)
    released = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
    assert ours.shape == released.shape == (1, 1, 56, 56)
    assert not torch.equal(ours, released)
    assert torch.equal(ours[..., 1:, 1:], F.max_pool2d(x[..., 1:, 1:], 3, stride=2))


# Properties


def test_features_are_the_named_stages_outputs_untouched_by_what_follows():
    model = lively_network("resnet20_cifar").eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = features(model, x, ("conv1.bn", *SPECS["resnet20_cifar"].stages))
        assert torch.equal(found["conv1.bn"].relu(), found["conv1"])
        assert torch.equal(model.conv2_x(found["conv1"]), found["conv2_x"])
        assert torch.equal(model.forward_features(x), found["conv4_x"])
    assert found["conv1.bn"].min() < 0


def test_a_batch_is_learned_by_heart():
    model = build("resnet20_cifar", seed=12, in_channels=1)
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5
    assert losses[-1] < 0.05


# The package


def test_one_recipe_is_the_default_on_digits():
    recipes = plugin.cnnzoo_recipes()
    defaults = [r.name for r in recipes if r.default and r.dataset == "digits"]
    assert defaults == ["resnet20_cifar-digits"]


@pytest.mark.parametrize("home", ["resnet", "resnet_cifar", "resnet_cifar_stem"])
def test_docstrings_cite_the_paper_and_name_departures(home):
    text = import_module(f"cnn_arch_resnet.{home}").__doc__
    assert "arXiv:1512.03385" in text
    assert "Departures from the paper:" in text
