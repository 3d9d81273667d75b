"""VGG against Table 1 of the paper and against torchvision."""

from __future__ import annotations

import gc
import importlib
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cnn_arch_vgg import plugin, vgg
from cnn_arch_vgg.table1 import TABLE_1
from cnn_arch_vgg.weights import key_maps
from cnn_core.errors import UsageError
from cnn_core.layers import features, he_normal_, trace

SPECS = {spec.name: spec for spec in plugin.cnnzoo_models()}
ALL = sorted(SPECS)
IMAGENET = [name for name in ALL if not name.endswith("_cifar")]
CIFAR = ["vgg11_cifar", "vgg16_cifar"]


def resolve(target):
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def build(name, seed=0, **options):
    torch.manual_seed(seed)
    return resolve(SPECS[name].target)(**options)


def build_meta(name, **options):
    with torch.device("meta"):
        return build(name, **options)


def traced(name):
    spec = SPECS[name]
    return trace(resolve(spec.target), spec.stages, spec.input)


@torch.no_grad()
def lively(model, seed=0):
    """Weights that let signals through, biases and statistics not all alike, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(generator=generator).mul_((2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var") or ".bn.weight" in name:
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(generator=generator).mul_(0.1)
    return model


def output_and_gradient(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((weights * y).sum(), x)
    return y.detach(), gradient


def same_as(ours, theirs, x):
    """Run both, dropout drawing the same numbers; return ours after comparing bit by bit."""
    found = []
    for model in (ours, theirs):
        torch.manual_seed(0)
        found.append(output_and_gradient(model, x))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    return found[0]


# Counts and shapes


# fmt: off
GOLDEN = [
    ("vgg11",       132_863_336,  7_609_090_048,  22),
    ("vgg11_bn",    132_868_840,  7_609_090_048,  62),
    ("vgg13",       133_047_848, 11_308_466_176,  26),
    ("vgg13_bn",    133_053_736, 11_308_466_176,  76),
    ("vgg16",       138_357_544, 15_470_264_320,  32),
    ("vgg16_bn",    138_365_992, 15_470_264_320,  97),
    ("vgg19",       143_667_240, 19_632_062_464,  38),
    ("vgg19_bn",    143_678_248, 19_632_062_464, 118),
    ("vgg11_cifar",   9_231_114,    152_769_536,  58),
    ("vgg16_cifar",  14_728_266,    313_201_664,  93),
]
# fmt: on


@pytest.mark.parametrize(("name", "params", "macs", "n_state"), GOLDEN)
def test_counts_are_the_golden_ones_and_the_specs(name, params, macs, n_state):
    found = traced(name)
    assert (found.params, found.macs) == (params, macs)
    assert (SPECS[name].params, SPECS[name].macs) == (params, macs)
    assert len(build_meta(name).state_dict()) == n_state
    assert {row[0] for row in GOLDEN} == set(SPECS)


@pytest.mark.parametrize("name", IMAGENET)
def test_stages_have_the_papers_sizes(name):
    shapes = [stage.output for stage in traced(name).stages]
    widths, sizes = (64, 128, 256, 512, 512), (224, 112, 56, 28, 14)
    for i, (width, size) in enumerate(zip(widths, sizes, strict=True)):
        assert shapes[2 * i : 2 * i + 2] == [(width, size, size), (width, size // 2, size // 2)]
    assert shapes[10:] == [(4096,), (4096,), (1000,)]


@pytest.mark.parametrize("name", CIFAR)
def test_pools_leave_one_position_of_32x32(name):
    shapes = {stage.name: stage.output for stage in traced(name).stages}
    assert [shapes[f"pool{i}"] for i in range(1, 6)] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
        (512, 1, 1),
    ]
    assert shapes["fc"] == (10,)


def test_vgg16_sees_196_pixels_at_conv5_and_212_at_pool5():
    stages = {stage.name: stage for stage in traced("vgg16").stages}
    assert (stages["conv5"].receptive_field, stages["conv5"].stride) == (196, 16)
    assert (stages["pool5"].receptive_field, stages["pool5"].stride) == (212, 32)


def test_table_1_has_the_papers_numbers_of_weight_layers_and_of_parameters():
    depths = {column: sum(convolutions) + 3 for column, convolutions in TABLE_1.items()}
    assert depths == {"A": 11, "B": 13, "D": 16, "E": 19}
    millions = {name: round(SPECS[name].params / 1e6) for name in IMAGENET if "_" not in name}
    assert millions == {"vgg11": 133, "vgg13": 133, "vgg16": 138, "vgg19": 144}


@pytest.mark.parametrize(
    ("module", "names"),
    [("vgg", ("vgg11", "vgg13", "vgg16", "vgg19")), ("vgg_cifar", tuple(CIFAR))],
)
def test_the_table_in_the_docstring_is_what_the_networks_are(module, names):
    text = importlib.import_module(f"cnn_arch_vgg.{module}").__doc__
    (trainable,) = re.findall(r"^ {4}trainable +(.*)$", text, re.M)
    assert [int(n.replace(",", "")) for n in trainable.split()] == [SPECS[n].params for n in names]
    columns = [{"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[n[:5]] for n in names]
    for i, width in enumerate((64, 128, 256, 512, 512)):
        (row,) = re.findall(rf"^ {{4}}conv{i + 1} (.*)$", text, re.M)
        found = [(int(n or 1), int(w)) for n, w in re.findall(r"(?:(\d) )?conv3-(\d+)", row)]
        assert found == [(TABLE_1[column][i], width) for column in columns]


@pytest.mark.parametrize("name", ALL)
def test_every_kernel_is_3x3_has_a_bias_and_keeps_the_size(name):
    convolutions = [m for m in build_meta(name).modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == sum(TABLE_1[SPECS[name].variant[7]])
    for layer in convolutions:
        assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        assert layer.bias is not None


# torchvision's networks


@pytest.mark.parametrize("name", IMAGENET)
def test_torchvision_has_the_same_keys_and_shapes(name):
    keymap = key_maps(name)["torchvision"]
    ours = build_meta(name)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)()
    theirs.load_state_dict(keymap.to_theirs(ours.state_dict()), strict=True, assign=True)
    ours.load_state_dict(keymap.to_ours(theirs.state_dict()), strict=True, assign=True)


@pytest.fixture(scope="module", params=["vgg11", "vgg11_bn", "vgg16"])
def pair(request):
    """One of our networks and torchvision's, sharing weights: half a gigabyte once."""
    ours = build(request.param, num_classes=10)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, request.param)(num_classes=10)
    state = key_maps(request.param)["torchvision"].to_theirs(lively(ours).state_dict())
    theirs.load_state_dict(state, strict=True, assign=True)
    yield ours, theirs
    del ours, theirs, state
    gc.collect()


@pytest.mark.parametrize("size", [(64, 64), (75, 33)])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_and_gradients_are_torchvisions(pair, size, training):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    for model in pair:
        model.train(training)
    output, gradient = same_as(*pair, x)
    assert output.std() > 1e-3
    assert gradient.abs().sum() > 0


def all_dropped(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.5
            module.p = 1.0
    return model.train()


def test_dropout_is_on_the_outputs_of_fc6_and_fc7():
    model = all_dropped(lively(build("vgg11", num_classes=10)))
    with torch.no_grad():
        found = features(model, torch.rand(1, 3, 32, 32), ("fc6", "fc7", "fc8"))
    assert (found["fc6"] - model.fc6.bias).abs().max() > 1e-3  # its input is not dropped
    assert torch.equal(found["fc7"][0], model.fc7.bias)
    assert torch.equal(found["fc8"][0], model.fc8.bias)


@pytest.mark.parametrize(("name", "column"), [("vgg11_cifar", "A"), ("vgg16_cifar", "D")])
@pytest.mark.parametrize("training", [False, True])
def test_small_networks_are_torchvisions_features_and_one_layer(name, column, training):
    ours = lively(build(name)).train(training)
    theirs = torchvision.models.vgg.VGG.__new__(torchvision.models.vgg.VGG)
    nn.Module.__init__(theirs)
    with torch.device("meta"):
        theirs.features = torchvision.models.vgg.make_layers(
            torchvision.models.vgg.cfgs[column], batch_norm=True
        )
        theirs.avgpool = nn.Identity()
        theirs.classifier = nn.Linear(512, 10)
    keymap = key_maps(name)["kuangliu"]
    theirs.load_state_dict(keymap.to_theirs(ours.state_dict()), strict=True, assign=True)
    torch.manual_seed(0)
    output, _ = same_as(ours, theirs.train(training), torch.randn(3, 3, 32, 32))
    assert output.std() > 1e-3
    ours.load_state_dict(keymap.to_ours(theirs.state_dict()), strict=True)


def test_larger_pictures_are_averaged_by_small_networks():
    model = lively(build("vgg11_cifar")).eval()
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = model.forward_features(x)
        assert maps.shape == (1, 512, 3, 2)
        expected = F.linear(maps.sum((2, 3)) / 6, model.fc.weight, model.fc.bias)
        torch.testing.assert_close(model(x), expected)


# What every network of the zoo keeps


@pytest.mark.parametrize("name", CIFAR)
def test_convolutions_start_after_he_and_the_last_layer_small(name):
    model = build(name)
    for layer in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        deviation = (2 / (9 * layer.out_channels)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert (layer.bias == 0).all()
    for layer in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (layer.weight == 1).all()
        assert (layer.bias == 0).all()
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert (model.fc.bias == 0).all()


def test_fully_connected_layers_start_from_a_deviation_of_001():
    lone = nn.Sequential(nn.Linear(500, 300), vgg.ConvReLU(64, 128))
    torch.manual_seed(0)
    he_normal_(lone, fan="out", linear_std=0.01)
    assert lone[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert lone[1].weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert (lone[0].bias == 0).all()
    assert (lone[1].bias == 0).all()


def test_the_same_seed_gives_the_same_weights():
    one, same, other = (build("vgg11_cifar", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not torch.equal(one["conv1.0.conv.weight"], other["conv1.0.conv.weight"])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (37, 4)])
def test_classes_and_channels_are_honoured(name, classes, channels):
    model = build_meta(name, num_classes=classes, in_channels=channels).eval()
    size = SPECS[name].input[1]
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, classes)
    model.reset_classifier(7)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ALL)
def test_from_32_up_every_size_works(name):
    model = build_meta(name).eval()
    for height, width in ((32, 32), (33, 63), (251, 32)):
        shape = model(torch.empty(1, 3, height, width, device="meta")).shape
        assert shape == (1, SPECS[name].num_classes)


@pytest.mark.parametrize("name", ALL)
def test_below_32_the_error_names_it(name, monkeypatch):
    model = build_meta(name).eval()
    assert SPECS[name].min_size == 32
    for height, width in ((31, 300), (300, 31)):
        x = torch.empty(1, 3, height, width, device="meta")
        with pytest.raises(UsageError, match=rf"{height} x {width}, .* at least 32 x 32"):
            model(x)
    # and 32 is the smallest: without the check, torch finds nothing to pool
    module = importlib.import_module(SPECS[name].target.partition(":")[0])
    monkeypatch.setattr(module, "require_size", lambda *_: None)
    with pytest.raises(RuntimeError):
        model(torch.empty(1, 3, 31, 31, device="meta"))


@pytest.mark.parametrize("name", ["vgg11", *CIFAR])
def test_gradient_reaches_every_parameter_and_images_stay_apart(name):
    model = build(name, num_classes=10).eval()
    x = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    together = model(x)
    # every class counts differently: the softmax's own gradients nearly cancel at the start
    (together * torch.arange(1.0, 11.0)).sum().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().sum() > 0, parameter
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(alone, together.detach(), rtol=1e-4, atol=1e-5)


def test_every_model_is_named_in_the_paper_or_says_that_it_departs():
    for name, spec in SPECS.items():
        normalised = any("batch normalisation" in departure for departure in spec.departures)
        has_bn = any(isinstance(m, nn.BatchNorm2d) for m in build_meta(name).modules())
        assert normalised == has_bn
        assert name in vgg.__all__ or "not a published network" in spec.departures[0]


def test_recipes_are_for_networks_of_the_package():
    recipes = {recipe.name: recipe for recipe in plugin.cnnzoo_recipes()}
    assert set(recipes) == {"vgg11_cifar-digits", "vgg16-imagenet-paper"}
    assert all(recipe.model in SPECS for recipe in recipes.values())
