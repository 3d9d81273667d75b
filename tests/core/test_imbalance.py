"""Classes of unequal size: weights, balanced draws, focal loss, and the metrics that show it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cnn_core.data import Batch, Preprocessing
from cnn_core.data.augment import Augmentation, Mix
from cnn_core.data.batching import collate
from cnn_core.data.splits import Files, Split
from cnn_core.errors import UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.tasks import collapse_of, loss_of, score_of
from cnn_core.tasks.class_counts import ClassCounts, class_keys, named_recalls
from cnn_core.tasks.class_weights import balanced_order, balanced_weights, with_weights
from cnn_core.tasks.ranking import Auc, area_under_roc, average_precision
from cnn_core.training import Run, evaluate, train
from cnn_core.training.epoch_metrics import EpochMetrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def recipe(**settings):
    return Recipe(model="lenet5_modern", data="digits", **settings)


def scored(num_classes=4, count=301, *, ties=False, absent=None):
    """Logits and targets of images; with `ties`, many logits are equal."""
    generator = torch.Generator().manual_seed(count)
    targets = torch.randint(0, num_classes, (count,), generator=generator)
    if absent is not None:
        targets[targets == absent] = (absent + 1) % num_classes
    logits = torch.randn(count, num_classes, generator=generator)
    logits[torch.arange(count), targets] += 0.7
    return (logits.round() if ties else logits), targets


def streamed(metric, logits, targets, size=37):
    for part in zip(logits.split(size), targets.split(size), strict=True):
        metric.update(*part)
    return metric.compute()


# Metrics


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("absent", [None, 2])
def test_balanced_accuracy_macro_f1_and_recalls_are_those_of_scikit_learn(absent):
    logits, targets = scored(absent=absent)
    found = streamed(ClassCounts(4, dict(enumerate("abcd"))), logits, targets)
    pair = targets.numpy(), logits.argmax(1).numpy()
    expected = sklearn_metrics.balanced_accuracy_score(*pair)
    assert found["balanced_accuracy"] == pytest.approx(expected, abs=1e-12)
    expected = sklearn_metrics.f1_score(*pair, average="macro")
    assert found["macro_f1"] == pytest.approx(expected, abs=1e-12)
    recalls = sklearn_metrics.recall_score(*pair, average=None, labels=range(4), zero_division=0)
    for number, name in enumerate("abcd"):
        if number == absent:
            assert name not in found
        else:
            assert found[name] == pytest.approx(recalls[number], abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_auc_is_that_of_scikit_learn(num_classes, ties):
    logits, targets = scored(num_classes, ties=ties)
    scores = logits.double().softmax(1)
    found = streamed(Auc(num_classes), logits, targets)["auc"]
    if num_classes == 2:
        expected = sklearn_metrics.roc_auc_score(targets, scores[:, 1])
    else:
        expected = sklearn_metrics.roc_auc_score(targets, scores, multi_class="ovr")
    assert found == pytest.approx(expected, abs=1e-12)


def test_auc_leaves_out_classes_that_have_no_images_and_is_left_out_without_any():
    logits, targets = scored(absent=2)
    scores = logits.double().softmax(1)
    ones = [sklearn_metrics.roc_auc_score(targets == c, scores[:, c]) for c in (0, 1, 3)]
    assert streamed(Auc(4), logits, targets)["auc"] == pytest.approx(np.mean(ones), abs=1e-12)
    assert streamed(Auc(4), logits, torch.zeros_like(targets)) == {}
    logits[5, 1] = torch.nan
    assert streamed(Auc(4), logits, targets) == {}


@pytest.mark.parametrize("ties", [False, True])
def test_single_rankings_are_those_of_scikit_learn(ties):
    logits, targets = scored(2, ties=ties)
    pair = targets.numpy(), logits[:, 1].double().numpy()
    found = area_under_roc(logits[:, 1].double(), targets == 1)
    assert found == pytest.approx(sklearn_metrics.roc_auc_score(*pair), abs=1e-12)
    found = average_precision(logits[:, 1].double(), targets == 1)
    assert found == pytest.approx(sklearn_metrics.average_precision_score(*pair), abs=1e-12)


def test_an_image_with_nan_logits_is_predicted_as_no_class():
    logits, targets = torch.eye(2).repeat(3, 1), torch.tensor([0, 1] * 3)
    logits[0] = torch.nan
    found = streamed(ClassCounts(2, {0: "recall_a"}), logits, targets)
    assert found["recall_a"] == pytest.approx(2 / 3)
    assert streamed(ClassCounts(2), logits[:0], targets[:0]) == {}


def test_parts_of_a_split_give_the_metrics_of_the_whole():
    logits, targets = scored()
    whole, parts = EpochMetrics("classification", 4, 2), EpochMetrics("classification", 4, 2)
    whole.add(1.0, logits, targets)
    parts.add(1.0, logits[:100], targets[:100])
    other = EpochMetrics("classification", 4, 2)
    other.load(parts.sums())
    other.add(1.0, logits[100:], targets[100:])
    assert other.compute() == whole.compute()
    assert {"auc", "balanced_accuracy", "macro_f1", "recall_3"} <= whole.compute().keys()
    whole.load({}, training=True)
    whole.add(1.0, logits, targets)
    assert "auc" not in whole.compute()


def test_classes_of_one_name_are_told_apart_by_number():
    assert class_keys(["crane", "crane", "a\nb"]) == ["0", "1", r"a\nb"]
    many = [str(n) for n in range(21)]
    assert named_recalls(many, everyone=False) == {}
    assert len(named_recalls(many, everyone=True)) == 21


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1", "auc", "recall_b/c"])
def test_each_can_be_monitored(name):
    assert score_of("classification", f"val/{name}", "top2", ["a", "b/c"]) == (f"val/{name}", True)


def test_auc_cannot_be_monitored_where_it_is_not_computed():
    with pytest.raises(UsageError, match="monitor = 'train/auc'"):
        score_of("classification", "train/auc", "top2", ["a", "b"])


def test_a_monitored_metric_that_is_never_defined_is_said(tmp_path, caplog):
    table = {"path": [], "label": [], "split": []}
    for number in range(12):
        path = tmp_path / f"{number}.png"
        Image.new("L", (8, 8), 20 * number).save(path)
        # The validation images are all of class a.
        row = (str(path), "b" if number < 4 else "a", "val" if number > 8 else "train")
        for column, value in zip(table.values(), row, strict=True):
            column.append(value)
    table["split"][0] = "test"
    trained(table, tmp_path / "r", epochs=1, monitor="val/recall_b")
    assert "val/recall_b was not defined in any epoch: the last epoch was kept" in caplog.text


# Losses


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_is_the_loop_over_its_equation(gamma):
    logits, targets = (t[:40] for t in scored())
    found = loss_of("classification", recipe(loss="focal", focal_gamma=gamma))(logits, targets)
    p = logits.double().softmax(1)
    each = [-((1 - p[i, t]) ** gamma) * p[i, t].log() for i, t in enumerate(targets)]
    assert found.item() == pytest.approx(np.mean(each), abs=1e-6)
    if gamma == 0:
        assert found.item() == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "map"])
def test_weights_multiply_the_losses_of_images(loss):
    logits, targets = (t[:40] for t in scored())
    weights = torch.rand(40)
    of = loss_of("classification", recipe(loss=loss))
    each = [of(logits[i : i + 1], targets[i : i + 1]) * weights[i] for i in range(40)]
    expected = torch.stack(each).mean()
    assert of(logits, targets, None, weights).item() == pytest.approx(expected.item(), abs=1e-6)


def test_weights_of_mixed_images_are_those_of_both():
    logits, targets = (t[:40] for t in scored())
    weights, lam = torch.rand(40), torch.rand(40)
    mix = Mix(targets.roll(1), lam, weights.roll(1))
    of = loss_of("classification", recipe())
    own = F.cross_entropy(logits, targets, reduction="none") * weights
    other = F.cross_entropy(logits, targets.roll(1), reduction="none") * weights.roll(1)
    expected = (lam * own + (1 - lam) * other).mean().item()
    assert of(logits, targets, mix, weights).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_the_weights_of_an_image_go_where_it_is_mixed_in(key):
    draws = Augmentation.of(recipe(**{key: 1.0})).draws(0, 0)
    raw = Batch(torch.zeros(5, 1, 32, 32, dtype=torch.uint8), torch.arange(5), torch.arange(5))
    raw = dataclasses.replace(raw, weights=torch.arange(5) + 0.5)
    size = (32, 32)
    preprocessing = Preprocessing(size=size, image_size=size, fit="resize", mean=(0,), std=(1,))
    batch = collate(raw, preprocessing, draws)
    assert batch.weights.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert (batch.mix.targets + 0.5).tolist() == batch.mix.weights.tolist()
    first, second = batch.micro_batches(3)
    assert [*first.mix.weights, *second.mix.weights] == [*batch.mix.weights]


def test_balanced_weights_are_those_of_scikit_learn():
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    targets = torch.tensor([0] * 7 + [1] * 2 + [3])
    expected = compute("balanced", classes=np.array([0, 1, 3]), y=targets.numpy())
    found = balanced_weights(targets, 4)
    assert found.tolist() == [expected[0], expected[1], 0, expected[2]]
    assert found[targets].mean() == pytest.approx(1)


def test_only_the_images_to_train_on_are_counted():
    targets = torch.tensor([0, 0, 0, 1, 1, 1])
    part = Split(torch.zeros(6, 1, 2, 2), targets).view(torch.tensor([0, 1, 2, 5]))
    found = with_weights(part, recipe(class_weights="balanced"), ["a", "b"])
    assert found.weights[found.rows].tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2])


def test_a_table_weights_the_classes_it_names_besides_the_images_own_weights():
    files = Files(tuple("xyz"), torch.tensor([0, 1, 1]), weights=torch.tensor([1.0, 1.0, 0.5]))
    found = with_weights(files, recipe(class_weights={"b": 4}), ["a", "b"])
    assert found.weights.tolist() == [1, 4, 2]
    assert found.subset(torch.tensor([2])).weights.tolist() == [2]


# The sampler


def test_draws_are_equal_in_number_and_all_images_come_before_any_comes_again():
    targets = torch.tensor([0] * 90 + [1] * 8 + [2] * 5)
    order = balanced_order(targets, seed=3, epoch=5)
    assert len(order) == 103
    assert sorted(torch.bincount(targets[order]).tolist()) == [34, 34, 35]
    times = torch.bincount(order, minlength=103)
    assert set(times[:90].tolist()) == {0, 1}
    assert set(times[90:98].tolist()) == {4, 5}
    assert set(times[98:].tolist()) <= {6, 7}
    assert order.tolist() == balanced_order(targets, 3, 5).tolist()
    assert order.tolist() != balanced_order(targets, 3, 6).tolist()


# Training


@pytest.fixture(scope="module")
def rare(tmp_path_factory):
    """110 images of a common class and 12 of a rare one, which differs by one brighter row."""
    root = tmp_path_factory.mktemp("rare")
    generator = np.random.default_rng(0)
    for name, count in (("common", 110), ("rare", 12)):
        (root / name).mkdir()
        for number in range(count):
            pixels = generator.integers(60, 120, (16, 16), dtype=np.uint8)
            if name == "rare":
                pixels[4] += 40
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return f"imagefolder:{root}"


def trained(data, out, **settings):
    settings = {"epochs": 6, "batch_size": 16, "lr": 0.05, **settings}
    return train("lenet5_modern", data, out=out, progress=False, device="cpu", **settings)


def test_a_run_that_predicts_one_class_says_so(rare, tmp_path, caplog):
    run = trained(rare, tmp_path / "plain", epochs=2, lr=0.01)
    test = run.test_metrics()
    assert test["test/top1"] > 0.9
    assert test["test/recall_rare"] == 0
    assert test["test/balanced_accuracy"] == 0.5
    assert "all test images are predicted as 'common'" in caplog.text
    assert "class_weights=balanced" in caplog.text


@pytest.mark.parametrize(
    "settings", [{"class_weights": "balanced"}, {"sampler": "balanced"}], ids=str
)
def test_the_rare_class_is_learnt(rare, tmp_path, settings, caplog):
    monitor = "val/balanced_accuracy"
    run = trained(rare, tmp_path / "r", monitor=monitor, epochs=12, **settings)
    assert run.test_metrics()["test/recall_rare"] > 0.5
    assert "are predicted as" not in caplog.text
    again = Run.open(run.path)
    assert again.recipe == run.recipe
    expected = {f"test/{name}": value for name, value in evaluate(again).items()}
    assert expected == pytest.approx(run.test_metrics())
    assert {"val/auc", "val/recall_rare", "train/macro_f1"} <= run.history()[0].keys()


def test_an_interrupted_run_draws_the_same_images(tmp_path, one_thread):
    options = {"sampler": "balanced", "class_weights": {"3": 2}, "shift": 1, "save_steps": 3}
    settings = {"epochs": 2, "batch_size": 128, "device": "cpu", "progress": False, **options}
    whole = train("lenet5_modern", "digits", out=tmp_path / "a", **settings)

    class Stop:
        def cnnzoo_step_end(self, run, epoch, step, loss):
            if epoch == 2 and step == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("lenet5_modern", "digits", out=tmp_path / "b", observers=[Stop()], **settings)
    resumed = train(resume=tmp_path / "b", progress=False, device="cpu")
    for run in (whole, resumed):
        for line in (lines := run.metrics()):
            line.pop("seconds", None), line.pop("images_per_second", None)
        run.write_metrics(lines)
    assert len(whole.history()) == 2
    assert resumed.metrics() == whole.metrics()


# What does not apply


def test_balance_for_images_says_what_to_do():
    with pytest.raises(UsageError, match="balance = true is only for segmentation") as caught:
        loss_of("classification", recipe(balance=True))
    assert "class_weights=balanced" in caught.value.hint
    assert "sampler=balanced" in caught.value.hint


WRONG = [
    ({"class_weights": "balance"}, "class_weights = 'balance'"),
    ({"class_weights": {"a": -1}}, "class_weights.a = -1: expected a number from 0 to 1e6"),
    ({"class_weights": 3}, "class_weights = 3"),
    ({"sampler": "weighted"}, "sampler = 'weighted'"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_values_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        recipe(**settings)


def test_other_settings_that_do_not_apply_are_refused():
    with pytest.raises(UsageError, match="'focal' does not support label_smoothing"):
        loss_of("classification", recipe(loss="focal", label_smoothing=0.1))
    with pytest.raises(UsageError, match="class_weights and sampler are for"):
        loss_of("segmentation", recipe(sampler="balanced"))
    with pytest.raises(UsageError, match="loss = 'dice' is not for classification"):
        loss_of("classification", recipe(loss="dice"))


def test_a_weight_of_an_unknown_class_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="no class 'seven'"):
        trained("digits", tmp_path / "r", class_weights={"seven": 2})
    assert not (tmp_path / "r").exists()


def test_a_collapse_of_pixels_is_seen_too():
    running = EpochMetrics("segmentation", 2, 0)
    logits = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)], 1)
    running.add(1.0, logits, torch.tensor([[[0] * 4, [1] * 4] * 2], dtype=torch.uint8))
    assert collapse_of("segmentation", running.sums()) == 0


def test_a_table_of_weights_is_part_of_the_recipe(tmp_path):
    (tmp_path / "r.toml").write_text(recipe(class_weights={"a b": 2.5}).to_toml())
    from cnn_core.runs.recipe import read_recipe

    settings = read_recipe(tmp_path / "r.toml").settings
    assert Recipe.from_settings(settings).class_weights == {"a b": 2.5}
    assert json.dumps(dataclasses.asdict(recipe(class_weights="balanced")))
