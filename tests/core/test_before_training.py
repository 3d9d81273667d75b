"""What training says about its images before the first epoch, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cnn_core import evaluate, load_dataset, train
from cnn_core.data.progress_bar import progress_bar
from cnn_core.data.splits import Subset
from cnn_core.errors import RunError, UsageError
from cnn_core.training import Run
from cnn_core.training.data_checks import _smallest_batch, checked, class_counts
from cnn_core.training.distributed import World
from cnn_core.training.epoch_metrics import EpochMetrics
from cnn_core.training.setup import find_recipe, set_up
from cnn_core.training.trained import load_data
from cnn_core.training.trainer import _collapse

CPU = torch.device("cpu")


def folder(root, classes):
    """Write images of noise, as many as `classes` says of each class."""
    seed = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            seed += 1
            pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return f"imagefolder:{root}"


def setup_of(data, model="lenet5_modern", **settings):
    recipe = find_recipe(model, data, None, settings)
    return set_up(recipe, load_dataset(data), CPU, show_progress=False)


def lines_of(setup, capsys):
    capsys.readouterr()
    checked(setup)
    return capsys.readouterr().err.splitlines()


def test_the_spread_of_classes_is_said(tmp_path, capsys):
    data = folder(tmp_path / "a", {"common": 100, "rare": 10, "other": 100})
    lines = lines_of(setup_of(data), capsys)
    assert (
        "images: train 151 (7 to 72 of a class), validation 17 (1 to 8 of a class), test 42"
        in ("\n".join(lines))
    )
    (imbalanced,) = (line for line in lines if line.startswith("imbalanced"))
    assert "rare 7, common 72, other 72" in imbalanced
    assert any(line.startswith("mean 0.") for line in lines)
    data = folder(tmp_path / "b", {"a": 10, "b": 10})
    assert not any("imbalanced" in line for line in lines_of(setup_of(data), capsys))


def test_a_class_without_validation_images_is_named(tmp_path, capsys):
    data = folder(tmp_path / "a", {"a": 30, "b": 4})
    assert "no image of 1 of 2 classes in validation: b" in lines_of(setup_of(data), capsys)


def test_counts_of_a_view_are_its_own():
    dataset = load_dataset("digits")
    train_split, held_out = dataset.divide(0.1, 0)
    assert isinstance(held_out, Subset)
    whole = class_counts(dataset.split("train"), 10)
    parts = [class_counts(part, 10) for part in (train_split, held_out)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_what_was_left_out_is_said_before_the_first_epoch(tmp_path, capsys):
    data = folder(tmp_path / "a", {"a": 8, "b": 8})
    (tmp_path / "a" / "a" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic")
    lines = lines_of(setup_of(data), capsys)
    assert lines[0].startswith("left out 1: images of a format that is not read (.heic)")
    assert lines[1].startswith("test: a fifth of each class (4 images)")


# --- validation -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"patience": 2}, {"monitor": "val/top1"}])
@pytest.mark.parametrize("validation", [0.1, 0.0])
def test_too_few_images_to_validate_are_said_and_what_needs_them_is_refused(
    tmp_path, capsys, settings, validation
):
    data = folder(tmp_path / "a", {"a": 4, "b": 4})
    lines = lines_of(setup_of(data, validation=validation), capsys)
    (line,) = (line for line in lines if line.startswith("no validation: "))
    reason = "validation = 0" if validation == 0 else "rounds to none of 6 images"
    assert reason in line
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="needs validation images") as caught:
        train("lenet5_modern", data, out=out, validation=validation, **settings)
    assert f"validation = {validation:g} holds out none" in caught.value.message
    assert not out.exists()


# --- batch normalisation ----------------------------------------------------------------------

NARROW = {"model": "mobilenet_v1", "image_size": 32, "options": {"width": 0.25}}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": 1}, "batch_size = 1:"),
        ({"batch_size": 2, "accumulate": 2}, "batch_size = 2, accumulate = 2:"),
        ({"batch_size": 5, "accumulate": 5}, "accumulate = 5:"),
    ],
)
def test_one_value_per_channel_is_refused_before_there_is_a_run(tmp_path, settings, named):
    data = folder(tmp_path / "a", {"a": 9, "b": 9})
    out = tmp_path / "run"
    narrow = {key: value for key, value in NARROW.items() if key != "model"}
    with pytest.raises(UsageError, match=named) as caught:
        train("mobilenet_v1", data, out=out, progress=False, **narrow, **settings)
    assert "batch normalisation in mobilenet_v1" in caught.value.message
    assert "batch_size = 2" in caught.value.hint
    assert not out.exists()


def test_a_single_image_left_to_train_on_is_refused(tmp_path):
    data = folder(tmp_path / "a", {"a": 3, "b": 3})
    setup = setup_of(data, **NARROW, validation=0.0)
    one = dataclasses.replace(setup, train=setup.train.subset(torch.tensor([0])))
    with pytest.raises(UsageError, match="one training image, batch_size = 128"):
        checked(one, show=False)


@pytest.mark.parametrize(
    "settings",
    [
        {**NARROW, "batch_size": 2},
        {**NARROW, "batch_size": 1, "freeze_batchnorm": True},
        {**NARROW, "image_size": 64, "batch_size": 1},
        {"batch_size": 1},  # no batch normalisation
    ],
)
def test_what_can_be_trained_is_and_nothing_changes(tmp_path, settings):
    data = folder(tmp_path / "a", {"a": 3, "b": 3})
    setup = setup_of(data, **settings)
    before = {name: t.clone() for name, t in setup.model.state_dict().items()}
    checked(setup, show=False)
    assert all(torch.equal(t, before[name]) for name, t in setup.model.state_dict().items())
    setup.train_state.start_epoch(0)
    setup.model(torch.rand(min(setup.recipe.batch_size, 2), 3, *setup.preprocessing.size))


@pytest.mark.parametrize(
    ("count", "batch_size", "accumulate", "world", "expected"),
    [
        (100, 10, 1, 1, 10),
        (101, 10, 1, 1, 10),
        (102, 10, 1, 1, 2),
        (100, 10, 10, 1, 1),
        (100, 10, 3, 1, 2),
        (100, 10, 1, 4, 2),
        (100, 4, 1, 4, 1),
        (1, 10, 1, 1, 1),
    ],
)
def test_the_smallest_batch(count, batch_size, accumulate, world, expected):
    setup = setup_of("digits", batch_size=batch_size, accumulate=accumulate)
    part = setup.train.subset(torch.arange(count))
    setup = dataclasses.replace(setup, train=part, world=World(0, world))
    assert _smallest_batch(setup) == expected


# --- after it ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "own", "collapsed"),
    [([0, 0], [0, 1], True), ([0, 1], [0, 1], False), ([0, 0], [0, 0], False)],
)
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_collapse_to_one_class_is_said(task, predicted, own, collapsed):
    running = EpochMetrics(task, 2, 0)
    logits, targets = nn.functional.one_hot(torch.tensor(predicted), 2), torch.tensor(own)
    if task == "segmentation":
        # Each image is of one class.
        logits, targets = (
            part[..., None, None].expand(*part.shape, 4, 5) for part in (logits, targets)
        )
        targets = targets.to(torch.uint8)
    running.add(1.0, logits.float(), targets)
    spec = dataclasses.replace(load_dataset("digits").spec, task=task, classes=("cat", "dog"))
    line = _collapse(spec, running.sums())
    what = "test images" if task == "classification" else "pixels of the test images"
    assert bool(line) == collapsed
    assert line.startswith(f"all {what} are predicted as 'cat'") == collapsed


def test_the_images_that_chose_the_epoch_can_be_measured(tmp_path, caplog, cnnzoo):
    data = folder(tmp_path / "a", {"a": 20, "b": 20})
    run = train("lenet5_modern", data, out=tmp_path / "r", epochs=2, batch_size=8, progress=False)
    history = run.history()
    chosen = int(next(line for line in run.metrics() if "test/loss" in line)["epoch"])
    for name in ("val", "valid"):
        found = evaluate(run, split=name)
        assert found["loss"] == pytest.approx(history[chosen - 1]["val/loss"], abs=1e-6)
    assert (
        "4 of 32 images of 'train', which were not trained on but selected the epoch"
        in caplog.text
    )
    with pytest.raises(UsageError, match="no split 'nonsense'"):
        evaluate(run, split="nonsense")


def test_a_run_of_before_keeps_the_order_of_its_classes(tmp_path):
    data = folder(tmp_path / "a", {"1": 5, "2": 5, "10": 5})
    run = train("lenet5_modern", data, out=tmp_path / "r", epochs=1, progress=False)
    assert load_data(run).spec.classes == ("1", "2", "10")
    earlier = load_dataset(data).with_class_order(("1", "10", "2"))
    environment = json.loads((run.path / "environment.json").read_text())
    environment["data_fingerprint"] = earlier.fingerprint()
    (run.path / "environment.json").write_text(json.dumps(environment))
    found = load_data(Run.open(run.path))
    assert found.spec.classes == ("1", "10", "2")
    assert found.split("train").images == earlier.split("train").images
    (tmp_path / "a" / "2" / "0.png").unlink()
    with pytest.raises(RunError, match="have changed"):
        load_data(Run.open(run.path))


def test_how_images_are_read_goes_with_the_weights(tmp_path):
    for name, value in (("dark", 0.2), ("light", 0.8)):
        for number in range(5):
            path = tmp_path / "a" / name / f"{number}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), value, np.float32)
            pixels[number] = 0.5
            Image.fromarray(pixels).save(path)
    settings = {"epochs": 1, "progress": False, "value_range": (0, 2), "batch_size": 4}
    run = train("lenet5_modern", f"imagefolder:{tmp_path / 'a'}", out=tmp_path / "r", **settings)
    assert Run.open(run.path).recipe.value_range == (0, 2)
    from cnn_core.training import Predictor

    predictor = Predictor(run.path)
    assert predictor.trained.weights.preprocessing.reading.value_range == (0, 2)
    from_file = predictor.logits(tmp_path / "a" / "dark" / "0.tif")
    pixels = np.full((8, 8), round(255 * 0.1), np.uint8)
    pixels[0] = round(255 * 0.25)
    assert torch.equal(from_file, predictor.logits(pixels))
    assert evaluate(run.path)["loss"] == pytest.approx(run.test_metrics()["test/loss"])


def test_long_reading_is_not_silent_without_a_terminal(capsys, monkeypatch):
    from cnn_core.training import progress

    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar("reading files", True) as update:
        for done in range(0, 101, 10):
            now[0] += 4
            update(done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "reading files: 20 of 100",
        "reading files: 50 of 100",
        "reading files: 80 of 100",
    ]
    with progress_bar("reading files", False) as update:
        assert update is None
