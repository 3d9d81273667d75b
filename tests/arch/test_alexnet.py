"""AlexNet against the papers, a literal two-tower oracle, and torchvision."""

from __future__ import annotations

import copy
import importlib
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cnn_arch_alexnet import layers, plugin
from cnn_arch_alexnet.weights import key_maps
from cnn_core.errors import UsageError
from cnn_core.layers import features, trace

SPECS = {spec.name: spec for spec in plugin.cnnzoo_models()}
ALL = sorted(SPECS)


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


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@torch.no_grad()
def lively(model, seed=0):
    """Weights that let signals through and biases that are not all alike, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.normal_(generator=generator).mul_(scale)
    return model


def output_and_gradient(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(y.shape, generator=generator, dtype=y.dtype)
    (gradient,) = torch.autograd.grad((weights * y).sum(), x)
    return y.detach(), gradient


@pytest.fixture(scope="module")
def alexnet():
    """The 2012 network as initialised; tests that change it take a copy of what they change."""
    return build("alexnet").eval()


# Counts and shapes


@pytest.mark.parametrize(
    ("name", "params", "macs", "n_state"),
    [
        ("alexnet", 60_965_224, 724_406_816, 16),
        ("alexnet_owt", 61_100_840, 714_188_480, 16),
        ("alexnet_small", 9_345_226, 100_962_304, 16),
    ],
)
def test_counts_are_the_golden_ones_and_the_specs(name, params, macs, n_state):
    found = traced(name)
    assert (found.params, found.macs) == (params, macs)
    assert (SPECS[name].params, SPECS[name].macs) == (params, macs)
    assert len(build_meta(name).state_dict()) == n_state


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
    module = importlib.import_module(SPECS[name].target.partition(":")[0])
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


@pytest.mark.parametrize("name", ALL)
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
    model = without_dropout(lively(copy.deepcopy(alexnet))).train(training).double()
    torch.manual_seed(0)
    x = 50 * torch.randn(1, 3, 227, 227, dtype=torch.float64)  # to 255: normalisation matters
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    found = output_and_gradient(model, x)
    expected = output_and_gradient(lambda x: literal_alexnet(weights, x), x)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()
    with torch.no_grad():
        mean_for_sum = literal_alexnet(weights, x, alpha=1e-4 / 5)
    assert (found[0] - mean_for_sum).abs().max() > 1e-2 * found[0].abs().max()


def test_alpha_multiplies_the_sum_of_squares():
    torch.manual_seed(0)
    a = 100 * torch.rand(2, 12, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(layers.response_norm()(a), literal_norm(a), rtol=1e-12, atol=0)


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


def all_dropped(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.5
            module.p = 1.0
    return model.train()


@pytest.mark.parametrize("name", ["alexnet", "alexnet_small"])
def test_dropout_is_on_the_outputs_of_fc6_and_fc7(name):
    model = all_dropped(lively(build(name)))
    x = torch.rand(2, 3, SPECS[name].min_size, SPECS[name].min_size)
    with torch.no_grad():
        found = features(model, x, ("fc6", "fc7", "fc8"))
    assert (found["fc6"] - model.fc6.bias).abs().max() > 1e-3  # its input is not dropped
    assert torch.equal(found["fc7"], model.fc7.bias.expand(2, -1))
    assert torch.equal(found["fc8"], model.fc8.bias.expand(2, -1))


def test_dropout_of_one_tower_is_on_the_inputs_of_fc6_and_fc7():
    model = all_dropped(lively(build("alexnet_owt")))
    with torch.no_grad():
        found = features(model, torch.rand(2, 3, 63, 63), ("fc6", "fc7", "fc8"))
    assert torch.equal(found["fc6"], model.fc6.bias.expand(2, -1))
    assert torch.equal(found["fc7"], model.fc7.bias.expand(2, -1))
    assert (found["fc8"] - model.fc8.bias).abs().max() > 1e-3


# torchvision's network


def test_one_tower_has_torchvisions_keys_and_shapes():
    keymap = key_maps("alexnet_owt")["torchvision"]
    ours = build_meta("alexnet_owt")
    with torch.device("meta"):
        theirs = torchvision.models.alexnet()
    theirs.load_state_dict(keymap.to_theirs(ours.state_dict()), strict=True, assign=True)
    ours.load_state_dict(keymap.to_ours(theirs.state_dict()), strict=True, assign=True)
    assert key_maps("alexnet") == key_maps("alexnet_small") == {}


@pytest.fixture(scope="module")
def pair():
    """Our network in one tower and torchvision's, sharing weights."""
    ours = lively(build("alexnet_owt", num_classes=10))
    with torch.device("meta"):
        theirs = torchvision.models.alexnet(num_classes=10)
    state = key_maps("alexnet_owt")["torchvision"].to_theirs(ours.state_dict())
    theirs.load_state_dict(state, strict=True, assign=True)
    return ours, theirs


@pytest.mark.parametrize("size", [63, 100, 224])
@pytest.mark.parametrize("training", [False, True])
def test_one_tower_computes_what_torchvision_does(pair, size, training):
    torch.manual_seed(size)
    x = torch.randn(2, 3, size, size)
    found = []
    for model in pair:
        torch.manual_seed(0)  # dropout: the same units, if it is in the same places
        found.append(output_and_gradient(model.train(training), x))
    (ours, our_gradient), (theirs, their_gradient) = found
    assert torch.equal(ours, theirs)
    assert torch.equal(our_gradient, their_gradient)
    assert ours.std() > 1e-3


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
    model = lively(build("alexnet_small")).eval()
    torch.manual_seed(0)
    x = 50 * torch.randn(2, 3, size, size)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    found = output_and_gradient(model, x)
    expected = output_and_gradient(lambda x: literal_small(weights, x), x)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_the_small_network_is_one_tower_and_starts_after_he():
    small, full = build("alexnet_small"), build_meta("alexnet")
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        halves = full.get_submodule(name).out_channels // 2
        assert small.get_submodule(name).out_channels == halves
    for name, fan_in in (("conv2", 48 * 25), ("conv4", 192 * 9), ("fc7", 2048)):
        layer = small.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
        assert (layer.bias == 0).all()


# What every network of the zoo keeps


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (37, 4)])
def test_classes_and_channels_are_honoured(name, classes, channels):
    model = build_meta(name, num_classes=classes, in_channels=channels).eval()
    size = SPECS[name].input[1]
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, classes)
    model.reset_classifier(7)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ALL)
def test_from_the_smallest_size_up_every_size_works(name):
    model, smallest = build_meta(name).eval(), SPECS[name].min_size
    for height, width in ((smallest, smallest), (smallest + 1, smallest + 30), (251, smallest)):
        shape = model(torch.empty(1, 3, height, width, device="meta")).shape
        assert shape == (1, SPECS[name].num_classes)


@pytest.mark.parametrize("name", ALL)
def test_below_the_smallest_size_the_error_names_it(name, monkeypatch):
    model, smallest = build_meta(name).eval(), SPECS[name].min_size
    for height, width in ((smallest - 1, 300), (300, smallest - 1)):
        x = torch.empty(1, 3, height, width, device="meta")
        with pytest.raises(UsageError, match=rf"{height} x {width}, .* {smallest} x {smallest}"):
            model(x)
    # and it is the smallest: without the check, torch finds nothing to pool
    module = importlib.import_module(SPECS[name].target.partition(":")[0])
    monkeypatch.setattr(module, "require_size", lambda *_: None)
    with pytest.raises(RuntimeError):
        model(torch.empty(1, 3, smallest - 1, smallest - 1, device="meta"))


@pytest.mark.parametrize("name", ALL)
def test_gradient_reaches_every_parameter_and_images_stay_apart(name):
    model, size = build(name).eval(), SPECS[name].min_size + 5
    x = torch.randn(3, 3, size, size)
    together = model(x)
    together.logsumexp(1).sum().backward()
    for parameter, value in model.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.abs().sum() > 0, parameter
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in x])
    torch.testing.assert_close(alone, together.detach(), rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_weights():
    one, same, other = (build("alexnet_small", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


def test_recipes_are_for_networks_of_the_package():
    recipes = {recipe.name: recipe for recipe in plugin.cnnzoo_recipes()}
    assert set(recipes) == {"alexnet-imagenet-paper", "alexnet_small-digits"}
    assert all(recipe.model in SPECS for recipe in recipes.values())
