"""Thresholds: of pixels, chosen on validation images, or given to `predict`."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_core.create import build_untrained
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks import metrics_of, thresholds_of
from cnn_core.training import Predictor, Trained, evaluate, export, predict, segment, train
from cnn_core.training.outputs import segmented
from cnn_core.weights.native import read_weights, write_weights

sklearn_metrics = pytest.importorskip("sklearn.metrics")
SCORES = {
    "f1": sklearn_metrics.f1_score,
    "balanced_accuracy": sklearn_metrics.balanced_accuracy_score,
}


def recipe(**settings):
    return Recipe(model="unet_same", data="digit_scenes", **settings)


def pixels(seed=0, count=12):
    """Return logits N 2 h w and targets N h w, of which some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(count, 5, 7, generator=generator) < 0.2).to(torch.uint8)
    logits = torch.randn(count, 2, 5, 7, generator=generator)
    logits[:, 1] += 1.5 * targets - 2
    # Bins are 1 / 128 wide, so scores this far apart are told apart as if they were sorted.
    logits = (logits * 16).round() / 16
    targets[torch.rand(targets.shape, generator=generator) < 0.1] = 255
    return logits, targets


def changed(run, folder, **changes):
    """Write random weights like those of a run, with some fields replaced; return the path."""
    weights = dataclasses.replace(read_weights(run.path), **changes)
    torch.manual_seed(0)
    tensors = build_untrained(weights).state_dict()
    write_weights(folder / "weights.safetensors", dataclasses.replace(weights, tensors=tensors))
    return folder / "weights.safetensors"


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in" / "x.png"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(256, size=(40, 48), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


# Chosen on validation images


@pytest.mark.parametrize("criterion", SCORES)
@pytest.mark.parametrize("one_channel", [False, True])
def test_the_chosen_threshold_is_the_best_of_all_for_the_pixels_that_count(criterion, one_channel):
    logits, targets = pixels()
    given = logits[:, 1:] - logits[:, :1] if one_channel else logits
    metrics = metrics_of("segmentation", 2, evaluated="x", thresholds=(0.3,))
    for part in zip(given.split(5), targets.split(5), strict=True):
        for name in ("curves", "threshold"):
            metrics[name].update(*part)
    p, truth = logits.double().softmax(1)[:, 1][targets != 255], targets[targets != 255] == 1
    sums = {"curves": metrics["curves"].sums}
    (threshold,) = thresholds_of("segmentation", sums, recipe(threshold=criterion))
    score = SCORES[criterion]
    assert score(truth, p >= threshold) == pytest.approx(max(score(truth, p >= t) for t in p))
    assert score(truth, p >= threshold) > score(truth, p >= 0.5)
    assert thresholds_of("segmentation", sums, recipe()) == ()
    assert metrics["threshold"].compute() == pytest.approx(
        {
            f"threshold_{name}": getattr(sklearn_metrics, f"{name}_score")(truth, p >= 0.3)
            for name in ("accuracy", "precision", "recall", "f1")
        }
    )


def test_without_pixels_of_both_classes_the_threshold_is_one_half():
    sums = {"curves": metrics_of("segmentation", 2, evaluated="x")["curves"].sums}
    assert thresholds_of("segmentation", sums, recipe(threshold="f1")) == (0.5,)
    sums["curves"][1, 0, 0] = sums["curves"][1, 0, 1] = 1  # both in the lowest bin
    assert thresholds_of("segmentation", sums, recipe(threshold="f1")) == (0,)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    settings = {"epochs": 1, "image_size": 32, "options": {"width": 4, "depth": 2}}
    out = tmp_path_factory.mktemp("chosen") / "run"
    options = {"progress": False, "device": "cpu", "threshold": "f1", "validation": 0.2}
    return train("unet_same", "digit_scenes", out=out, **settings, **options)


def test_a_network_keeps_the_threshold_of_its_masks(chosen, cnnzoo, image, tmp_path):
    (threshold,) = read_weights(chosen.path).thresholds
    outputs = list(segmented(chosen, split="val"))
    p = torch.stack([one.logits for one in outputs]).double().softmax(1)[:, 1].flatten()
    truth = torch.stack([one.target for one in outputs]).flatten() == 1
    grid = torch.linspace(0, 1, 60).tolist()
    best = max(sklearn_metrics.f1_score(truth, p >= t, zero_division=0) for t in grid)
    assert sklearn_metrics.f1_score(truth, p >= threshold) >= best - 1e-4
    assert {"test/threshold_f1", "test/threshold_recall"} <= chosen.test_metrics().keys()
    assert evaluate(chosen)["threshold_f1"] == chosen.test_metrics()["test/threshold_f1"]
    (found,) = segment(chosen, image)
    assert torch.equal(found.mask, (found.probabilities[1] >= threshold).to(torch.uint8))
    done = cnnzoo("predict", chosen.path, image, "--out", tmp_path / "out")
    assert done.code == 0
    name = read_weights(chosen.path).classes[1]
    assert f"'{name}' from a probability of {threshold:.4g} on" in done.err
    mask = np.array(Image.open(tmp_path / "out" / "x.mask.png"))
    assert np.array_equal(mask, found.mask)
    opened = Trained(export(chosen, tmp_path / "net.pt2", format="torch-export").path)
    assert opened.weights.thresholds == (threshold,)


def test_several_exclusive_classes_have_no_threshold(tmp_path):
    with pytest.raises(UsageError, match="threshold = 'f1' is for two classes or multilabel"):
        train("lenet5_modern", "digits", threshold="f1", out=tmp_path / "run")


# Given


@pytest.mark.parametrize("threshold", [0.45, 0.55])
def test_a_pixel_is_of_class_1_from_the_threshold_on(
    scenes_run, cnnzoo, image, tmp_path, threshold
):
    weights = changed(scenes_run, tmp_path)
    out = tmp_path / "out"
    done = cnnzoo("predict", weights, image, "--out", out, "--threshold", threshold, "--json")
    assert done.code == 0, done.err
    (found,) = segment(weights, image)
    assert torch.equal(found.mask, found.probabilities.argmax(0).to(torch.uint8))
    expected = found.probabilities[1] >= threshold
    mask = np.array(Image.open(out / "x.mask.png"))
    assert np.array_equal(mask, expected)
    assert 0 < expected.sum() < expected.numel()
    assert not np.array_equal(mask, found.mask)
    fractions = json.loads(done.out)["predictions"][0]["class_fractions"]
    assert list(fractions.values())[1] == pytest.approx(float(expected.double().mean()))
    # The probabilities are the same, and the masks would be of two kinds.
    again = ("predict", weights, image, "--out", out, "--resume")
    assert cnnzoo(*again, "--threshold", threshold).code == 0
    for other in ((), ("--threshold", 0.5)):
        done = cnnzoo(*again, *other)
        assert done.code == 2
        assert "written by another network or with other options" in done.err


def test_a_threshold_decides_for_images_of_two_classes_and_for_labels(digits_run, tmp_path):
    (image,) = torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8)
    two = {"num_classes": 2, "classes": ("no", "yes")}
    weights = changed(digits_run, tmp_path, **two, thresholds=(0.0,))
    assert [p.classes for p in predict(weights, image)] == [("yes",)]
    for threshold, name in ((0, "yes"), (1, "no")):
        (found,) = Predictor(weights, threshold=threshold)(image)
        assert found.classes == (name,)
    weights = changed(digits_run, tmp_path, task="multilabel", thresholds=(1.0,) * 10)
    assert [p.classes for p in predict(weights, image)] == [()]
    (found,) = Predictor(weights, threshold=0.5)(image)
    assert found.classes
    assert min(found.probabilities) >= 0.5


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_is_a_probability(scenes_run, threshold):
    with pytest.raises(UsageError, match=r"threshold = .*: expected a probability, from 0 to 1"):
        Predictor(scenes_run, threshold=threshold)


def test_a_threshold_that_does_not_apply_is_an_error(scenes_run, digits_run, cnnzoo, tmp_path):
    three = changed(scenes_run, tmp_path, num_classes=3, classes=("a", "b", "c"))
    for source, count in ((three, 3), (digits_run.path, 10)):
        done = cnnzoo("predict", source, tmp_path, "--threshold", 0.3)
        assert done.code == 2
        message = "threshold = 0.3 is for two classes or multilabel, and there are"
        assert f"{message} {count} classes" in done.err
