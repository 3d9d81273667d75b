"""The figures of what is inside a network: what they draw is what the network does."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from torch import Tensor, nn

import cnn_core
from cnn_core import create_model
from cnn_core.training import Run
from cnn_viz import draw
from cnn_viz.ingredients import Ingredients
from cnn_viz.wiring import wiring


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> Ingredients:
    out = tmp_path_factory.mktemp("inside") / "run"
    run = cnn_core.train(
        "lenet5_modern", "digits", out=out, progress=False, epochs=2, batch_size=32, device="cpu"
    )
    return Ingredients(run, device="cpu")


@pytest.fixture(scope="module")
def run(ingredients: Ingredients) -> Run:
    return ingredients.run


@pytest.fixture(scope="module")
def segmenting(tmp_path_factory: pytest.TempPathFactory) -> Ingredients:
    out = tmp_path_factory.mktemp("segmenting") / "run"
    options = {"epochs": 1, "image_size": 32, "options": {"width": 4, "depth": 2}}
    run = cnn_core.train(
        "unet_same", "digit_scenes", out=out, progress=False, device="cpu", **options
    )
    return Ingredients(run, device="cpu")


def written(figure: Figure) -> list[str]:
    """Everything that is written in the axes of a figure."""
    return [text.get_text() for ax in figure.axes for text in ax.texts if text.get_text()]


# architecture


class Crossing(nn.Module):
    """Two stages that an operation outside of them skips to, and one that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.last, self.unused = nn.Conv2d(4, 2, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x * 2)
        return self.last(y + x)


def test_wiring_follows_maps_past_stages_and_through_what_is_between():
    found = wiring(Crossing, ["first", "second", "last", "unused", "absent"], (1, 8, 8))
    assert found.stages == ("first", "second", "last")
    assert found.edges == {
        ("input", "first"),
        ("first", "second"),
        ("second", "last"),
        ("first", "last"),
    }
    assert not found.additions  # the addition is in no stage


@pytest.mark.parametrize(
    ("model", "additions", "joins"),
    [
        ("resnet20_cifar", {"conv2_x": 3, "conv3_x": 3, "conv4_x": 3}, {}),
        ("resnet50", {"conv2_x": 3, "conv3_x": 4, "conv4_x": 6, "conv5_x": 3}, {}),
        ("vgg11", {}, {}),
        ("lenet5", {}, {}),
    ],
)
def test_a_chain_has_the_residual_blocks_of_its_table_and_nothing_else(model, additions, joins):
    spec = cnn_core.get_spec(model)
    found = wiring(lambda: create_model(model), spec.stages, spec.input)
    assert found.edges == set(zip(("input", *spec.stages), spec.stages, strict=False))
    assert (found.additions, found.joins) == (additions, joins)


def test_every_inception_module_concatenates_once():
    spec = cnn_core.get_spec("googlenet")
    found = wiring(lambda: create_model("googlenet"), spec.stages, spec.input)
    assert found.joins == {name: 1 for name in spec.stages if name.startswith("inception")}
    assert not found.additions


def test_architecture_names_stages_sizes_and_parameters(run, ingredients):
    figure = draw("architecture", run, device="cpu")
    found, model = written(figure), ingredients.model
    stages = cnn_core.get_spec("lenet5_modern").stages
    sizes = ["6 x 28 x 28", "6 x 14 x 14", "16 x 10 x 10", "16 x 5 x 5", "120 x 1 x 1", "84", "10"]
    expected = ["input", "1 x 32 x 32"]
    for stage, size in zip(stages, sizes, strict=True):
        count = sum(p.numel() for p in model.get_submodule(stage).parameters())
        expected += [stage, size, *([f"{count:,}"] if count else [])]
    assert found == expected
    assert len(figure.axes[0].patches) == 8
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == sorted(heights, reverse=True)
    total = sum(p.numel() for p in model.parameters())
    assert figure.get_supxlabel().startswith(f"{total:,} parameters")
    assert "Arcs" not in figure.get_supxlabel()


def test_architecture_draws_a_u_nets_skip_connections(segmenting):
    figure = draw("architecture", segmenting.run, device="cpu")
    (ax,) = figure.axes
    names = ["input", "down.1", "down.2", "bottom", "up.2", "up.1", "output"]
    arcs = {
        (names[int(line.get_xdata()[0])], names[int(line.get_xdata()[-1])]) for line in ax.lines
    }
    assert arcs == {("down.1", "up.1"), ("down.2", "up.2")}
    assert "Arcs: maps that skip stages." in figure.get_supxlabel()
    assert "Loops" not in figure.get_supxlabel()
