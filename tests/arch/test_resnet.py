"""ResNets against the paper and torchvision: counts, shapes, outputs, gradients."""

from __future__ import annotations

import copy
import functools
import pickle
import re
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from cnn_arch_resnet import plugin
from cnn_arch_resnet.resnet_cifar import CifarResNet, OptionA, basic_a
from cnn_arch_resnet.weights import key_maps
from cnn_core.errors import UsageError
from cnn_core.layers import features, he_normal_, trace
from cnn_core.training import Recipe

# Trainable parameters, multiply-accumulates, entries of the state dict.
# fmt: off
GOLDEN = {
    "resnet18":          (11_689_512,  1_814_073_344, 122),
    "resnet34":          (21_797_672,  3_663_761_408, 218),
    "resnet50":          (25_557_032,  4_089_184_256, 320),
    "resnet101":         (44_549_160,  7_801_405_440, 626),
    "resnet152":         (60_192_808, 11_513_626_624, 932),
    "resnet50_v1":       (25_557_032,  3_857_973_248, 320),
    "resnet101_v1":      (44_549_160,  7_570_194_432, 626),
    "resnet152_v1":      (60_192_808, 11_282_415_616, 932),
    "resnet20_cifar":    (   269_722,     40_551_040, 116),
    "resnet32_cifar":    (   464_154,     68_862_592, 188),
    "resnet44_cifar":    (   658_586,     97_174_144, 260),
    "resnet56_cifar":    (   853_018,    125_485_696, 332),
    "resnet110_cifar":   ( 1_727_962,    252_887_680, 656),
    "resnet20_cifar_b":  (   272_474,     40_813_184, 128),
    "resnet32_cifar_b":  (   466_906,     69_124_736, 200),
    "resnet44_cifar_b":  (   661_338,     97_436_288, 272),
    "resnet56_cifar_b":  (   855_770,    125_747_840, 344),
    "resnet110_cifar_b": ( 1_730_714,    253_149_824, 668),
    "resnet18_cifar":    (11_173_962,    555_422_720, 122),
    "resnet50_cifar":    (23_520_842,  1_297_829_888, 320),
}
# fmt: on
# Multiply-adds that the paper prints (Table 1), in units of 1e9.
PAPER_FLOPS = {
    "resnet18": 1.8,
    "resnet34": 3.6,
    "resnet50_v1": 3.8,
    "resnet101_v1": 7.6,
    "resnet152_v1": 11.3,
}
TORCHVISION = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
ONE_OF_EACH = [  # every network and every kind of block
    "resnet18",
    "resnet50",
    "resnet50_v1",
    "resnet20_cifar",
    "resnet20_cifar_b",
    "resnet18_cifar",
    "resnet50_cifar",
]

SPECS = {spec.name: spec for spec in plugin.cnnzoo_models()}


def build(name, **sizes):
    module, _, function = SPECS[name].target.partition(":")
    return getattr(import_module(module), function)(**sizes)


@functools.cache
def on_meta(name, **sizes):
    with torch.device("meta"):
        return build(name, **sizes)


def depth(name):
    return int(re.match(r"resnet(\d+)", name)[1])


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


def unsettle(model, seed=0):
    """Give normalisation scales, shifts and statistics of its own, so that none goes unseen."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
            ):
                tensor.data.uniform_(low, high, generator=draw)
    return model


def adopted(make, state):
    """The other library's network, with copies of these weights; strict."""
    with torch.device("meta"):
        model = make()
    copies = {key: value.clone() for key, value in state.items()}
    model.load_state_dict(copies, strict=True, assign=True)
    return model.requires_grad_()


def outcome(model, x):
    """Logits, and the gradient of one weighting of them with respect to the images."""
    x = x.clone().requires_grad_()
    logits = model(x)
    weighting = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (gradient,) = torch.autograd.grad((logits * weighting).sum(), x)
    return logits.detach(), gradient


def assert_same(ours, theirs, x, rtol=0.0):
    """Equal logits and input gradients, in eval mode and in train mode."""
    for training in (False, True):
        ours.train(training)
        if isinstance(theirs, nn.Module):
            theirs.train(training)
            other = theirs
        else:
            other = theirs(training)
        for found, expected in zip(outcome(ours, x), outcome(other, x), strict=True):
            assert expected.abs().max() > 0
            assert (found - expected).abs().max() <= rtol * expected.abs().max()


# Counts and shapes


def test_the_plugin_offers_the_golden_models_and_no_others():
    assert set(SPECS) == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_macs_and_state_are_the_golden_ones(name):
    params, macs, entries = GOLDEN[name]
    spec = SPECS[name]
    traced = trace(lambda: build(name), spec.stages, spec.input)
    assert (traced.params, traced.macs) == (params, macs)
    assert (spec.params, spec.macs) == (params, macs)
    assert len(on_meta(name).state_dict()) == entries
    assert [stage.output for stage in traced.stages] == stage_shapes(name)


def stage_shapes(name):
    """Table 1's output sizes; section 4.2's for the paper's CIFAR networks."""
    k = 4 if depth(name) >= 50 else 1
    if SPECS[name].input == (3, 224, 224):
        sizes = [(64, 112), (64 * k, 56), (128 * k, 28), (256 * k, 14), (512 * k, 7)]
    elif name in ("resnet18_cifar", "resnet50_cifar"):
        sizes = [(64, 32), (64 * k, 32), (128 * k, 16), (256 * k, 8), (512 * k, 4)]
    else:
        sizes = [(16, 32), (16, 32), (32, 16), (64, 8)]
    return [*((c, s, s) for c, s in sizes), (SPECS[name].num_classes,)]


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
    assert sum(p.numel() for p in on_meta(name, num_classes=10).parameters()) == params


@pytest.mark.parametrize("name", GOLDEN)
def test_a_network_has_as_many_layers_as_its_name_says(name):
    modules = on_meta(name).named_modules()
    layers = [key for key, m in modules if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len([key for key in layers if "shortcut" not in key]) == depth(name)


@pytest.mark.slow
def test_the_network_of_1202_layers_has_19_4_million_parameters():
    with torch.device("meta"):
        model = CifarResNet(basic_a, 200, 10, 3)
    assert sum(p.numel() for p in model.parameters()) == 19_421_274
    assert len(model.state_dict()) == 7_208


# Oracles


@pytest.mark.parametrize("name", [*TORCHVISION, "resnet50_v1", "resnet101_v1", "resnet152_v1"])
def test_state_dicts_fit_torchvisions_strictly_both_ways(name):
    ours = on_meta(name)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name.removesuffix("_v1"))()
    names = key_maps(name)["torchvision"]
    theirs.load_state_dict(names.to_theirs(ours.state_dict()), strict=True, assign=True)
    ours.load_state_dict(names.to_ours(theirs.state_dict()), strict=True, assign=True)
    assert shapes(names.to_theirs(ours.state_dict())) == shapes(theirs.state_dict())


@pytest.mark.parametrize("name", TORCHVISION)
def test_outputs_and_gradients_are_torchvisions(name):
    torch.manual_seed(1)
    ours = unsettle(build(name, num_classes=20))
    state = key_maps(name)["torchvision"].to_theirs(ours.state_dict())
    theirs = adopted(lambda: getattr(torchvision.models, name)(num_classes=20), state)
    assert_same(ours, theirs, torch.randn(2, 3, 40, 40))
    # The statistics that a step of training leaves are the same as well.
    state = key_maps(name)["torchvision"].to_theirs(ours.state_dict())
    assert all(torch.equal(state[key], value) for key, value in theirs.state_dict().items())


def torchvision_v1(name, num_classes):
    """torchvision's network with each bottleneck's stride moved to its first 1x1."""
    model = getattr(torchvision.models, name.removesuffix("_v1"))(num_classes=num_classes)
    for block in model.modules():
        if isinstance(block, Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return model


@pytest.mark.parametrize("name", ["resnet50_v1", "resnet101_v1"])
def test_v1_is_torchvisions_with_the_stride_moved(name):
    torch.manual_seed(2)
    ours = unsettle(build(name, num_classes=20))
    state = key_maps(name)["torchvision"].to_theirs(ours.state_dict())
    theirs = adopted(lambda: torchvision_v1(name, 20), state)
    assert_same(ours, theirs, torch.randn(2, 3, 40, 40))


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
        zeros = torch.zeros(len(x), x.shape[1] // 2, *x[0, 0, ::2, ::2].shape)
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
    torch.manual_seed(3)
    ours = unsettle(build(name)).double()
    state = key_maps(name)["akamaster"].to_theirs(ours.state_dict())
    state = {key: value.clone() for key, value in state.items()}
    x = torch.randn(4, 3, *size, dtype=torch.float64)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(ours, lambda training: literal_cifar(state, n, training), x, rtol=1e-9)
    finally:
        torch.set_default_dtype(previous)


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


@pytest.mark.parametrize("layers", [20, 56])
def test_option_b_is_pytorchcvs(layers):
    resnet_cifar = pytest.importorskip("pytorchcv.models.resnet_cifar")
    torch.manual_seed(4)
    theirs = unsettle(getattr(resnet_cifar, f"resnet{layers}_cifar10")())
    state = {}
    for key, value in theirs.state_dict().items():
        begin, ours = next(
            p for p in pytorchcv_names(layers).items() if key.startswith(p[0] + ".")
        )
        state[ours + key.removeprefix(begin)] = value
    ours = build(f"resnet{layers}_cifar_b")
    ours.load_state_dict(state, strict=True)
    assert_same(ours, theirs, torch.randn(2, 3, 32, 32), rtol=1e-6)


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
    torch.manual_seed(5)
    name = f"resnet{layers}_cifar"
    ours = unsettle(build(name))
    state = key_maps(name)["kuangliu"].to_theirs(ours.state_dict())
    assert "layer4.0.shortcut.0.weight" in state
    assert "linear.bias" in state
    renamed = {
        key.replace("shortcut", "downsample").replace("linear", "fc"): value
        for key, value in state.items()
    }
    theirs = adopted(lambda: torchvision_with_3x3_stem(layers), renamed)
    assert_same(ours, theirs, torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize("name", GOLDEN)
def test_every_naming_maps_every_key_there_and_back(name):
    assert SPECS[name].key_maps == "cnn_arch_resnet.weights:key_maps"
    keys = list(on_meta(name).state_dict())
    for names in key_maps(name).values():
        theirs = [names.theirs(key) for key in keys]
        assert len(set(theirs)) == len(keys)
        assert [names.ours(key) for key in theirs] == keys


# What the paper says in words


def test_option_a_takes_every_second_pixel_and_zeros_and_has_no_parameters():
    x = torch.randn(2, 16, 5, 7)
    y = OptionA(16)(x)
    assert y.shape == (2, 32, 3, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()
    for name in GOLDEN:
        if name.endswith("_cifar") and SPECS[name].params < 2_000_000:
            assert not any("shortcut" in key for key in on_meta(name).state_dict())


@pytest.mark.parametrize("name", [name for name in GOLDEN if not name.endswith("_cifar")])
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
    torch.manual_seed(6)
    model = build(name, num_classes=100)
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


@pytest.mark.parametrize("name", GOLDEN)
def test_classes_and_channels_are_honoured(name):
    model = on_meta(name, num_classes=37, in_channels=5).eval()
    assert model(torch.empty(2, 5, 32, 32, device="meta")).shape == (2, 37)


@pytest.mark.parametrize("name", GOLDEN)
def test_defaults_are_the_specs(name):
    model, spec = on_meta(name), SPECS[name]
    assert model.conv1.conv.in_channels == spec.input[0]
    assert model.get_submodule(model.classifier).out_features == spec.num_classes


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_an_input_without_pixels_is_refused_with_the_minimum(name, size):
    assert SPECS[name].min_size == 1
    with pytest.raises(UsageError, match=f"{size[0]} x {size[1]}, .* at least 1 x 1"):
        on_meta(name)(torch.empty(1, 3, *size, device="meta"))


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 47)])
def test_any_size_from_one_pixel_up_works(name, size):
    torch.manual_seed(7)
    model = build(name, num_classes=10).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, *size))
    assert logits.shape == (1, 10)
    assert logits.isfinite().all()
    assert logits.std() > 0


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_gradient_reaches_every_parameter(name):
    torch.manual_seed(8)
    model = build(name, num_classes=10)
    size = 40 if SPECS[name].input == (3, 224, 224) else 16
    F.cross_entropy(model(torch.randn(3, 3, size, size)), torch.arange(3)).backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().sum() > 0, parameter


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_images_of_a_batch_do_not_influence_each_other_in_eval_mode(name):
    torch.manual_seed(9)
    model = unsettle(build(name, num_classes=10)).eval()
    x = torch.randn(3, 3, 24, 24)
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
    assert (together - alone).abs().max() <= 1e-4 * together.abs().max()


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_last_layer_can_be_replaced_and_features_stay(name):
    model = build(name, num_classes=10).eval()
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        before = model.forward_features(x)
        model.reset_classifier(7)
        assert torch.equal(model.forward_features(x), before)
        assert model(x).shape == (1, 7)


def test_features_are_the_named_stages_outputs_untouched_by_what_follows():
    model = unsettle(build("resnet20_cifar")).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = features(model, x, ("conv1.bn", *SPECS["resnet20_cifar"].stages))
        assert torch.equal(found["conv1.bn"].relu(), found["conv1"])
        assert torch.equal(model.conv2_x(found["conv1"]), found["conv2_x"])
        assert torch.equal(model.forward_features(x), found["conv4_x"])
    assert found["conv1.bn"].min() < 0


@pytest.mark.parametrize("name", ["resnet18", "resnet20_cifar", "resnet18_cifar"])
def test_construction_repeats_under_a_seed(name):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build(name, num_classes=10).state_dict())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.conv.weight"], other["conv1.conv.weight"])


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v1", "resnet20_cifar"])
def test_copies_formats_and_precisions(name):
    torch.manual_seed(10)
    model = unsettle(build(name, num_classes=10)).eval()
    x = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        logits = model(x)
        largest = logits.abs().max()
        assert torch.equal(copy.deepcopy(model)(x), logits)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), logits)
        exact = copy.deepcopy(model).double()(x.double())
        assert (exact - logits).abs().max() < 1e-4 * largest
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        found = last(x.to(memory_format=torch.channels_last))
        assert (found - logits).abs().max() < 1e-4 * largest
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x)
        assert rough.dtype == torch.bfloat16
        assert (rough - logits).abs().max() < 0.1 * largest


@pytest.mark.parametrize("name", ["resnet18", "resnet20_cifar"])
def test_export_computes_the_same(name):
    torch.manual_seed(11)
    model = build(name, num_classes=10).eval()
    x = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (x,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(x), model(x), rtol=1e-5, atol=1e-5)


def test_a_batch_is_learned_by_heart():
    torch.manual_seed(12)
    model = build("resnet20_cifar", in_channels=1)
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


def test_the_plugin_and_its_key_maps_need_no_torch():
    code = (
        "import sys; from cnn_arch_resnet import plugin, weights; plugin.cnnzoo_models(); "
        "plugin.cnnzoo_recipes(); weights.key_maps('resnet50'); "
        "print([m for m in ('torch', 'numpy', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_recipes_are_of_our_models_and_one_is_the_default_on_digits():
    recipes = plugin.cnnzoo_recipes()
    for spec in recipes:
        assert Recipe.from_settings(spec.settings).model in SPECS
    defaults = [r.name for r in recipes if r.default and r.dataset == "digits"]
    assert defaults == ["resnet20_cifar-digits"]


@pytest.mark.parametrize("home", ["resnet", "resnet_cifar", "resnet_cifar_stem", "weights"])
def test_public_names_are_sorted_and_exist(home):
    module = import_module(f"cnn_arch_resnet.{home}")
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)
    targets = [spec.target.partition(":") for spec in SPECS.values()]
    named = {name for place, _, name in targets if place == module.__name__}
    assert named <= set(module.__all__)


def test_the_package_offers_its_networks():
    package = import_module("cnn_arch_resnet")
    assert package.__all__ == sorted(package.__all__)
    assert {getattr(package, name).__name__ for name in package.__all__} == set(package.__all__)


@pytest.mark.parametrize("home", ["resnet", "resnet_cifar", "resnet_cifar_stem"])
def test_docstrings_cite_the_paper_and_name_departures(home):
    text = import_module(f"cnn_arch_resnet.{home}").__doc__
    assert "arXiv:1512.03385" in text
    assert "Departures from the paper:" in text
