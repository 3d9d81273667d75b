"""VGG against Table 1 of the paper and against torchvision."""

from __future__ import annotations

import importlib
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cnn_arch_vgg import vgg
from cnn_arch_vgg.table1 import TABLE_1
from cnn_core.layers import features, he_normal_
from networks import (
    SPECS,
    adopted,
    assert_same,
    build,
    images,
    key_maps,
    layers,
    lively_network,
    names_of,
    on_meta,
    traced,
    with_dropout,
)

ALL = names_of("vgg")
IMAGENET = [name for name in ALL if not name.endswith("_cifar")]
CIFAR = ["vgg11_cifar", "vgg16_cifar"]


# Counts and shapes


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
    convolutions = layers(on_meta(name), nn.Conv2d)
    assert len(convolutions) == sum(TABLE_1[SPECS[name].variant[7]])
    for layer in convolutions:
        assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        assert layer.bias is not None


def test_dropout_is_on_the_outputs_of_fc6_and_fc7():
    model = lively_network("vgg11", num_classes=10)
    assert {dropout.p for dropout in layers(model, nn.Dropout)} == {0.5}
    with_dropout(model, 1.0).train()
    with torch.no_grad():
        found = features(model, torch.rand(1, 3, 32, 32), ("fc6", "fc7", "fc8"))
    assert (found["fc6"] - model.fc6.bias).abs().max() > 1e-3  # its input is not dropped
    assert torch.equal(found["fc7"][0], model.fc7.bias)
    assert torch.equal(found["fc8"][0], model.fc8.bias)


@pytest.mark.parametrize(("name", "column"), [("vgg11_cifar", "A"), ("vgg16_cifar", "D")])
@pytest.mark.parametrize("training", [False, True])
def test_small_networks_are_torchvisions_features_and_one_layer(name, column, training):
    ours = lively_network(name)
    names = key_maps(name)["kuangliu"]

    def features_and_a_layer():
        theirs = torchvision.models.vgg.VGG.__new__(torchvision.models.vgg.VGG)
        nn.Module.__init__(theirs)
        layout = torchvision.models.vgg.cfgs[column]
        theirs.features = torchvision.models.vgg.make_layers(layout, batch_norm=True)
        theirs.avgpool = nn.Identity()
        theirs.classifier = nn.Linear(512, 10)
        return theirs

    theirs = adopted(features_and_a_layer, names.to_theirs(ours.state_dict()))
    assert_same(ours.train(training), theirs.train(training), images(32, batch=3))
    ours.load_state_dict(names.to_ours(theirs.state_dict()), strict=True)


def test_larger_pictures_are_averaged_by_small_networks():
    model = lively_network("vgg11_cifar").eval()
    x = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps = model.forward_features(x)
        assert maps.shape == (1, 512, 3, 2)
        expected = F.linear(maps.sum((2, 3)) / 6, model.fc.weight, model.fc.bias)
        torch.testing.assert_close(model(x), expected)


# Initialisation


@pytest.mark.parametrize("name", CIFAR)
def test_convolutions_start_after_he_and_the_last_layer_small(name):
    model = build(name)
    for layer in layers(model, nn.Conv2d):
        deviation = (2 / (9 * layer.out_channels)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.1)
        assert (layer.bias == 0).all()
    for layer in layers(model, nn.BatchNorm2d):
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


def test_every_model_is_named_in_the_paper_or_says_that_it_departs():
    for name in ALL:
        spec = SPECS[name]
        normalised = any("batch normalisation" in departure for departure in spec.departures)
        assert normalised == bool(layers(on_meta(name), nn.BatchNorm2d))
        assert name in vgg.__all__ or "not a published network" in spec.departures[0]
