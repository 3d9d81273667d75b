"""The figures of a network's internals, checked against the network itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import cnn_core
from cnn_core import create_model
from cnn_core.errors import UsageError
from cnn_core.layers.tracing import trace
from cnn_core.training import Run
from cnn_viz import draw
from cnn_viz.attribution.activation_maximisation import maximise_logits
from cnn_viz.network.convolution import convolution_step
from cnn_viz.network.graph import model_graph
from cnn_viz.network.receptive_field import pick_evenly, receptive_fields
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.views.activation_maximisation import steps_for
from cnn_viz.views.filters import initial_model


@pytest.fixture(scope="module")
def segmenting(scenes_run: Run) -> ViewInputs:
    return ViewInputs(scenes_run, device="cpu")


def written(figure: Figure) -> list[str]:
    """Return all text in the axes of a figure."""
    return [text.get_text() for ax in figure.axes for text in ax.texts if text.get_text()]


# architecture


class Crossing(nn.Module):
    """A skip connection outside of all stages, and a stage that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.last, self.unused = nn.Conv2d(4, 2, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x * 2)
        return self.last(y + x)


def test_the_graph_follows_maps_past_stages_and_through_operations_between_them():
    found = model_graph(Crossing, ["first", "second", "last", "unused", "absent"], (1, 8, 8))
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
    found = model_graph(lambda: create_model(model), spec.stages, spec.input)
    assert found.edges == set(zip(("input", *spec.stages), spec.stages, strict=False))
    assert (found.additions, found.joins) == (additions, joins)


def test_every_inception_module_concatenates_once():
    spec = cnn_core.get_spec("googlenet")
    found = model_graph(lambda: create_model("googlenet"), spec.stages, spec.input)
    assert found.joins == {name: 1 for name in spec.stages if name.startswith("inception")}
    assert not found.additions


def test_architecture_names_stages_sizes_and_parameters(run, view_inputs):
    figure = draw("architecture", run, device="cpu")
    found, model = written(figure), view_inputs.model
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
    assert "Arcs: skip connections." in figure.get_supxlabel()
    assert "Loops" not in figure.get_supxlabel()


# filters before training


def test_the_network_before_training_is_what_the_trainer_builds(run, tmp_path):
    """With a learning rate of 0 and no weight decay, the kept weights are the initial ones."""
    still = cnn_core.train(
        "lenet5_modern",
        "digits",
        out=tmp_path / "run",
        progress=False,
        device="cpu",
        epochs=1,
        lr=0.0,
        weight_decay=0.0,
        seed=7,
    )
    trained = ViewInputs(still, device="cpu")
    before, kept = initial_model(still, trained.weights).state_dict(), trained.model.state_dict()
    assert before.keys() == kept.keys()
    assert all(torch.equal(before[name], kept[name]) for name in kept)
    other = initial_model(run, trained.weights)  # of another seed
    assert not torch.equal(other.c1.weight, before["c1.weight"])


def test_building_it_again_leaves_the_random_state_as_it_was(run, view_inputs):
    state = torch.get_rng_state()
    initial_model(run, view_inputs.weights)
    assert torch.equal(torch.get_rng_state(), state)


def test_filters_before_training_are_left_out_where_they_are_not_known(run, view_inputs, tmp_path):
    copy = Run.open(shutil.copytree(run.path, tmp_path / "run"))
    facts = json.loads((copy.path / "environment.json").read_text())
    (copy.path / "environment.json").write_text(json.dumps({**facts, "torch": "1.0.0"}))
    figure = draw("filters", copy, device="cpu")
    assert (
        f"trained with PyTorch 1.0.0, this is version {torch.__version__}"
        in figure.get_supxlabel()
    )
    assert len(figure.axes) == 2  # the trained ones and their scale
    begun = cnn_core.train(
        "lenet5_modern",
        "digits",
        out=tmp_path / "second",
        progress=False,
        device="cpu",
        epochs=1,
        weights=str(run.path),
    )
    caption = draw("filters", begun, device="cpu").get_supxlabel()
    assert "not shown:\ntraining started from existing weights." in caption


# receptive fields


def test_a_convolution_sees_its_window_in_proportion_to_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 5, stride=2, padding=1), nn.ReLU())
    images = torch.randn(4, 2, 17, 17, generator=torch.Generator().manual_seed(0))
    found = receptive_fields(model, images, {"0": (5, 2)})["0"]
    assert (found.position, found.start, found.size) == ((4, 4), (7, 7), 5)
    expected = torch.zeros(17, 17)
    expected[7:12, 7:12] = model[0].weight.detach().mean(0).abs().sum(0)
    torch.testing.assert_close(found.effective, expected)
    above = int((expected > (1 - 0.9545) * expected.max()).sum())
    assert found.side == pytest.approx(above**0.5)


def test_an_even_size_under_a_padded_stride_is_placed_by_what_is_seen():
    """3 x 3, padding 1, stride 2 on 8 pixels: cell 2 sees pixels 3 to 5."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, padding=1))
    nn.init.ones_(model[0].weight)
    found = receptive_fields(model, torch.zeros(1, 1, 8, 8), {"0": (3, 2)})["0"]
    assert (found.position, found.start) == ((2, 2), (3, 3))


@pytest.mark.parametrize("name", ["view_inputs", "segmenting"])
def test_the_effective_field_lies_within_the_theoretical_one(name, request):
    made = request.getfixturevalue(name)
    spec, images = cnn_core.get_spec(made.run.recipe.model), made.batch.images[:8]
    weights = made.weights
    build = partial(
        create_model,
        weights.model,
        num_classes=weights.num_classes,
        in_channels=weights.in_channels,
        **weights.options,
    )
    stages = model_graph(build, spec.stages, tuple(images.shape[1:])).stages
    traced = trace(build, stages, tuple(images.shape[1:])).stages
    sizes = {s.name: (s.receptive_field, s.stride) for s in traced if len(s.output) == 3}
    found = receptive_fields(made.model, images, sizes)
    assert len(found) > 4
    for field in found.values():
        inside = torch.zeros_like(field.effective)
        (top, left), size = field.start, field.size
        inside[max(top, 0) : top + size, max(left, 0) : left + size] = 1
        assert not (field.effective * (1 - inside)).any()


def test_lenets_fields_are_where_its_layers_put_them(view_inputs):
    sizes = {"c1": (5, 1), "s2": (6, 2), "c3": (14, 2), "c5": (32, 4)}
    found = receptive_fields(view_inputs.model, view_inputs.batch.images, sizes)
    assert [found[name].start for name in sizes] == [(14, 14), (14, 14), (10, 10), (0, 0)]
    figure = draw("receptive_field", view_inputs.run, device="cpu")
    titles = "\n".join(ax.get_title(loc="left") for ax in figure.axes)
    for part in (
        "c1\n6 x 28 x 28, at (14, 14)\ntheoretical: 5 x 5 px",
        "theoretical: 14 x 14 px",
        "theoretical: the whole image",
    ):
        assert part in titles
    assert f"effective: {found['c3'].side:.1f} px" in titles


def test_inspection_leaves_no_trace(view_inputs):
    model, images = view_inputs.model, view_inputs.batch.images
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    try:
        receptive_fields(model, images, {"c1": (5, 1)})
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not images.requires_grad


@pytest.mark.parametrize(("count", "places"), [(3, [0, 1, 2]), (6, [0, 1, 2, 3, 4, 5])])
def test_few_stages_are_all_shown(count, places):
    assert pick_evenly([str(n) for n in range(count)], 6) == [str(n) for n in places]


def test_many_stages_are_shown_evenly():
    found = pick_evenly([str(n) for n in range(18)], 6)
    assert (len(found), found[0], found[-1]) == (6, "0", "17")


# arithmetic


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 5},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": 3, "padding": "same", "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "reflect"},
        {"kernel_size": (3, 5), "groups": 2, "padding": (0, 2)},
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_sum_is_the_networks_own_output(options, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(4, 6, **options), nn.ReLU(inplace=True))
    image = torch.randn(1, 4, 11, 12)
    found = convolution_step(model, image)
    with torch.no_grad():
        output = model[0](image)[0]
    assert found.output == pytest.approx(float(output.max()), abs=1e-5)
    assert found.output == pytest.approx(float(output[found.channel][found.position]), abs=1e-5)
    assert found.sum == pytest.approx(found.output, abs=1e-5)
    assert [name for name, _ in found.steps] == ["ReLU"]
    assert found.steps[0][1] == pytest.approx(max(found.output, 0))
    assert not model[0]._forward_pre_hooks


def test_a_window_without_padding_is_cut_from_the_image():
    torch.manual_seed(0)
    model, image = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2)), torch.randn(1, 1, 9, 9)
    found = convolution_step(model, image)
    (row, column), (top, left) = found.position, found.corner
    assert (top, left) == (2 * row, 2 * column)
    assert torch.equal(found.window, image[0, :, top : top + 3, left : left + 3].double())
    assert found.steps == ()


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("lenet5", ["times 0.6667", "tanh", "times 1.716"]),
        ("resnet20_cifar", ["batch norm", "ReLU"]),
        ("alexnet", ["ReLU"]),
    ],
)
def test_what_follows_the_convolution_is_named(model, names):
    torch.manual_seed(0)
    spec = cnn_core.get_spec(model)
    made, image = create_model(model).eval(), torch.randn(1, *spec.input)
    found = convolution_step(made, image)
    assert [name for name, _ in found.steps] == names
    assert found.sum == pytest.approx(found.output, abs=1e-5)


class Rectified(nn.Conv2d):
    """A convolution layer with a built-in ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu_()


def test_a_highest_number_below_0_is_the_convolutions_and_not_the_layers():
    model = nn.Sequential(Rectified(1, 2, 3))
    nn.init.constant_(model[0].weight, -1.0)
    nn.init.constant_(model[0].bias, -0.5)
    found = convolution_step(model, torch.ones(1, 1, 4, 4))
    assert (found.sum, found.output) == (-9.5, -9.5)
    assert found.steps == (("ReLU", 0.0),)


def test_a_model_without_convolutions_has_no_arithmetic():
    with pytest.raises(UsageError, match="Linear has no convolution"):
        convolution_step(nn.Linear(2, 2), torch.zeros(1, 2))


def test_arithmetic_writes_every_number(view_inputs):
    figure = draw("arithmetic", view_inputs.run, device="cpu")
    found = convolution_step(view_inputs.model, view_inputs.batch.images[:1])
    cells = [float(text.replace("\N{MINUS SIGN}", "-")) for text in written(figure)]
    expected = torch.cat([found.window, found.kernel, found.products]).flatten()
    torch.testing.assert_close(
        torch.tensor(cells, dtype=torch.double), expected, atol=0.005001, rtol=0
    )
    (sentence,) = [text.get_text() for part in figure.subfigs for text in part.texts]
    assert f"= {found.output:.4f}" in sentence
    assert f"ReLU: {found.output:.4f}" in sentence


# activation maximisation


def test_climbing_makes_the_network_see_every_class_and_leaves_it_as_it_was(view_inputs):
    model, known = view_inputs.model, view_inputs.weights.preprocessing
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    find = partial(
        maximise_logits,
        model,
        range(10),
        (1, 32, 32),
        torch.tensor(known.mean),
        torch.tensor(known.std),
    )
    images, first, last = find(steps=64)
    assert (images.min() >= 0) & (images.max() <= 1)
    assert last.argmax(1).tolist() == list(range(10))
    assert (last.diagonal() > first.diagonal() + 2).all()
    with torch.no_grad():
        torch.testing.assert_close(model(known.normalise(images)), last)
    assert torch.equal(find(steps=64)[0], images)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_budget_decides_on_the_steps(view_inputs):
    weights = view_inputs.weights
    assert steps_for(weights, 10) == 128
    geometry = replace(weights.preprocessing, size=(224, 224))
    slower = replace(
        weights, model="alexnet_owt", in_channels=3, preprocessing=geometry, options={}
    )
    macs = trace(lambda: create_model("alexnet_owt", num_classes=10), (), (3, 224, 224)).macs
    assert steps_for(slower, 10) == 400 * 10**9 // (30 * macs)
    assert 16 <= steps_for(slower, 10) < 128
    with pytest.raises(
        UsageError, match=r"vgg16: 16 steps for 10 classes cost 7,.* at most 400 billion"
    ):
        steps_for(replace(slower, model="vgg16"), 10)


def test_every_class_has_its_image_and_numbers(view_inputs):
    figure = draw("activation_maximisation", view_inputs.run, device="cpu")
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert [title.split("\n")[0] for title in titles] == list(view_inputs.weights.classes)
    assert all(len(ax.images) == 1 for ax in figure.axes)
