"""AlexNet against the papers, a literal two-tower oracle, and torchvision."""

from __future__ import annotations

import copy
import importlib
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnn_arch_alexnet.layers import response_norm
from cnn_core.layers import features
from networks import (
    SPECS,
    assert_same,
    build,
    close,
    home_of,
    images,
    layers,
    lively,
    lively_network,
    names_of,
    on_meta,
    traced,
    with_dropout,
)


@pytest.fixture(scope="module")
def alexnet():
    """The 2012 network as initialised; tests that change it take a copy of what they change."""
    return build("alexnet").eval()


# Counts and shapes


def test_the_2012_network_has_the_papers_650000_neurons():
    stages = {stage.name: stage.output for stage in traced("alexnet").stages}
    units = {
        name: torch.Size(shape).numel()
        for name, shape in stages.items()
        if name.startswith(("conv", "fc"))
    }
    assert len(units) == 8
    assert sum(units.values()) == 659_272


def test_one_tower_has_the_2014_papers_two_tenths_of_a_percent_more_parameters():
    ratio = SPECS["alexnet_owt"].params / SPECS["alexnet"].params
    assert round(100 * (ratio - 1), 1) == 0.2


def test_the_last_pool_sees_195_pixels_at_stride_32():
    for name in ("alexnet", "alexnet_owt"):
        pool5 = next(stage for stage in traced(name).stages if stage.name == "pool5")
        assert (pool5.receptive_field, pool5.stride) == (195, 32)
        assert pool5.output == (256, 6, 6)


def table_in_docstring(name):
    """Read back each stage's output, parameters and multiply-adds from the file's docstring."""
    module = importlib.import_module(home_of(name))
    rows = {}
    for line in module.__doc__.splitlines():
        if match := re.match(r" {4}(conv|norm|pool|fc)(\d) .*?(?=\d+ @|\d{2,})(.*)", line):
            stage, rest = match[1] + match[2], line
            size = re.search(r"(\d+) @ (\d+)x(\d+)", rest)
            counts = re.search(r"([\d,]{5,}) +([\d,]{5,})$", rest)
            units = re.search(r"(?:connected|dropout) +(\d+) ", rest)
            shape = size.groups() if size else units.groups()
            numbers = counts.groups() if counts else ("0", "0")
            rows[stage] = (
                tuple(map(int, shape)),
                *(int(number.replace(",", "")) for number in numbers),
            )
    return rows


@pytest.mark.parametrize("name", names_of("alexnet"))
def test_the_table_in_the_docstring_is_what_the_network_does(name):
    found = {s.name: (s.output, s.params, s.macs) for s in traced(name).stages}
    assert table_in_docstring(name) == found
    assert tuple(found) == SPECS[name].stages


# The 2012 network, written out from the paper


def literal_norm(a, k=2.0, n=5, alpha=1e-4, beta=0.75):
    """Section 3.3: the sum over n adjacent maps, term by term."""
    maps = a.shape[1]
    out = []
    for i in range(maps):
        total = sum(a[:, j] ** 2 for j in range(max(0, i - n // 2), min(maps - 1, i + n // 2) + 1))
        out.append(a[:, i] / (k + alpha * total) ** beta)
    return torch.stack(out, dim=1)


def tower(w, layer, half):
    """The weights and biases of one GPU's half of a layer's kernels."""
    return (w[f"{layer}.{part}"].chunk(2)[half] for part in ("weight", "bias"))


def literal_alexnet(w, x, alpha=1e-4):
    """The 2012 network with two towers, each its own convolutions; joined where they talk."""

    def convolve(maps, layer, **how):
        return [F.relu(F.conv2d(maps[i], *tower(w, layer, i), **how)) for i in (0, 1)]

    def normalise_and_pool(maps):
        joined = literal_norm(torch.cat(maps, dim=1), alpha=alpha)
        return F.max_pool2d(joined, 3, 2).chunk(2, dim=1)

    maps = normalise_and_pool(convolve([x, x], "conv1", stride=4))
    maps = normalise_and_pool(convolve(maps, "conv2", padding=2))
    both = torch.cat(maps, dim=1)
    maps = convolve([both, both], "conv3", padding=1)
    maps = convolve(maps, "conv4", padding=1)
    maps = convolve(maps, "conv5", padding=1)
    x = F.max_pool2d(torch.cat(maps, dim=1), 3, 2).reshape(len(x), 256 * 6 * 6)
    x = F.relu(x @ w["fc6.weight"].T + w["fc6.bias"])
    x = F.relu(x @ w["fc7.weight"].T + w["fc7.bias"])
    return x @ w["fc8.weight"].T + w["fc8.bias"]


@pytest.mark.parametrize("training", [False, True])
def test_two_towers_written_out_give_the_same_output_and_gradient(alexnet, training):
    # In float64: in float32 a pool's two largest values can change places by rounding.
    model = with_dropout(lively(copy.deepcopy(alexnet)), 0.0).train(training).double()
    x = 50 * images(227, batch=1).double()  # to 255: normalisation matters
    weights = model.state_dict()
    assert_same(model, lambda x: literal_alexnet(weights, x), x, 1e-12)
    with torch.no_grad():
        assert not close(literal_alexnet(weights, x, alpha=1e-4 / 5), model(x), 1e-2)  # no mean


def test_alpha_multiplies_the_sum_of_squares():
    torch.manual_seed(0)
    a = 100 * torch.rand(2, 12, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(response_norm()(a), literal_norm(a), rtol=1e-12, atol=0)


def test_weights_are_normal_with_deviation_001_and_biases_as_in_section_5(alexnet):
    state = alexnet.state_dict()
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        assert weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert weight.mean().abs() < 5 * 0.01 / weight.numel() ** 0.5
        ones = name in {"conv2", "conv4", "conv5", "fc6", "fc7"}
        assert (bias == float(ones)).all(), name


def test_towers_see_only_their_own_half_of_the_maps(alexnet):
    for name, maps in (("conv2", 96), ("conv3", 256), ("conv4", 384), ("conv5", 384)):
        x = torch.rand(1, maps, 5, 5, requires_grad=True)
        layer = alexnet.get_submodule(name)
        first_tower = F.conv2d(x, layer.weight, layer.bias, padding=2, groups=layer.groups)
        (gradient,) = torch.autograd.grad(first_tower[:, : layer.out_channels // 2].sum(), x)
        seen = (gradient.abs().sum((0, 2, 3)) > 0).tolist()
        alone = name != "conv3"
        assert seen == [True] * (maps // 2) + [not alone] * (maps // 2)


# Dropout: where the paper has it, and where torchvision has it


def all_dropped(name):
    model = lively_network(name)
    assert {dropout.p for dropout in layers(model, nn.Dropout)} == {0.5}
    return with_dropout(model, 1.0).train()


@pytest.mark.parametrize("name", ["alexnet", "alexnet_small"])
def test_dropout_is_on_the_outputs_of_fc6_and_fc7(name):
    model = all_dropped(name)
    x = torch.rand(2, 3, SPECS[name].min_size, SPECS[name].min_size)
    with torch.no_grad():
        found = features(model, x, ("fc6", "fc7", "fc8"))
    assert (found["fc6"] - model.fc6.bias).abs().max() > 1e-3  # its input is not dropped
    assert torch.equal(found["fc7"], model.fc7.bias.expand(2, -1))
    assert torch.equal(found["fc8"], model.fc8.bias.expand(2, -1))


def test_dropout_of_one_tower_is_on_the_inputs_of_fc6_and_fc7():
    model = all_dropped("alexnet_owt")
    with torch.no_grad():
        found = features(model, torch.rand(2, 3, 63, 63), ("fc6", "fc7", "fc8"))
    assert torch.equal(found["fc6"], model.fc6.bias.expand(2, -1))
    assert torch.equal(found["fc7"], model.fc7.bias.expand(2, -1))
    assert (found["fc8"] - model.fc8.bias).abs().max() > 1e-3


# The network for small images


def literal_small(w, x):
    def convolve(x, layer, padding):
        return F.relu(F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"], padding=padding))

    def pool(x):  # 3x3 at stride 2; past the right and the lower edge there is nothing
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)

    x = pool(literal_norm(convolve(x, "conv1", 2)))
    x = pool(literal_norm(convolve(x, "conv2", 2)))
    for layer in ("conv3", "conv4", "conv5"):
        x = convolve(x, layer, 1)
    x = pool(x)
    cell = x.shape[-1] // 4
    x = x.reshape(len(x), 128, 4, cell, 4, cell).mean((3, 5)).flatten(1)
    for layer in ("fc6", "fc7"):
        x = F.relu(x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"])
    return x @ w["fc8.weight"].T + w["fc8.bias"]


@pytest.mark.parametrize("size", [32, 96])
def test_the_small_network_written_out_gives_the_same(size):
    model = lively_network("alexnet_small").eval()
    weights = model.state_dict()
    assert_same(model, lambda x: literal_small(weights, x), 50 * images(size), 1e-5)


def test_the_small_network_is_one_tower_and_starts_after_he():
    small, full = build("alexnet_small"), on_meta("alexnet")
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        halves = full.get_submodule(name).out_channels // 2
        assert small.get_submodule(name).out_channels == halves
    for name, fan_in in (("conv2", 48 * 25), ("conv4", 192 * 9), ("fc7", 2048)):
        layer = small.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
        assert (layer.bias == 0).all()
