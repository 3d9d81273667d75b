"""Figures, maps and the report of a multilabel network."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cnn_core.cli.app import app
from cnn_core.errors import UsageError
from cnn_core.training import label_predictions, predictions, train
from cnn_viz.drawing.render import views_for
from cnn_viz.results.labels import label_scores

sklearn_metrics = pytest.importorskip("sklearn.metrics")
CLASSES = ("left", "right", "top")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 60 images with bright sides; one is labelled with each side that is bright."""
    root = tmp_path_factory.mktemp("sides")
    generator, lines = np.random.default_rng(0), ["path,left,right,top"]
    for number in range(60):
        pixels = generator.integers(0, 60, (16, 16), dtype=np.uint8)
        parts = {"left": pixels[:, :4], "right": pixels[:, -4:], "top": pixels[:4, 4:-4]}
        flags = [number >> bit & 1 for bit in range(3)]
        for name, flag in zip(CLASSES, flags, strict=True):
            parts[name] += np.uint8(150 * flag)
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"{number}.png,{','.join(map(str, flags))}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    settings = {"epochs": 3, "batch_size": 8, "optimizer": "sgd", "lr": 0.03, "progress": False}
    return train(
        "lenet5_modern", f"csv:{root / 'labels.csv'}", out=root / "run", device="cpu", **settings
    )


def test_scores_by_label_are_those_of_scikit_learn(run):
    found = label_predictions(run)
    for number, score in enumerate(label_scores(found)):
        truth, predicted = found.targets[:, number], found.predicted[:, number]
        ap = sklearn_metrics.average_precision_score(truth, found.logits[:, number])
        assert score.ap == pytest.approx(ap, abs=1e-12)
        assert score.support == truth.sum()
        for name in ("f1", "precision", "recall"):
            value = getattr(score, name)
            expected = getattr(sklearn_metrics, f"{name}_score")(truth, predicted, zero_division=0)
            assert (0 if math.isnan(value) else value) == pytest.approx(expected, abs=1e-12)


def invoke(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_report_has_the_labels_and_every_view_that_applies(run, tmp_path):
    done = invoke("report", run.path, "--out", tmp_path, "--format", "md")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "mean average precision over the labels of" in page
    assert "could not be drawn" not in page
    figures = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert {name for name, _ in views_for("multilabel")} == figures
    assert {"curves", "label_scores", "label_cams", "filters"} <= figures


def test_the_numbers_of_the_report_are_those_of_the_run(run, tmp_path):
    done = invoke("report", run.path, "--out", tmp_path, "--format", "json")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for name in ("map", "macro_f1", "micro_f1", "exact_match"):
        assert report["test"][name] == pytest.approx(run.test_metrics()[f"test/{name}"])
    assert [row["name"] for row in report["classes"]] == list(CLASSES)


def test_maps_are_drawn_for_a_class_by_name(run, tmp_path):
    image = run.path.parent / "7.png"
    done = invoke("cam", run.path, image, "--class", "top", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "7.grad-cam.png").is_file()


@pytest.mark.parametrize("view", ["confusion", "masks"])
def test_views_of_other_tasks_say_that_they_are(run, view):
    done = invoke("viz", view, run.path)
    assert isinstance(done.exception, UsageError)
    assert "but lenet5_modern does multilabel" in str(done.exception)
    with pytest.raises(UsageError, match="a multilabel run, expected classification"):
        predictions(run)
