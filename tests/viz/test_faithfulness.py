"""Faithfulness scores, on networks and maps for which the scores are known."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core import create_model
from cnn_core.errors import UnknownNameError, UsageError
from cnn_viz import cams
from cnn_viz.attribution.faithfulness import (
    deletion,
    edge_map,
    energy_in_mask,
    insertion,
    pointing_game,
    random_map,
    randomisation,
    randomised,
    rank_correlation,
    road,
)


class Patch(nn.Module):
    """Class 1 is the mean brightness of the upper left corner, 8 x 8, times 20; class 0 is 5."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("corner", torch.zeros(16, 20))
        self.corner[:8, :8] = 1 / 64

    def forward(self, x: Tensor) -> Tensor:
        brightness = 20 * (x.mean(1) * self.corner).sum((1, 2))
        return torch.stack([torch.full_like(brightness, 5.0), brightness], 1)


@pytest.fixture
def images() -> Tensor:
    return 0.5 + 0.5 * torch.rand(3, 2, 16, 20, generator=torch.Generator().manual_seed(0))


TRUE = torch.zeros(3, 16, 20)
TRUE[:, :8, :8] = 1 + torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
ONES = torch.ones(3, dtype=torch.int64)


def test_the_truth_is_deleted_soon_and_inserted_soon(images):
    maps = {"true": TRUE, "random": random_map(images), "edges": edge_map(images), "wrong": -TRUE}
    deleted = {name: deletion(Patch(), images, heat, ONES) for name, heat in maps.items()}
    inserted = {name: insertion(Patch(), images, heat, ONES) for name, heat in maps.items()}
    ends = Patch()(images).softmax(1)[:, 1]
    for curve in deleted.values():
        assert curve.shape == (3, 17)
        torch.testing.assert_close(curve[:, 0], ends)
        assert curve[:, -1].max() < 0.01
    for curve in inserted.values():
        torch.testing.assert_close(curve[:, -1], ends)
    for name in ("random", "edges"):
        assert (deleted["true"].mean(1) < deleted[name].mean(1) - 0.1).all()
        assert (deleted["wrong"].mean(1) > deleted[name].mean(1) + 0.1).all()


def test_insertion_rises_where_the_evidence_gets_sharp():
    """A fine chequered corner, which a blur erases completely."""

    class Chequered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            roughness = 20 * x[:, :, :8, :8].diff(dim=3).abs().mean((1, 2, 3))
            return torch.stack([torch.full_like(roughness, 5.0), roughness], 1)

    board = (torch.arange(40)[:, None] + torch.arange(40)) % 2
    images = board.float().expand(3, 1, 40, 40)
    true = torch.zeros(3, 40, 40)
    true[:, :8, :8] = 1
    good = insertion(Chequered(), images, true, ONES).mean(1)
    chance = insertion(Chequered(), images, random_map(images), ONES).mean(1)
    assert (good > chance + 0.2).all()


def test_deletion_equals_a_plain_loop(images):
    heat = random_map(images, seed=5)
    found = deletion(Patch(), images, heat, ONES, steps=4)
    for n in range(3):
        order = heat[n].flatten().argsort(descending=True)
        for step in range(5):
            image = images[n].clone().view(2, -1)
            image[:, order[: 320 * step // 4]] = 0
            expected = Patch()(image.view(1, 2, 16, 20)).softmax(1)[0, 1]
            torch.testing.assert_close(found[n, step], expected)


def test_road_is_positive_for_the_truth_negative_for_its_opposite_and_small_for_chance():
    """Only the corner is bright: pixels removed from it are filled in dark."""
    images = torch.zeros(3, 2, 16, 20)
    images[:, :, :8, :8] = 1
    true, wrong, chance = (
        road(Patch(), images, heat, ONES) for heat in (TRUE, -TRUE, random_map(images))
    )
    assert (true > 0.3).all()
    assert (wrong < -0.3).all()
    assert chance.abs().max() < 0.3


def test_roads_imputed_pixels_satisfy_its_equation(images):
    from cnn_viz.attribution.faithfulness import _impute

    gone = random_map(images, seed=2) < 0.6
    gone[:, 0, 0] = gone[:, 15, :] = True  # the border, too
    filled = _impute(images, gone, 0.0, torch.Generator())
    weights = torch.tensor([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    kernel = weights.expand(2, 1, 3, 3)
    total = F.conv2d(torch.ones_like(images), kernel, padding=1, groups=2)
    means = F.conv2d(filled, kernel, padding=1, groups=2) / total
    both = gone[:, None].expand_as(images)
    torch.testing.assert_close(filled[both], means[both], atol=1e-5, rtol=1e-5)
    assert torch.equal(filled[~both], images[~both])


def test_energy_and_pointing_game_are_sums_and_places():
    heat = torch.zeros(3, 4, 4)
    heat[0, 0, 0], heat[0, 3, 3] = 3.0, 1.0
    heat[1, 0, 0], heat[1, 3, 3] = 1.0, 3.0
    mask = torch.zeros(3, 4, 4, dtype=torch.bool)
    mask[:, :2, :2] = True
    energy = energy_in_mask(heat, mask)
    assert energy[:2].tolist() == [0.75, 0.25]
    assert energy[2].isnan()
    assert pointing_game(heat, mask).tolist() == [True, False, False]


def test_the_edge_map_finds_an_edge_and_knows_its_slope():
    images = torch.zeros(1, 3, 8, 8)
    images[:, :, :, 4:] = 1
    edges = edge_map(images)[0]
    assert edges[:, 3:5].min() == edges[:, 3:5].max() == 0.5
    assert edges[:, :3].max() == edges[:, 5:].max() == 0
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert edge_map(ramp)[0, 1:-1, 1:-1].unique().tolist() == [1.0]


def test_rank_correlation_is_scipys(images):
    one, other = images[:, 0].round(decimals=1), images.mean(1)  # with ties
    pairs = zip(one.flatten(1), other.flatten(1), strict=True)
    expected = [spearmanr(a, b).statistic for a, b in pairs]
    np.testing.assert_allclose(rank_correlation(one, other), expected)
    assert rank_correlation(one, torch.zeros_like(one)).isnan().all()


def test_randomised_weights_are_shuffled_in_a_copy():
    model = create_model("lenet5_modern").eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    other = randomised(model, ["c3", "output"], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
        changed = other.state_dict()[name]
        assert torch.equal(changed.flatten().sort().values, tensor.flatten().sort().values)
        assert torch.equal(changed, tensor) == (name.partition(".")[0] not in ("c3", "output"))
    again = randomised(model, ["c3", "output"], seed=1).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in other.state_dict().items())
    assert all(isinstance(p, nn.Parameter) for p in other.parameters())
    whole = randomised(model)
    assert not any(
        torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True)
    )
    with pytest.raises(UnknownNameError, match="unknown stage 'c33', did you mean 'c3'"):
        randomised(model, ["c33"])


METHODS = ["grad-cam", "grad-cam++", "hires-cam", "xgrad-cam", "layer-cam", "eigen-cam"]


@pytest.mark.parametrize("method", METHODS)
def test_every_cam_changes_with_the_weights_and_the_edges_do_not(method):
    torch.manual_seed(0)
    model = create_model("lenet5_modern").eval()
    images = torch.randn(4, 1, 32, 32)
    stages = ("c1", "s2", "c3", "s4", "c5", "f6", "output")

    def explain(model: nn.Module) -> Tensor:
        return cams(model, images, "c3", [1, 2, 3, 4], method)["c3"].raw

    left = randomisation(model, stages, explain)
    assert list(left) == ["output", "f6", "c5", "c3", "c1"]  # pooling has no weights
    assert left["c1"].shape == (4,)
    assert (left["c3"].abs() < 0.99).all()
    assert (left["c1"].abs() < 0.99).all()
    edges = randomisation(model, stages, lambda _: edge_map(images))
    assert all((share > 0.9999).all() for share in edges.values())
    if method == "eigen-cam":  # what comes after the stage plays no part in it
        assert (left["output"] > 0.9999).all()
    else:
        assert (left["output"] < 0.9999).all()
    with pytest.raises(UnknownNameError, match="unknown stage 'x3'"):
        randomisation(model, ["x3"], explain)


def test_nothing_is_left_behind(images):
    class Net(Patch):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return super().forward(x + 0 * torch.rand(()))

    net, kept, state = Net().train(), images.clone(), torch.get_rng_state()
    for measure in (deletion, insertion, road):
        found = measure(net, images, TRUE, ONES)
        assert found.grad_fn is None
    assert net.training
    assert torch.equal(images, kept)
    assert torch.equal(state, torch.get_rng_state())


def test_maps_and_steps_that_do_not_fit_are_refused(images):
    with pytest.raises(UsageError, match=r"map of shape \[3, 4, 4\]: expected \[3, 16, 20\]"):
        deletion(Patch(), images, torch.zeros(3, 4, 4), ONES)
    with pytest.raises(UsageError, match="steps = 0: expected a positive number"):
        insertion(Patch(), images, TRUE, ONES, steps=0)
