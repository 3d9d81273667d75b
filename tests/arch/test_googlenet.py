"""GoogLeNet against the paper's Table 1, a network written out with functions, torchvision."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_arch_googlenet import plugin
from cnn_arch_googlenet.googlenet import Conv, GoogLeNet
from cnn_arch_googlenet.googlenet_bn import GoogLeNetBN
from cnn_core.errors import UsageError
from cnn_core.layers import features
from networks import (
    SPECS,
    assert_same,
    build,
    count,
    images,
    layers,
    names_of,
    on_meta,
    traced,
    with_dropout,
)

NAMES = names_of("googlenet")

# Szegedy et al. (2014), Table 1: output (H W C), and the columns from #1x1 to pool proj.
TABLE_1 = {
    "conv1": (112, 112, 64),
    "pool1": (56, 56, 64),
    "conv2": (56, 56, 192),
    "pool2": (28, 28, 192),
    "inception3a": (28, 28, 256),
    "inception3b": (28, 28, 480),
    "pool3": (14, 14, 480),
    "inception4a": (14, 14, 512),
    "inception4b": (14, 14, 512),
    "inception4c": (14, 14, 512),
    "inception4d": (14, 14, 528),
    "inception4e": (14, 14, 832),
    "pool4": (7, 7, 832),
    "inception5a": (7, 7, 832),
    "inception5b": (7, 7, 1024),
    "avg_pool": (1, 1, 1024),
}
COLUMNS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
# The column "ops", in millions. Two rows are left out, which fit no 7x7 convolution (34M) and
# no module of these widths (54M): conv1 and inception5a.
OPS = {
    "conv2": 360,
    "inception3a": 128,
    "inception3b": 304,
    "inception4a": 73,
    "inception4b": 88,
    "inception4c": 100,
    "inception4d": 119,
    "inception4e": 170,
    "inception5b": 71,
    "linear": 1,
}


# --- numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "entries"),
    [("googlenet", 6_998_552, 116), ("googlenet_bn", 6_624_904, 344)],
)
def test_without_auxiliary_classifiers_they_have_fewer_parameters(name, params, entries):
    model = on_meta(name, aux=False)
    assert (count(model), len(model.state_dict())) == (params, entries)
    smallest = SPECS[name].min_size
    x = torch.empty(1, 3, smallest, smallest, device="meta")
    assert model.eval()(x).shape == (1, 1000)


def test_the_papers_auxiliary_classifiers_have_their_parameters():
    model = on_meta("googlenet")
    assert count(model.aux1) == 3_188_840
    assert count(model.aux2) == 3_190_888


@pytest.mark.parametrize("name", NAMES)
def test_stages_have_the_sizes_of_table_1(name):
    found = {stage.name: stage.output for stage in traced(name).stages}
    assert found.pop("dropout") == (1024,)
    assert found.pop("linear") == (1000,)
    assert found == {stage: (c, h, w) for stage, (h, w, c) in TABLE_1.items()}


def test_operations_are_those_of_table_1():
    macs = {stage.name: stage.macs / 1e6 for stage in traced("googlenet").stages}
    for stage, millions in OPS.items():
        assert abs(macs[stage] - millions) < 1, stage


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", COLUMNS)
def test_widths_of_an_inception_module_are_the_columns_of_table_1(name, stage):
    module = on_meta(name).get_submodule(stage)
    convs = layers(module, nn.Conv2d)
    assert tuple(conv.out_channels for conv in convs) == COLUMNS[stage]
    kernel = 5 if name == "googlenet" else 3
    assert [conv.kernel_size[0] for conv in convs] == [1, 1, 3, 1, kernel, 1]


# --- the paper, written out ----------------------------------------------------------------


def literal_lrn(x: Tensor) -> Tensor:
    """x_i / (1 + alpha / n * sum of x_j^2 over the n = 5 maps around i) ^ beta."""
    maps = x.shape[1]
    sums = [x[:, max(i - 2, 0) : i + 3].square().sum(1) for i in range(maps)]
    return x / (1 + 1e-4 / 5 * torch.stack(sums, 1)) ** 0.75


def literal_googlenet(w: dict[str, Tensor], x: Tensor, train: bool = False):
    """The network of Table 1 and Fig. 3, straight from the paper."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        pad = (weight.shape[-1] - 1) // 2
        return F.conv2d(x, weight, w[f"{name}.bias"], stride, pad).clamp(min=0)

    def fc(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def pool(x: Tensor) -> Tensor:
        """3x3, stride 2; windows that the map ends in are kept (56, 28, 14, 7)."""
        extra = x.shape[-1] % 2 == 0
        return F.max_pool2d(F.pad(x, (0, extra, 0, extra), value=-math.inf), 3, 2)

    def inception(name: str, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-math.inf), 3, 1)
        return torch.cat(
            [
                conv(f"{name}.conv1x1", x),
                conv(f"{name}.conv3x3", conv(f"{name}.reduce3x3", x)),
                conv(f"{name}.conv5x5", conv(f"{name}.reduce5x5", x)),
                conv(f"{name}.pool_proj", pooled),
            ],
            1,
        )

    def auxiliary(name: str, x: Tensor) -> Tensor:
        window = torch.full((x.shape[1], 1, 5, 5), 1 / 25, dtype=x.dtype)
        x = F.conv2d(x, window, stride=3, groups=x.shape[1])
        x = conv(f"{name}.conv", x).flatten(1)
        return fc(f"{name}.linear", fc(f"{name}.fc", x).clamp(min=0))

    x = literal_lrn(pool(conv("conv1", x, stride=2)))
    x = pool(literal_lrn(conv("conv2.1", conv("conv2.0", x))))
    x = pool(inception("inception3b", inception("inception3a", x)))
    at_4a = x = inception("inception4a", x)
    for letter in "bcd":
        x = inception(f"inception4{letter}", x)
    at_4d = x
    x = pool(inception("inception4e", x))
    x = inception("inception5b", inception("inception5a", x))
    logits = fc("linear", x.mean((2, 3)))
    return (logits, auxiliary("aux2", at_4d), auxiliary("aux1", at_4a)) if train else logits


@pytest.mark.parametrize("train", [False, True])
def test_the_paper_written_out_gives_the_same_outputs_and_gradients(train):
    model = with_dropout(build("googlenet", num_classes=20), 0.0).train(train).double()
    weights, x = model.state_dict(), images(224 if train else 63, batch=1).double()
    assert_same(
        model, lambda x: literal_googlenet(weights, x, train), x, 1e-12, gradient_rtol=1e-9
    )


def test_padding_and_ceil_mode_agree_on_every_size():
    model = GoogLeNet(num_classes=2, aux=False)
    for size in range(4, 30):
        extra = size % 2 == 0
        x = images(size, batch=1, channels=1)
        padded = F.pad(x, (0, extra, 0, extra), value=-math.inf)
        assert torch.equal(model.pool1(x), F.max_pool2d(padded, 3, 2))


# --- auxiliary classifiers -----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_training_returns_three_logits_and_evaluation_one(name):
    model = on_meta(name, num_classes=7)
    x = torch.empty(2, 3, 224, 224, device="meta")
    assert [logits.shape for logits in model.train()(x)] == [(2, 7)] * 3
    assert model.eval()(x).shape == (2, 7)
    assert on_meta(name, num_classes=7, aux=False).train()(x).shape == (2, 7)


def test_auxiliary_logits_are_those_of_4d_then_of_4a():
    model = with_dropout(GoogLeNetBN(5), 0.0).train()
    x = images(64)
    seen = features(model, x, ("inception4a", "inception4d"))
    _, aux2, aux1 = model(x)
    assert torch.equal(aux2, model.aux2(seen["inception4d"]))
    assert torch.equal(aux1, model.aux1(seen["inception4a"]))


def test_adaptive_pooling_of_the_auxiliary_classifiers_is_not_the_papers():
    ramp = torch.arange(14.0).expand(1, 1, 14, 14)
    paper, other = (on_meta(name).aux1.avg_pool(ramp)[0, 0, 0] for name in NAMES)
    assert paper.tolist() == [2, 5, 8, 11]
    assert other.tolist() == [1.5, 4.5, 8.5, 11.5]


@pytest.mark.parametrize("name", NAMES)
def test_resetting_the_classifier_resets_the_auxiliary_ones(name):
    model = on_meta(name)
    model.reset_classifier(3)
    assert {model.linear.out_features, model.aux1.linear.out_features} == {3}
    assert model.aux2.linear.out_features == 3
    x = torch.empty(2, 3, 224, 224, device="meta")
    assert [logits.shape for logits in model.train()(x)] == [(2, 3)] * 3
    alone = on_meta(name, aux=False)
    alone.reset_classifier(3)
    assert alone(x).shape == (2, 3)


def test_each_auxiliary_loss_counts_three_tenths():
    assert GoogLeNet.aux_weight == GoogLeNetBN.aux_weight == 0.3


@pytest.mark.parametrize(("size", "fits"), [(222, False), (223, True), (270, True), (271, False)])
def test_the_papers_auxiliary_classifiers_take_images_that_leave_4x4(size, fits):
    model = on_meta("googlenet").train()
    x = torch.empty(1, 3, size, size, device="meta")
    if fits:
        assert len(model(x)) == 3
        return
    with pytest.raises(UsageError, match="223x223 to 270x270 pixels, not") as caught:
        model(x)
    assert "aux=False" in str(caught.value)
    # and not a rule of ours:
    maps = model.eval().up_to_4a(x)
    assert model.aux1.avg_pool(maps).shape[2:] != (4, 4)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_last_inception_module(name):
    model = build(name, num_classes=10, aux=False).eval()
    x = images(64)
    with torch.no_grad():
        maps = model.forward_features(x)
        assert maps.shape == (2, 1024, 2, 2)
        assert torch.equal(features(model, x, ("inception5b",))["inception5b"], maps)


# --- the paper's details -------------------------------------------------------------------


def test_the_papers_network_has_biases_lrn_dropout_and_no_batch_normalisation():
    model = on_meta("googlenet")
    assert all(conv.bias is not None for conv in layers(model, nn.Conv2d))
    assert not layers(model, nn.BatchNorm2d)
    assert len(layers(model, nn.LocalResponseNorm)) == 2
    assert (model.dropout.p, model.aux1.dropout.p, model.aux2.dropout.p) == (0.4, 0.7, 0.7)


def test_torchvisions_network_departs_as_its_spec_says():
    model, theirs = on_meta("googlenet_bn"), torchvision.models.GoogLeNet(init_weights=False)
    assert all(conv.bias is None for conv in layers(model, nn.Conv2d))
    assert not layers(model, nn.LocalResponseNorm)
    norms = layers(model, nn.BatchNorm2d)
    assert len(norms) == len(layers(model, nn.Conv2d)) == 59
    assert {(norm.eps, norm.momentum) for norm in norms} == {(0.001, 0.1)}
    assert (model.pool4.kernel_size, model.pool3.kernel_size) == (2, 3)
    assert model.pool4.kernel_size == theirs.maxpool4.kernel_size
    assert (model.dropout.p, model.aux1.dropout.p) == (0.2, 0.7)
    assert model.dropout.p == theirs.dropout.p


def test_the_paper_is_initialised_as_bvlc_did():
    model = build("googlenet")
    for layer in (*layers(model, Conv), model.aux1.fc, model.aux2.fc):
        limit = math.sqrt(3 / layer.weight[0].numel())
        assert 0.99 * limit < layer.weight.abs().max() <= limit
        assert (layer.bias == 0.2).all()
    for layer in (model.linear, model.aux1.linear, model.aux2.linear):
        assert layer.weight.abs().max() <= math.sqrt(3 / 1024)
        assert (layer.bias == 0).all()


def test_the_other_is_initialised_with_a_deviation_of_a_hundredth():
    model = build("googlenet_bn")
    for layer in (model.inception5b.conv3x3.conv, model.aux1.fc, model.linear):
        assert abs(layer.weight.std() - 0.01) < 1e-4
        assert abs(layer.weight.mean()) < 1e-4
    assert all((norm.weight == 1).all() for norm in layers(model, nn.BatchNorm2d))


def test_recipes_leave_the_auxiliary_classifiers_out_for_digits():
    for recipe in plugin.cnnzoo_recipes():
        options = {"aux": False} if recipe.dataset == "digits" else {}
        assert recipe.settings.get("options", {}) == options
