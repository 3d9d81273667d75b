"""The figures, checked against the run, for any names, sizes and counts."""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import confusion_matrix, recall_score
from torch import nn

import cnn_core
from cnn_core import registry
from cnn_core.data import Batch
from cnn_core.data.dataset import Dataset
from cnn_core.errors import PluginError, UnknownNameError, UsageError
from cnn_core.plugins.discovery import Plugin
from cnn_core.registry import Entry
from cnn_core.specs import ViewSpec
from cnn_core.tasks.intervals import wilson
from cnn_core.training import Predictions, Run
from cnn_core.training import predictions as predicted
from cnn_core.training.selection import best_epoch
from cnn_core.training.trained import load_data
from cnn_viz import draw, plugin, style
from cnn_viz.attribution.cam import cams
from cnn_viz.attribution.faithfulness import (
    deletion,
    edge_map,
    insertion,
    random_map,
    randomisation,
)
from cnn_viz.commands.cli import viz
from cnn_viz.drawing.render import Drawing, draw_one, draw_or_report, views_for, write
from cnn_viz.results.inputs import ViewInputs, round_robin_by_class
from cnn_viz.views.cam_methods import NAMES, cam_methods
from cnn_viz.views.confusion import confusion
from cnn_viz.views.features import features, stage_outputs
from cnn_viz.views.filters import filters, initial_model
from cnn_viz.views.gradcam import gradcam, overlay, require_spatial_maps
from cnn_viz.views.predictions import predictions

VIEWS = [
    "curves",
    "confusion",
    "predictions",
    "confused",
    "class_scores",
    "rankings",
    "calibration",
    "coverage",
    "gradcam",
    "cam_methods",
    "faithfulness",
    "embedding",
    "architecture",
    "features",
    "arithmetic",
    "receptive_field",
    "activation_maximisation",
    "weights",
    "filters",
]
COSTLY = ("activation_maximisation",)
HOSTILE = (
    "<script>alert(1)</script>",
    "$\\foo$",
    "日本語",
    "a\nb\x1b[31m",
    "--><b>",
    "x" * 300,
    "\u202eevil",
    "&amp;",
    '"quote"',
    "",
)


def made_up(
    classes: int, count: int, right: int, shape: tuple[int, ...] = (1, 8, 8)
) -> Predictions:
    """Return predictions of which exactly the first `right` are correct."""
    targets = torch.arange(count) % classes
    outputs = targets.clone()
    outputs[right:] = (outputs[right:] + 1) % classes
    logits = torch.zeros(count, classes)
    logits[torch.arange(count), outputs] = torch.linspace(1, 9, count)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Predictions(images, logits, targets, tuple(f"class {n}" for n in range(classes)))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for ax in figure.axes for text in ax.texts if text.get_text()]


@pytest.fixture(scope="module")
def drawn(view_inputs) -> Callable[[str], Drawing]:
    """Return a function that draws a view once, as PNG, SVG and PDF."""

    @functools.cache
    def drawn_once(view: str) -> Drawing:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return draw_one(view, view_inputs, pdf=True)

    return drawn_once


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_becomes_png_svg_and_pdf_without_warnings(view, drawn, tmp_path):
    paths = write(drawn(view), tmp_path / "figures")
    assert [path.name for path in paths] == [f"{view}.{kind}" for kind in ("png", "svg", "pdf")]
    assert sorted(paths) == sorted((tmp_path / "figures").iterdir())  # no temporary file is left
    with Image.open(paths[0]) as image:
        assert min(image.size) > 300
        assert round(image.info["dpi"][0]) == 150
        assert len(image.convert("RGB").getcolors(1_000_000)) > 50
    root = ET.fromstring(paths[1].read_text("utf-8"))
    assert root.tag.endswith("svg")
    assert "<dc:date>" not in paths[1].read_text("utf-8")
    printed = paths[2].read_bytes()
    assert printed.startswith(b"%PDF-")
    assert b"/CreationDate" not in printed
    assert b"/TrueType" in printed or b"/Type0" in printed


def test_viz_writes_a_pdf_when_asked(run, tmp_path):
    for options, kinds in (((), ["png", "svg"]), (("--pdf",), ["pdf", "png", "svg"])):
        out = tmp_path / str(len(options))
        words = ["curves", str(run.path), "--out", str(out), "--device", "cpu", *options]
        done = CliRunner().invoke(viz, words, catch_exceptions=False)
        assert sorted(done.stdout.split()) == [str(out / f"curves.{kind}") for kind in kinds]
        assert sorted(path.suffix[1:] for path in out.iterdir()) == kinds


@pytest.mark.parametrize("view", VIEWS)
def test_a_figure_has_a_title_a_caption_and_is_the_same_every_time(
    view, drawn, view_inputs, monkeypatch
):
    first, draws, draw_figure = drawn(view), [], Figure.draw

    def count(figure: Figure, *arguments: Any) -> None:
        draws.append(figure)
        draw_figure(figure, *arguments)

    monkeypatch.setattr(Figure, "draw", count)
    second = draw_one(view, view_inputs)
    assert second.svg == first.svg
    assert second.png == first.png
    assert second.pdf == second.page == b""
    (figure,) = set(draws)
    assert len(draws) == 2  # once for each file
    assert "lenet5_modern" in figure.get_suptitle()
    assert figure.get_supxlabel()


def test_drawing_leaves_matplotlib_as_it_was(run):
    before = dict(matplotlib.rcParams)
    draw("curves", run)
    assert dict(matplotlib.rcParams) == before


def test_the_views_of_a_run_come_in_reading_order():
    found = [name for name, _ in views_for("classification")]
    assert found == [name for name in VIEWS if name not in COSTLY]


# curves


def test_curves_are_the_numbers_of_the_run(run):
    loss, accuracy, rate = draw("curves", run).axes
    history = run.history()
    assert [ax.get_title(loc="left") for ax in (loss, accuracy, rate)] == [
        "Loss",
        "Accuracy",
        "Learning rate",
    ]
    lines = {line.get_label(): line.get_ydata() for line in [*loss.lines, *accuracy.lines]}
    np.testing.assert_allclose(lines["training"], [line["train/loss"] for line in history])
    np.testing.assert_allclose(lines["validation"], [line["val/loss"] for line in history])
    for label, key in {
        "training, top-1": "train/top1",
        "validation, top-1": "val/top1",
        "training, top-5": "train/top5",
        "validation, top-5": "val/top5",
    }.items():
        np.testing.assert_allclose(lines[label], [100 * line[key] for line in history])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [line["lr"] for line in history])
    for ax in (loss, accuracy, rate):
        assert ax.lines[-1].get_xdata()[0] == run.metrics()[-1]["epoch"]


def test_curves_of_a_run_without_validation_or_test(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run")
    lines = [
        {key: value for key, value in line.items() if not key.startswith("val/")}
        for line in run.history()
    ]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    opened = Run.open(copy)
    assert best_epoch(opened) == len(lines)
    assert len(draw("curves", opened).axes[0].lines) == 2  # training, and the epoch kept


def test_a_top_k_that_is_always_right_is_no_curve(run, tmp_path):
    """For example the top-2 of two classes, which would compress the other curves."""
    copy = tmp_path / "run"
    shutil.copytree(run.path, copy)
    lines = run.history()
    for line in lines:
        line |= {"train/top5": 1.0, "val/top5": 1.0}
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = draw("curves", copy, device="cpu")
    assert [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == ["top-1"]


def test_curves_before_the_first_epoch_say_how_to_go_on(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run")
    (copy / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="no epoch has ended yet\ncnnzoo train --resume"):
        draw("curves", copy)


def test_the_epoch_kept_is_the_last_of_the_best_as_in_training(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run")
    scores = [0.5, 0.9, 0.8, 0.9]
    lines = [
        {"epoch": n, "train/loss": 1.0, "val/top1": score} for n, score in enumerate(scores, 1)
    ]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert best_epoch(Run.open(copy)) == 4


# confusion


def cells(figure: Figure, classes: int) -> np.ndarray:
    """Return the numbers written in the matrix, 0 for empty cells."""
    found = np.zeros((classes, classes), dtype=int)
    for text in figure.axes[0].texts:
        if text.get_text().isdigit():
            x, y = text.get_position()
            found[int(y), int(x)] = int(text.get_text())
    return found


def test_confusion_cells_are_sklearns_and_recall_stands_at_the_margin(view_inputs):
    outputs = view_inputs.predictions
    figure = draw("confusion", view_inputs.run, device="cpu")
    expected = confusion_matrix(outputs.targets, outputs.predicted)
    assert expected.trace() < expected.sum()  # there are mistakes to show
    np.testing.assert_array_equal(cells(figure, 10), expected)
    shares = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shares, expected / expected.sum(1, keepdims=True))
    margin = figure.axes[0].child_axes[0]
    recalls = recall_score(outputs.targets, outputs.predicted, average=None)
    for label, recall in zip(margin.get_yticklabels(), recalls, strict=True):
        assert label.get_text().strip("\u2007").startswith(style.percent(recall))


def test_confusion_of_forty_classes_is_written_out_and_of_a_hundred_is_not(run):
    with style.applied():
        forty = confusion(run, made_up(40, 800, 700))
        hundred = confusion(run, made_up(100, 800, 700))
    assert cells(forty, 40).sum() == 800
    assert cells(hundred, 100).sum() == 0
    assert len(hundred.axes[0].get_yticklabels()) == 100
    with style.applied():
        hundred.draw_without_rendering()
        many = confusion(run, made_up(200, 800, 700))
    heights = [label.get_window_extent().height for label in hundred.axes[0].get_yticklabels()]
    assert max(heights) < 1.2 * hundred.axes[0].get_window_extent().height / 100
    # Of 200 classes, the 40 with the most mistakes.
    assert len(many.axes[0].get_yticklabels()) == 40
    assert many.axes[0].get_xticklabels()[-1].get_text() == "other classes"
    assert "Rows: the 40 of 200 classes with the most mistakes" in many.get_supxlabel()
    assert len(forty.axes[0].get_yticklabels()) == 40
    # Neighbouring numbers do not touch: a cell is wider than three digits are.
    with style.applied():
        forty.draw_without_rendering()
    digits = [text for text in forty.axes[0].texts if text.get_text().isdigit()]
    wide = max(text.get_window_extent().width for text in digits)
    assert wide < forty.axes[0].get_window_extent().width / 40


def test_a_class_that_the_split_lacks_has_no_recall(run):
    outputs = made_up(4, 30, 20)
    some = outputs.targets != 3
    without = Predictions(
        outputs.images[some], outputs.logits[some], outputs.targets[some], outputs.classes
    )
    with style.applied():
        figure = confusion(run, without)
    labels = [label.get_text() for label in figure.axes[0].child_axes[0].get_yticklabels()]
    assert labels[3] == "no images"
    assert "no images" not in labels[:3]


# predictions


def test_the_most_confident_mistakes_come_first(run):
    outputs = made_up(10, 100, 60)
    with style.applied():
        figure = predictions(run, outputs)
    right, unsure, wrong = figure.axes
    assert unsure.get_title(loc="left").startswith("Correct, but least confident: 8 of 60")
    assert right.get_title(loc="left") == "Correct: 16 of 60, one of each class in turn"
    assert wrong.get_title(loc="left").startswith("Wrong: 16 of 40, most confident first")
    labels = [text.get_text() for text in wrong.texts]
    confidence = outputs.probabilities.amax(1)
    worst = confidence[60:].argsort(descending=True)[:16] + 60
    for label, number in zip(labels, worst.tolist(), strict=True):
        predicted, target = int(outputs.predicted[number]), int(outputs.targets[number])
        share = style.confidence(float(confidence[number]))
        assert label == f"class {predicted}  {share}\ntrue: class {target}"
    shown = wrong.images[0].get_array()
    np.testing.assert_allclose(shown, outputs.images[worst[0], 0] / 255, rtol=1e-6)


def test_right_predictions_show_every_class(run):
    with style.applied():
        figure = predictions(run, made_up(10, 100, 60))
    shown = {text.get_text().partition("\n")[0] for text in figure.axes[0].texts}
    assert shown == {f"class {n}" for n in range(10)}


@pytest.mark.parametrize(("right", "empty", "full"), [(20, 2, 0), (0, 0, 2)])
def test_no_mistakes_or_no_correct_predictions_are_reported(run, right, empty, full):
    with style.applied():
        figure = predictions(run, made_up(10, 20, right))
    assert figure.axes[empty].get_title(loc="left").endswith(": none")
    assert not figure.axes[empty].images
    assert len(figure.axes[full].images) == 16


def test_round_robin_takes_one_of_each_class_in_turn():
    assert round_robin_by_class([5, 5, 5, 2, 2, 9], 4) == [3, 0, 5, 4]
    assert round_robin_by_class([1, 1], 5) == [0, 1]


# gradcam


def test_gradcam_titles_are_the_networks_own_answers(view_inputs):
    figure = draw("gradcam", view_inputs.run, device="cpu")
    batch, classes = view_inputs.batch, view_inputs.predictions.classes
    shown = round_robin_by_class(batch.targets.tolist(), 12)
    answers = view_inputs.predictions.probabilities[batch.indices[shown]]
    labels = [text for text in texts(figure) if "%" in text]
    for label, answer in zip(labels, answers, strict=True):
        expected = f"{classes[int(answer.argmax())]}  {style.confidence(float(answer.amax()))}"
        assert label.partition("  (")[0] == expected
    assert "stage c3" in figure.get_suptitle()
    assert len(figure.axes[0].images) == 24


@pytest.mark.parametrize(("view", "maps"), [(gradcam, 12), (cam_methods, 36)])
def test_empty_maps_are_marked(view_inputs, view, maps):
    """A network of zeros has no evidence for any class."""
    model = cnn_core.create_model("lenet5_modern").eval()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with style.applied():
        figure = view(view_inputs.run, view_inputs.weights, model, view_inputs.batch)
    assert sum("empty map" in text for text in texts(figure)) == maps


def test_maps_of_a_trained_network_are_not_all_empty(view_inputs):
    trained = texts(draw("gradcam", view_inputs.run, device="cpu"))
    assert sum("empty map" in text for text in trained) < 12


# cam_methods and faithfulness


def test_cam_methods_shows_every_method_and_the_networks_own_answers(view_inputs):
    figure = draw("cam_methods", view_inputs.run, device="cpu")
    assert len(figure.axes[0].images) == 6 * 7
    assert texts(figure)[:7] == ["image", *NAMES.values()]
    shown = round_robin_by_class(view_inputs.batch.targets.tolist(), 6)
    answers = view_inputs.predictions.probabilities[view_inputs.batch.indices[shown]]
    labels = [text for text in texts(figure) if "%" in text]
    for label, answer in zip(labels, answers, strict=True):
        name = view_inputs.predictions.classes[int(answer.argmax())]
        expected = f"{name}  {style.confidence(float(answer.amax()))}"
        assert label.partition("  (")[0] == expected
    images = view_inputs.batch.images[shown]
    for column, method in enumerate(NAMES, 1):
        cam = cams(view_inputs.model, images, "c3", method=method)["c3"]
        picture = view_inputs.weights.preprocessing.denormalise(images)[1, 0].numpy()
        expected = overlay(np.repeat(picture[..., None], 3, 2), cam.heat(stride=2)[1].numpy())
        drawn = figure.axes[0].images[7 + column].get_array()
        np.testing.assert_allclose(drawn, expected, atol=1e-6)


def test_faithfulness_shows_the_measures_beside_their_baselines(view_inputs):
    figure = draw("faithfulness", view_inputs.run, device="cpu")
    deleted, inserted, road, cascade = figure.axes
    names = [label.get_text() for label in deleted.get_yticklabels()]
    assert names == ["Grad-CAM", "HiRes-CAM", "Layer-CAM", "random numbers", "edges (Sobel)"]
    images = view_inputs.batch.images[round_robin_by_class(view_inputs.batch.targets.tolist(), 16)]
    cam = cams(view_inputs.model, images, "c3", method="layer-cam")["c3"]
    for ax, measure in {deleted: deletion, inserted: insertion}.items():
        points = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
        curves = measure(view_inputs.model, images, cam.heat(stride=2), cam.classes, steps=8)
        assert points[2] == pytest.approx(float(curves.mean()), abs=1e-6)
        curves = measure(view_inputs.model, images, edge_map(images), cam.classes, steps=8)
        assert points[4] == pytest.approx(float(curves.mean()), abs=1e-6)
        noise = replace(cam, raw=random_map(cam.raw[:, None])).heat(stride=2)  # in the same box
        curves = measure(view_inputs.model, images, noise, cam.classes, steps=8)
        assert points[3] == pytest.approx(float(curves.mean()), abs=1e-6)
    assert len(road.lines) == 2 * 5  # a mean and an interval for each
    lines = {line.get_label(): line.get_ydata() for line in cascade.lines}
    assert lines["edges (Sobel)"] == pytest.approx([1.0] * 6)
    assert all(values[0] == 1 for label, values in lines.items() if label in names)
    left = randomisation(
        view_inputs.model,
        registry.get_spec("lenet5_modern").stages,
        lambda model: cams(model, images, "c3", cam.classes, "layer-cam")["c3"].raw,
    )
    assert lines["Layer-CAM"][1:] == pytest.approx([float(v.nanmean()) for v in left.values()])
    assert lines["Layer-CAM"][-1] < 0.5
    labels = [label.get_text() for label in cascade.get_xticklabels()]
    assert labels == ["trained", "output", "f6", "c5", "c3", "c1"]


# filters


def test_filters_are_the_first_convolutions_on_one_scale(view_inputs):
    before, after, bar = draw("filters", view_inputs.run, device="cpu").axes
    first = initial_model(view_inputs.run, view_inputs.weights).c1.weight.detach()
    weight = view_inputs.model.c1.weight.detach()
    limit = max(float(first.abs().max()), float(weight.abs().max()))
    for ax, part in ((before, first), (after, weight)):
        assert len(ax.images) == 6
        for image, kernel in zip(ax.images, part, strict=True):
            np.testing.assert_array_equal(image.get_array(), kernel[0])
            assert image.get_clim() == pytest.approx((-limit, limit))
    assert bar.get_ylabel() == "weight"


def test_filters_of_three_channels_are_rgb_with_grey_for_zero(view_inputs):
    model = nn.Sequential(nn.Conv2d(3, 70, 5))
    nn.init.zeros_(model[0].weight)
    with torch.no_grad():
        model[0].weight[0, 0] = 0.5  # a red kernel
    with style.applied():
        figure = filters(view_inputs, view_inputs.weights, model)
    (ax,) = figure.axes
    assert len(ax.images) == 64
    assert ax.images[0].get_array()[0, 0].tolist() == [1.0, 0.5, 0.5]
    assert ax.images[1].get_array()[0, 0].tolist() == [0.5, 0.5, 0.5]
    assert figure.get_supxlabel().startswith("64 of 70 kernels of 5 x 5")


def test_a_model_without_convolutions_has_no_filters(view_inputs):
    with pytest.raises(UsageError, match="Linear has no convolution"):
        filters(view_inputs, view_inputs.weights, nn.Linear(2, 2))


# features


def test_features_walk_through_every_stage_with_its_shape(view_inputs):
    figure = draw("features", view_inputs.run, device="cpu")
    spec = cnn_core.get_spec("lenet5_modern")
    found = texts(figure)
    for stage in spec.stages:
        assert f"{stage}\n\n" in found
    for shape in ("1 x 32 x 32", "6 x 28 x 28", "16 x 5 x 5", "120 x 1 x 1", "84", "10"):
        assert any(text.startswith(f"\n{shape}\n") for text in found)
    rows = [ax for ax in figure.axes if ax.images]
    assert [len(ax.images) for ax in rows[:6]] == [1, 6, 6, 10, 10, 1]  # c5 is a strip
    image = view_inputs.batch.images[:1]
    with torch.no_grad():
        maps = view_inputs.model.c1(image)[0]
    np.testing.assert_allclose(rows[1].images[2].get_array(), maps[2], atol=1e-5)


def test_stage_outputs_are_those_before_in_place_operations():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten())
    image = torch.randn(1, 1, 5, 5)
    outputs, logits = stage_outputs(model, image, ["0", "1"])
    assert torch.equal(outputs["0"], model[0](image)[0])
    assert outputs["0"].min() < 0 <= outputs["1"].min()
    assert logits.shape == (1, 18)
    assert not any(module._forward_hooks for module in model.modules())


# names


def test_names_from_elsewhere_harm_no_figure(view_inputs):
    """Markup, mathtext, scripts the font lacks, escape sequences, bidirectional overrides."""
    hostile = replace(view_inputs.predictions, classes=HOSTILE)
    renamed = replace(view_inputs.weights, classes=HOSTILE)
    run, model, batch = view_inputs.run, view_inputs.model, view_inputs.batch
    makers: list[Callable[[], Figure]] = [
        lambda: confusion(run, hostile),
        lambda: predictions(run, hostile),
        lambda: gradcam(run, renamed, model, batch),
        lambda: cam_methods(run, renamed, model, batch),
        lambda: features(run, renamed, model, batch),
    ]
    with style.applied():
        for make in makers:
            figure = make()
            figure.draw_without_rendering()
            shown = [*texts(figure), *(t.get_text() for t in figure.axes[0].get_yticklabels())]
            assert any("<scri" in text for text in shown)
            assert not any("\x1b" in text or "\u202e" in text for text in shown)


# views of others


def raises(run: Run) -> None:
    raise ValueError("no\nluck")


def leaves(run: Run) -> None:
    raise SystemExit(0)


def returns_text(run: Run) -> str:
    return "a figure, honestly"


def fails_late(run: Run) -> Figure:
    figure = Figure()
    figure.text(0, 0, "$\\nonsense$", parse_math=True)
    return figure


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Entry[ViewSpec]]:
    """Return a function that offers a view and returns its registry entry."""
    module = ModuleType("cnn_other")
    for function in (raises, leaves, returns_text, fails_late):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, "cnn_other", module)

    def offer(function: str, tasks: tuple[str, ...] = ("classification",)) -> Entry[ViewSpec]:
        render = f"cnn_other:{function}"
        spec = ViewSpec(name="theirs", render=render, summary="x", needs=("run",), tasks=tasks)
        entry = Entry(spec, Plugin("other", "cnn-other", "1.2.3", "cnn_other"))
        monkeypatch.setattr(registry.views(), "entry", lambda name: entry)
        monkeypatch.setattr(registry.views(), "shown_name", lambda entry: entry.spec.name)
        return entry

    return offer


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        ("raises", "ValueError: no luck"),
        ("leaves", "SystemExit: 0"),
        ("returns_text", "returned str, expected a matplotlib Figure"),
        ("fails_late", "ValueError"),
        ("not_there", "cannot import"),
    ],
)
def test_a_view_that_fails_is_named_and_harms_no_other(
    function, cause, view_inputs, third_party, caplog
):
    drawing = draw_or_report("theirs", third_party(function), view_inputs)
    assert not drawing.png
    assert len(caplog.records) == 1
    for text in (drawing.error, caplog.text):
        assert "view 'theirs' of plugin 'other' (cnn-other 1.2.3)" in text
        assert cause in text
    with pytest.raises(PluginError, match="view 'theirs'"):
        draw_one("theirs", view_inputs)


def test_strict_mode_does_not_contain(view_inputs, third_party, monkeypatch):
    monkeypatch.setenv("CNNZOO_STRICT", "1")
    with pytest.raises(PluginError, match="ValueError"):
        draw_or_report("theirs", third_party("raises"), view_inputs)


def test_the_view_in_the_readme_works(view_inputs, monkeypatch):
    readme = Path(__file__).parents[2] / "packages" / "cnn-viz" / "README.md"
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    modules = {}
    for path, source in blocks:
        name = path.removesuffix(".py").replace("/", ".")
        modules[name] = ModuleType(name)
        exec(source, vars(modules[name]))
        monkeypatch.setitem(sys.modules, name, modules[name])
    monkeypatch.setitem(sys.modules, "cnn_confidence", ModuleType("cnn_confidence"))
    (spec,) = modules["cnn_confidence.plugin"].cnnzoo_views()
    origin = Plugin("confidence", "cnn-confidence", "0.1.0", "cnn_confidence.plugin")
    drawing = draw_or_report(spec.name, Entry(spec, origin), view_inputs)
    assert not drawing.error
    assert style.THEMED in drawing.svg.decode()


def test_the_table_of_the_readme_lists_every_view():
    readme = Path(__file__).parents[2] / "packages" / "cnn-viz" / "README.md"
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", readme.read_text("utf-8"), re.MULTILINE)
    assert rows == [(spec.name, ", ".join(spec.needs)) for spec in plugin.VIEWS]


def test_an_unknown_view_suggests(run):
    with pytest.raises(UnknownNameError, match="unknown view 'gradcm', did you mean 'gradcam'"):
        draw("gradcm", run)


def test_a_view_for_another_task_is_refused(run, third_party):
    third_party("raises", tasks=("segmentation",))
    with pytest.raises(UsageError, match="'theirs' is for segmentation, but lenet5_modern does"):
        draw("theirs", run)


def test_a_run_without_weights_says_so(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "run")
    (copy / "weights.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no weights\.safetensors"):
        draw("filters", copy)
    assert draw("curves", copy).axes  # it needs none


# numbers


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_wilson_interval_is_the_published_one(hits, n, low, high):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(1.0, "100.0 %"), (0.99996, ">99.9 %"), (0.9994, "99.9 %"), (0, "0.0 %")],
)
def test_per_cent_is_never_rounded_up_to_all(fraction, shown):
    assert style.percent(fraction) == shown
    assert style.confidence(fraction) == (">99.9 %" if fraction == 1 else shown)


def test_the_batch_is_of_every_class_in_turn_also_where_the_split_is_sorted(run):
    """Folders of images are sorted: their first 64 images may all be of one class."""
    data = load_data(run, None)
    test = data.split("test")
    order = test.targets.argsort(stable=True)
    split = {"train": data.split("train"), "test": test.subset(order)}
    view_inputs = ViewInputs(run, device="cpu")
    view_inputs.dataset = Dataset(data.spec, split)
    batch, outputs = view_inputs.batch, predicted(run, device="cpu")
    assert isinstance(batch, Batch)
    assert batch.targets.tolist() == [*list(range(10)) * 6, 0, 1, 2, 3]
    assert test.targets[order[batch.indices]].tolist() == batch.targets.tolist()
    with torch.no_grad():
        logits = view_inputs.model(batch.images)
    expected = outputs.logits[order[batch.indices]]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_lines_that_are_longer_than_a_figure_are_broken_and_folders_shortened():
    title = "Confusion on the test split: lenet5_modern on imagefolder:" + "/folder" * 40
    with style.applied():
        figure = style.figure(5, 4, title, "What a caption says, and more of it, " * 9)
        figure.subplots().set_title("axes")
        figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in (figure._suptitle, figure._supxlabel)]
    for box in boxes:
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
    below, above = boxes[1].y1, boxes[0].y0
    axes = figure.axes[0].get_tightbbox()
    assert below < axes.y0 < axes.y1 < above  # nothing overlaps
    assert figure.get_suptitle().endswith("/folder/folder")
    assert "imagefolder:/…" in figure.get_suptitle()


@pytest.mark.parametrize(("name", "shown"), [("cat", "cat"), ("عرب", "\u200eعرب\u200e")])
def test_names_from_right_to_left_keep_what_stands_beside_them(name, shown):
    """Without marks "عرب → cat: 3 of 9" is drawn as if a cat had been taken for عرب."""
    assert style.short(name) == shown


@pytest.mark.parametrize("limit", [10, 11, 13, 14, 18, 20, 30])
def test_classes_that_begin_alike_are_told_apart_by_their_ends(limit):
    names = [style.short(f"class_with_a_rather_long_name_{k:02}", limit) for k in range(30)]
    assert len(set(names)) == 30
    assert {len(name) for name in names} == {limit}
    assert all(name.startswith("class") and "…" in name for name in names)
    assert style.short("n" * limit, limit) == "n" * limit


@pytest.mark.parametrize(
    ("value", "form", "shown"),
    [(-1.26, ".1f", "\u22121.3"), (-0.04, ".1f", "0.0"), (0.0, ".3g", "0"), (2.5, ".2f", "2.50")],
)
def test_a_minus_is_a_minus_and_zero_has_none(value, form, shown):
    assert style.signed(value, form) == shown


@pytest.mark.parametrize(
    ("fraction", "shown"), [(0.2, "20 %"), (0.205, "20.5 %"), (-0.05, "\u22125 %"), (1.0, "100 %")]
)
def test_ticks_that_lie_close_together_differ(fraction, shown):
    assert style.percent_tick(fraction) == shown


@pytest.mark.parametrize(
    ("fraction", "shown"), [(0.9994, "0.999"), (0.9997, ">0.999"), (1.0, "1.000"), (0.0, "0.000")]
)
def test_a_share_is_never_rounded_up_to_all(fraction, shown):
    assert style.share(fraction, 3) == shown


def test_scripts_that_the_font_lacks_are_drawn_by_one_that_is_installed(tmp_path, monkeypatch):
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((500, 700))
    pen.lineTo((900, 0))
    pen.closePath()
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": style.FALLBACKS[0][0], "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cjk.ttf")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    font_manager.fontManager.addfont(tmp_path / "cjk.ttf")
    style._installed_fallbacks.cache_clear()
    try:
        with style.applied():
            figures = [style.figure(3, 2, name, "caption") for name in ("猫", "犬")]
            warnings.simplefilter("error")
            figures[0].draw_without_rendering()
            with pytest.raises(UserWarning, match=r"Glyph .* missing from font"):
                figures[1].draw_without_rendering()
    finally:
        style._installed_fallbacks.cache_clear()


def test_maps_of_one_value_are_not_drawn(view_inputs):
    """A map of a single value cannot localise; the error explains why."""
    net = nn.Sequential(nn.Conv2d(1, 10, 32), nn.Flatten())
    cam = cams(net, view_inputs.batch.images[:2], "0")["0"]
    with pytest.raises(UsageError, match=r"stage 0 has maps of 1 x 1 for images of 32 x 32"):
        require_spatial_maps(cam, "0")


def test_files_are_written_whole_or_not_at_all(view_inputs, tmp_path, monkeypatch):
    drawing = draw_one("filters", view_inputs)
    (path, _) = write(drawing, tmp_path)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(replace(drawing, png=b"half"), tmp_path)
    assert Path(path).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["filters.png", "filters.svg"]
