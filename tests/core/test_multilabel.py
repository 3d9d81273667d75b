"""Multilabel: several classes of an image, from the loss to the thresholds and predictions."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.nn import functional as F

from cnn_core.cli.app import app
from cnn_core.data import load_dataset
from cnn_core.data.augment import Mix
from cnn_core.data.splits import Split
from cnn_core.errors import CorruptError, UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks import loss_of, metrics_of, score_of, thresholds_of
from cnn_core.tasks.class_weights import with_weights
from cnn_core.tasks.multilabel import predicted_labels
from cnn_core.tasks.thresholds import ThresholdCounts, best_threshold
from cnn_core.training import Predictor, Run, Trained, evaluate, predict, push, train
from cnn_core.training.matching import matched
from cnn_core.weights.native import read_weights

sklearn_metrics = pytest.importorskip("sklearn.metrics")
CLASSES = ("left", "right", "top")


def recipe(**settings):
    return Recipe(model="lenet5_modern", data="csv:x.csv", **settings)


def scored(count=211, classes=4, *, absent=None):
    generator = torch.Generator().manual_seed(count)
    targets = (torch.rand(count, classes, generator=generator) < 0.3).to(torch.uint8)
    if absent is not None:
        targets[:, absent] = 0
    logits = torch.randn(count, classes, generator=generator) + 1.5 * targets - 1
    return logits, targets


def measured(logits, targets, **options):
    metrics = metrics_of("multilabel", logits.shape[1], **options)
    found = {}
    for metric in metrics.values():
        for part in zip(logits.split(50), targets.split(50), strict=True):
            metric.update(*part)
        found |= metric.compute()
    return found


# Metrics


@pytest.mark.parametrize("absent", [None, 2])
def test_metrics_are_those_of_scikit_learn(absent):
    logits, targets = scored(absent=absent)
    if absent is not None:
        logits[:, absent] = -9  # neither there nor predicted
    found, truth = measured(logits, targets, evaluated="x"), targets.numpy()
    predicted = (logits > 0).numpy()
    present = [n for n in range(4) if n != absent]
    expected = {
        "exact_match": sklearn_metrics.accuracy_score(truth, predicted),
        "macro_f1": sklearn_metrics.f1_score(
            truth, predicted, average="macro", zero_division=np.nan
        ),
        "micro_f1": sklearn_metrics.f1_score(truth, predicted, average="micro"),
        "map": sklearn_metrics.average_precision_score(truth[:, present], logits[:, present]),
        "auc": sklearn_metrics.roc_auc_score(truth[:, present], logits[:, present]),
    }
    for n in present:
        column = truth[:, n], logits[:, n].numpy()
        expected[f"ap_{n}"] = sklearn_metrics.average_precision_score(*column)
        expected[f"recall_{n}"] = sklearn_metrics.recall_score(truth[:, n], predicted[:, n])
    assert found == pytest.approx(expected, abs=1e-12)


def test_thresholds_decide_what_is_predicted():
    logits, targets = scored()
    thresholds = (0.1, 0.3, 0.5, 0.9)
    predicted = logits.double().sigmoid().numpy() >= np.array(thresholds)
    assert predicted_labels(logits, thresholds).tolist() == predicted.tolist()
    found = measured(logits, targets, thresholds=thresholds)
    expected = sklearn_metrics.f1_score(targets.numpy(), predicted, average="macro")
    assert found["macro_f1"] == pytest.approx(expected, abs=1e-12)
    assert found["map"] == measured(logits, targets)["map"]


def test_nan_is_no_prediction_and_no_ranking():
    logits, targets = torch.full((5, 3), torch.nan), torch.zeros(5, 3, dtype=torch.uint8)
    assert measured(logits, targets) == {"exact_match": 0}


# Thresholds


@pytest.mark.parametrize("criterion", ["f1", "balanced_accuracy"])
def test_the_chosen_threshold_is_the_best_of_all(criterion):
    logits, targets = scored()
    score = {
        "f1": sklearn_metrics.f1_score,
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score,
    }[criterion]
    for column in range(4):
        p, positive = logits[:, column].double().sigmoid(), targets[:, column].bool()
        threshold = best_threshold(p, positive, criterion)
        found = score(positive, p >= threshold)
        assert found == pytest.approx(max(score(positive, p >= t) for t in p), abs=1e-12)
    metrics = metrics_of("multilabel", 4)
    for metric in metrics.values():
        metric.update(logits, targets)
    sums = {name: metric.sums for name, metric in metrics.items()}
    chosen = thresholds_of("multilabel", sums, recipe(threshold=criterion))
    assert chosen[3] == threshold


def test_without_images_of_both_kinds_the_threshold_is_one_half():
    assert best_threshold(torch.rand(5).double(), torch.zeros(5).bool(), "f1") == 0.5


def test_metrics_at_a_threshold_are_those_of_scikit_learn():
    logits, targets = torch.randn(200, 2), torch.randint(0, 2, (200,))
    counts = ThresholdCounts(0.3)
    counts.update(logits[:90], targets[:90])
    counts.update(logits[90:], targets[90:])
    pair = targets.numpy(), (logits.double().softmax(1)[:, 1] >= 0.3).long().numpy()
    expected = {
        f"threshold_{name}": getattr(sklearn_metrics, f"{name}_score")(*pair)
        for name in ("accuracy", "precision", "recall", "f1")
    }
    assert counts.compute() == pytest.approx(expected, abs=1e-12)


# Loss


def test_the_loss_is_the_mean_binary_cross_entropy():
    logits, targets = scored()
    expected = F.binary_cross_entropy_with_logits(logits, targets.float()).item()
    for loss in ("cross_entropy", "bce"):
        found = loss_of("multilabel", recipe(loss=loss))(logits, targets).item()
        assert found == pytest.approx(expected, abs=1e-6)


def test_focal_loss_is_the_loop_over_its_equation():
    logits, targets = (t[:9] for t in scored())
    found = loss_of("multilabel", recipe(loss="focal", focal_gamma=1.5))(logits, targets).item()
    p = logits.double().sigmoid()
    p = torch.where(targets.bool(), p, 1 - p)
    assert found == pytest.approx((-((1 - p) ** 1.5) * p.log()).mean().item(), abs=1e-6)


def test_weights_and_mixes_are_those_of_the_sums():
    logits, targets = (t[:9] for t in scored())
    weights, lam = torch.rand(9), torch.rand(9)
    each = F.binary_cross_entropy_with_logits
    own = each(logits, targets.float(), reduction="none").mean(1) * weights
    of = loss_of("multilabel", recipe())
    assert of(logits, targets, None, weights).item() == pytest.approx(own.mean().item(), abs=1e-6)
    other = each(logits, targets.roll(1, 0).float(), reduction="none").mean(1) * weights.roll(1)
    mix = Mix(targets.roll(1, 0), lam, weights.roll(1))
    expected = (lam * own + (1 - lam) * other).mean().item()
    assert of(logits, targets, mix, weights).item() == pytest.approx(expected, abs=1e-6)


def test_balanced_weights_make_images_with_and_without_a_class_equal():
    _, targets = scored()
    split = Split(torch.zeros(len(targets), 1, 1, 1), targets)
    found = with_weights(split, recipe(class_weights="balanced"), list("abcd")).weights
    for column, weights in zip(targets.T, found.T, strict=True):
        assert weights[column == 1].sum() == pytest.approx(len(targets) / 2, rel=1e-5)
        assert weights[column == 0].sum() == pytest.approx(len(targets) / 2, rel=1e-5)
    found = with_weights(split, recipe(class_weights={"b": 3}), list("abcd")).weights
    assert set(found[targets[:, 1] == 1, 1].tolist()) == {3}
    assert found[:, 0].eq(1).all()


WRONG = [
    ({"loss": "dice"}, "loss = 'dice' is not for multilabel"),
    ({"sampler": "balanced"}, "sampler = 'balanced' is for images of one class each"),
    ({"topk": 3}, "topk = 3 is only for classification"),
    ({"tile": 64}, "only for segmentation"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_settings_that_do_not_apply_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        loss_of("multilabel", recipe(**settings))


def test_map_is_monitored():
    assert score_of("multilabel", "", "", CLASSES) == ("val/map", True)
    assert score_of("multilabel", "val/recall_top", "", CLASSES) == ("val/recall_top", True)
    with pytest.raises(UsageError, match="one of val/loss, val/map"):
        score_of("multilabel", "val/top1", "", CLASSES)


# From a folder to predictions


def labels(number):
    return [name for bit, name in enumerate(CLASSES) if number >> bit & 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """80 images with bright sides, as their labels say; an eighth has none."""
    root = tmp_path_factory.mktemp("sides")
    generator, lines = np.random.default_rng(0), ["path,labels"]
    for number in range(80):
        pixels = generator.integers(0, 60, (16, 16), dtype=np.uint8)
        parts = {"left": pixels[:, :4], "right": pixels[:, -4:], "top": pixels[:4, 4:-4]}
        for name in labels(number):
            parts[name] += 150
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"{number}.png,{'|'.join(labels(number))}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("multilabel") / "run"
    settings = {"epochs": 12, "batch_size": 8, "lr": 0.03, "image_size": 32}
    data = f"csv:{folder / 'labels.csv'}"
    return train("lenet5_modern", data, out=out, progress=False, device="cpu", **settings)


def test_a_shared_network_has_its_results_by_class_and_its_thresholds(run, tmp_path):
    push(run, "hf:me/sides", licence="mit", out=tmp_path / "shared")
    card, test = (tmp_path / "shared" / "README.md").read_text(), run.test_metrics()
    targets = load_dataset(run.recipe.data).split("test").targets
    for name, count in zip(CLASSES, targets.sum(0).tolist(), strict=True):
        assert f"| {name} | {count} | {test[f'test/recall_{name}']:.4f} |" in card
    assert f"| map | {test['test/map']:.4f} |" in card
    assert "recall_" not in card
    shared = read_weights(tmp_path / "shared" / "model.safetensors")
    assert (shared.task, shared.thresholds) == ("multilabel", read_weights(run.path).thresholds)


def test_a_network_learns_several_labels_and_keeps_its_thresholds(run):
    weights = read_weights(run.path)
    assert weights.task == "multilabel"
    assert weights.classes == CLASSES
    assert len(weights.thresholds) == 3
    assert all(0 < threshold < 1 for threshold in weights.thresholds)
    test = run.test_metrics()
    assert test["test/map"] > 0.9
    assert {"test/macro_f1", "test/micro_f1", "test/exact_match", "test/recall_top"} <= test.keys()
    assert {"val/map", "val/auc"} <= run.history()[0].keys()
    found = {f"test/{name}": value for name, value in evaluate(run).items()}
    assert found == pytest.approx(test)


def test_thresholds_are_the_best_on_the_validation_images(run):
    trained = Trained(run)
    _, validation = trained.dataset.hold_out(run.recipe.validation, run.recipe.seed)
    paths = list(validation.images)
    logits = Predictor(trained).logits(paths).double()
    truth = validation.targets.numpy()
    chosen = logits.sigmoid().numpy() >= np.array(read_weights(run.path).thresholds)
    for column in range(3):
        found = sklearn_metrics.f1_score(truth[:, column], chosen[:, column])
        best = max(
            sklearn_metrics.f1_score(truth[:, column], (logits[:, column] >= t).numpy())
            for t in logits[:, column]
        )
        assert found == pytest.approx(best)


def test_predictions_are_all_classes_above_their_thresholds(run, folder):
    paths = [folder / f"{number}.png" for number in range(16)]
    predictions = predict(run, paths)
    thresholds = read_weights(run.path).thresholds
    probabilities = Predictor(run).logits(paths).sigmoid()
    for p, row in zip(predictions, probabilities.tolist(), strict=True):
        expected = {n: v for n, v, t in zip(CLASSES, row, thresholds, strict=True) if v >= t}
        assert dict(zip(p.classes, p.probabilities, strict=True)) == pytest.approx(expected)
        assert list(p.probabilities) == sorted(p.probabilities, reverse=True)
    right = [set(p.classes) == set(labels(n)) for n, p in enumerate(predictions)]
    assert sum(right) >= 13
    with pytest.raises(UsageError, match="top_k = 2: it is for classification, and this is multi"):
        predict(run, paths, top_k=2)


def test_the_command_prints_and_writes_all_classes(run, folder, tmp_path):
    images = [str(folder / f"{number}.png") for number in (0, 3, 7)]
    files = ["--csv", str(tmp_path / "p.csv"), "--jsonl", str(tmp_path / "p.jsonl")]
    for options in ([], ["--json"], files, [*files, "--resume"]):
        done = CliRunner().invoke(app, ["predict", str(run.path), *images, *options])
        assert done.exit_code == 0, done.output
        if not options:
            rows = [line.split() for line in done.stdout.splitlines()[1:]]
            printed = [(row[0], row[2]) for row in rows]
    expected = predict(run, images)
    assert printed == [(p.path, name) for p in expected for name in p.classes or ("-",)]
    with (tmp_path / "p.csv").open() as file:
        assert [row["classes"] for row in csv.DictReader(file)] == [
            "|".join(p.classes) for p in expected
        ]
    lines = (tmp_path / "p.jsonl").read_text().splitlines()
    assert [json.loads(line)["classes"] for line in lines] == [list(p.classes) for p in expected]
    done = CliRunner().invoke(app, ["predict", str(run.path), *images, "--top-k", "2"])
    assert "--top-k does not apply: this network does multilabel" in str(done.exception)


def test_other_data_are_matched_by_name(run, folder, tmp_path):
    rows = "".join(f"{folder / f'{n}.png'},{n >> 2 & 1},{n & 1}\n" for n in range(80))
    (tmp_path / "other.csv").write_text("path,Top,LEFT\n" + rows)
    data = load_dataset(f"csv:{tmp_path / 'other.csv'}#task=multilabel")
    found = matched(data, read_weights(run.path), "other").splits["test"]
    numbers = [int(path.stem) for path in data.splits["test"].images]
    assert found.targets.tolist() == [[n & 1, 0, n >> 2 & 1] for n in numbers]


def test_other_tasks_say_that_they_are_others(run, tmp_path):
    with pytest.raises(UsageError, match=r"'digits' is for classification, .* for multilabel"):
        evaluate(run, data="digits")
    with pytest.raises(UsageError, match="model 'unet_same' is for segmentation"):
        train("unet_same", run.recipe.data, out=tmp_path / "r", progress=False)


def test_a_file_with_another_task_or_wrong_thresholds_is_refused(run):
    weights = read_weights(run.path)
    with pytest.raises(CorruptError, match="unknown task 'os'"):
        replace(weights, task="os")
    for thresholds in ((0.5, 0.5), (2.0, 0.5, 0.5), ("a", "b", "c")):
        with pytest.raises(CorruptError, match="thresholds: expected numbers from 0 to 1"):
            replace(weights, thresholds=thresholds)


def test_an_exported_file_keeps_task_and_thresholds(run, folder, tmp_path):
    from cnn_core.training import export

    opened = Trained(export(run, tmp_path / "net.pt2", format="torch-export").path)
    assert opened.weights.task == "multilabel"
    assert opened.weights.thresholds == read_weights(run.path).thresholds
    image = folder / "7.png"
    assert predict(opened, image)[0].classes == predict(run, image)[0].classes


# Two classes


def test_two_classes_have_a_threshold_if_the_recipe_wants_one(folder, tmp_path):
    rows = "".join(f"{folder / f'{n}.png'},{'yes' if n % 5 == 0 else 'no'}\n" for n in range(80))
    (tmp_path / "binary.csv").write_text("path,label\n" + rows)
    data = f"csv:{tmp_path / 'binary.csv'}"
    settings = {"epochs": 1, "batch_size": 16, "progress": False, "device": "cpu"}
    options = {"threshold": "balanced_accuracy", "validation": 0.3}
    run = train("lenet5_modern", data, out=tmp_path / "r", **settings, **options)
    (threshold,) = read_weights(run.path).thresholds
    test, trained = run.test_metrics(), Trained(run)
    assert {"test/threshold_f1", "test/threshold_recall"} & test.keys()
    paths = list(trained.dataset.split("test").images)
    chances = Predictor(trained).logits(paths).softmax(1)[:, 1]
    predicted = [p.classes[0] for p in predict(run, paths)]
    assert predicted == ["yes" if p >= threshold else "no" for p in chances.tolist()]
    hits = sum(
        trained.weights.classes[t] == name
        for t, name in zip(trained.dataset.split("test").targets, predicted, strict=True)
    )
    assert test["test/threshold_accuracy"] == pytest.approx(hits / len(paths))
    assert Run.open(run.path).recipe.threshold == "balanced_accuracy"
    with pytest.raises(UsageError, match="threshold = 'f1' is for two classes or multilabel"):
        train("lenet5_modern", "digits", out=tmp_path / "d", threshold="f1", **settings)
