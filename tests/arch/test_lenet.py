"""LeNet-5 against the paper: counts, shapes, and a forward pass written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cnn_arch_lenet.lenet5 import TABLE_I, LeNet5, codes
from cnn_core.errors import UnknownNameError
from cnn_core.layers import features, lecun_uniform_
from networks import SPECS, build, traced

# LeCun et al. (1998), section II.B: layer, trainable parameters, connections.
PAPER = {
    "c1": (156, 122_304),
    "s2": (12, 5_880),
    "c3": (1_516, 151_600),
    "s4": (32, 2_000),
    "c5": (48_120, 48_120),
    "f6": (10_164, 10_164),
    "output": (0, 840),
}


def test_the_1998_network_has_the_papers_parameters_and_connections():
    found = {stage.name: (stage.params, stage.connections) for stage in traced("lenet5").stages}
    assert found == PAPER
    assert traced("lenet5").connections == 340_908


def test_the_modern_network_has_more_connections_in_c3_and_the_output():
    assert traced("lenet5_modern").connections == 122_304 + 241_600 + 48_120 + 10_164 + 850


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_the_connections_of_the_spec_are_the_networks(name):
    assert traced(name).connections == SPECS[name].connections


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern"])
def test_stages_have_the_papers_sizes_and_c5_sees_the_whole_image(name):
    stages = traced(name).stages
    assert [stage.output for stage in stages] == [
        (6, 28, 28),
        (6, 14, 14),
        (16, 10, 10),
        (16, 5, 5),
        (120, 1, 1),
        (84,),
        (10,),
    ]
    assert [stage.receptive_field for stage in stages] == [5, 6, 14, 16, 32, 32, 32]


def test_table_i_has_60_kernels_10_for_each_map_of_s2():
    kernels = [i for inputs in TABLE_I for i in inputs]
    assert len(kernels) == 60
    assert all(kernels.count(i) == 10 for i in range(6))
    assert [len(inputs) for inputs in TABLE_I] == [3] * 6 + [4] * 9 + [6]
    assert len(set(TABLE_I)) == 16


def squash(a: float) -> float:
    return 1.7159 * math.tanh(2 * a / 3)


def subsample(x, coefficient, bias):
    maps, size = len(x), len(x[0]) // 2
    return [
        [
            [
                squash(
                    coefficient[m]
                    * (
                        x[m][2 * r][2 * c]
                        + x[m][2 * r][2 * c + 1]
                        + x[m][2 * r + 1][2 * c]
                        + x[m][2 * r + 1][2 * c + 1]
                    )
                    + bias[m]
                )
                for c in range(size)
            ]
            for r in range(size)
        ]
        for m in range(maps)
    ]


def convolve(x, kernels, bias):
    """`kernels[j]` is a list of (input map, 5x5 kernel)."""
    size = len(x[0]) - 4
    out = []
    for j, inputs in enumerate(kernels):
        rows = []
        for r in range(size):
            row = []
            for c in range(size):
                total = bias[j]
                for i, k in inputs:
                    for u in range(5):
                        for v in range(5):
                            total += k[u][v] * x[i][r + u][c + v]
                row.append(squash(total))
            rows.append(row)
        out.append(rows)
    return out


def dense(weight):
    return [list(enumerate(kernels)) for kernels in weight]


def literal_lenet5(w: dict[str, list], image: list) -> list[float]:
    """The 1998 network in plain Python numbers, straight from the paper."""
    x = convolve(image, dense(w["c1.weight"]), w["c1.bias"])
    x = subsample(x, w["s2.coefficient"], w["s2.bias"])
    kernels = iter(w["c3.weight"])
    sparse = [[(i, next(kernels)) for i in inputs] for inputs in TABLE_I]
    x = convolve(x, sparse, w["c3.bias"])
    x = subsample(x, w["s4.coefficient"], w["s4.bias"])
    x = convolve(x, dense(w["c5.weight"]), w["c5.bias"])
    c5 = [m[0][0] for m in x]
    f6 = [
        squash(sum(a * b for a, b in zip(row, c5, strict=True)) + bias)
        for row, bias in zip(w["f6.weight"], w["f6.bias"], strict=True)
    ]
    return [
        -sum((a - b) ** 2 for a, b in zip(f6, code, strict=True)) for code in w["output.codes"]
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_forward_pass_written_in_loops_gives_the_same_distances(seed):
    torch.manual_seed(seed)
    model = LeNet5().eval()
    image = torch.rand(1, 1, 32, 32) * 1.275 - 0.1
    weights = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    expected = torch.tensor(literal_lenet5(weights, image[0].tolist()))
    with torch.no_grad():
        found = model(image)[0]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_nearest_code_has_the_largest_output():
    model = LeNet5().eval()
    outputs = model.output(codes(10) + 0.1 * torch.randn(10, 84))
    assert outputs.argmax(1).tolist() == list(range(10))
    assert (outputs <= 0).all()


def test_codes_are_distinct_pictures_of_minus_one_and_one():
    ten = codes(10)
    assert ten.shape == (10, 84)
    assert set(ten.unique().tolist()) == {-1.0, 1.0}
    apart = torch.cdist(ten, ten, p=1) / 2  # pixels that differ
    assert (apart + 84 * torch.eye(10)).min() >= 8
    assert torch.equal(codes(12)[:10], ten)
    assert torch.equal(codes(3), ten[:3])
    assert torch.equal(codes(12), codes(12))
    assert len(codes(12).unique(dim=0)) == 12


def test_codes_and_the_c3_table_are_not_trained():
    model = LeNet5()
    assert sum(p.numel() for p in model.parameters()) == 60_000
    assert "output.codes" in model.state_dict()
    assert not any("pairs" in name for name in model.state_dict())


def test_initialisation_stays_within_2_4_over_the_fan_in():
    torch.manual_seed(0)
    model = LeNet5()
    for name, fan_in in (("c1", 25), ("c5", 400), ("f6", 120), ("s2", 4)):
        for parameter in model.get_submodule(name).parameters():
            assert parameter.abs().max() <= 2.4 / fan_in
    assert model.c5.weight.abs().max() > 0.95 * 2.4 / 400
    maps_seen = [len(inputs) for inputs in TABLE_I for _ in inputs]
    for kernel, seen in zip(model.c3.weight, maps_seen, strict=True):
        assert kernel.abs().max() <= 2.4 / (25 * seen)
    lone = nn.Sequential(nn.Linear(4, 2))
    lecun_uniform_(lone)
    assert lone[0].weight.abs().max() <= 0.6


def test_c3_sees_only_the_maps_of_table_i():
    model = LeNet5()
    x = torch.randn(1, 6, 14, 14, requires_grad=True)
    for j, inputs in enumerate(TABLE_I):
        (gradient,) = torch.autograd.grad(model.c3(x)[0, j].sum(), x)
        seen = gradient.abs().sum((0, 2, 3)) > 0
        assert tuple(seen.nonzero().squeeze(1).tolist()) == inputs


def test_features_are_the_named_stages_outputs():
    model = build("lenet5_modern").eval()
    found = features(model, torch.randn(2, 1, 32, 32), ("c1", "s4", "f6"))
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "c1": (2, 6, 28, 28),
        "s4": (2, 16, 5, 5),
        "f6": (2, 84),
    }
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(UnknownNameError, match="unknown stage 'c9'"):
        features(model, torch.randn(2, 1, 32, 32), ("c9",))
