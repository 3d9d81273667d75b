"""Segmentation: loss and metrics against oracles, and a training from end to end."""

from __future__ import annotations

import json

import pytest
import torch
import torchmetrics
from torch.nn import functional as F

from cnn_core import create_model
from cnn_core.data.augment import IGNORED
from cnn_core.errors import UsageError
from cnn_core.tasks import loss_of, metrics_of
from cnn_core.tasks.segmentation import MeanIoU, PixelAccuracy, center_crop, loss_function
from cnn_core.training import Recipe, predict
from cnn_core.training.setup import find_recipe


def recipe(**settings):
    return Recipe(model="unet_same", data="digit_scenes", **settings)


def masks(seed, classes=3, ignored=0.2, shape=(4, 9, 7)):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, shape, generator=generator).to(torch.uint8)
    targets[torch.rand(shape, generator=generator) < ignored] = IGNORED
    return torch.randn(shape[0], classes, *shape[1:], generator=generator), targets


def brute_iou(predicted, targets, classes):
    """Intersection over union, class by class and pixel by pixel."""
    found = []
    pairs = list(zip(predicted.flatten().tolist(), targets.flatten().tolist(), strict=True))
    pairs = [(p, t) for p, t in pairs if t != IGNORED]
    for number in range(classes):
        both = sum(p == t == number for p, t in pairs)
        either = sum(number in (p, t) for p, t in pairs)
        if either:
            found.append(both / either)
    return sum(found) / len(found) if found else 0.0


@pytest.mark.parametrize("seed", range(40))
def test_metrics_are_those_of_every_pixel_counted_by_hand(seed):
    classes = 2 + seed % 4
    metrics = metrics_of("segmentation", classes)
    assert set(metrics) == {"miou", "pixel_accuracy"}
    logits, targets = masks(seed, classes, ignored=seed / 50)
    for part in (slice(0, 1), slice(1, 4)):  # whatever the batches are
        for metric in metrics.values():
            metric.update(logits[part], targets[part])
    predicted = logits.argmax(1)
    counted = targets != IGNORED
    hits = (predicted == targets)[counted].double().mean().item()
    assert metrics["pixel_accuracy"].compute() == pytest.approx(hits, abs=1e-12)
    by_hand = brute_iou(predicted, targets, classes)
    assert metrics["miou"].compute() == pytest.approx(by_hand, abs=1e-12)
    theirs = torchmetrics.JaccardIndex("multiclass", num_classes=classes, ignore_index=IGNORED)
    theirs.update(predicted, targets.long())
    assert metrics["miou"].compute() == pytest.approx(theirs.compute().item(), abs=1e-6)


def test_metrics_of_a_split_are_not_means_of_batches():
    metric = MeanIoU(2)
    all_of_it, none = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    all_of_it[:, 1], none[:, 0] = 1, 1
    one = torch.ones(1, 4, 4, dtype=torch.uint8)
    few = torch.zeros(1, 4, 4, dtype=torch.uint8)
    few[0, 0, 0] = 1
    for logits, targets in ((all_of_it, one), (none, few)):
        metric.update(logits, targets)
    assert metric.compute() == pytest.approx((16 / 17 + 15 / 16) / 2)


def test_empty_masks_and_absent_classes_have_defined_values():
    logits, _ = masks(0)
    nothing = torch.full((4, 9, 7), IGNORED, dtype=torch.uint8)
    for metric in (MeanIoU(3), PixelAccuracy(3)):
        assert metric.compute() == 0
        metric.update(logits, nothing)
        assert metric.compute() == 0
    assert loss_function(recipe())(logits, nothing) == 0
    metric = MeanIoU(3)
    only_zero = torch.zeros(1, 3, 2, 2)
    only_zero[:, 0] = 1
    metric.update(only_zero, torch.zeros(1, 2, 2, dtype=torch.uint8))
    assert metric.compute() == 1  # classes 1 and 2 are nowhere


def test_the_loss_is_the_mean_over_pixels_that_count():
    logits, targets = masks(3)
    found = loss_of("segmentation", recipe())(logits, targets)
    counted = targets != IGNORED
    flat = logits.permute(0, 2, 3, 1)[counted]
    assert found.item() == pytest.approx(F.cross_entropy(flat, targets[counted].long()).item())


def test_ignored_pixels_change_neither_loss_nor_gradient_nor_metric():
    logits, targets = masks(4)
    other = logits.clone()
    other[(targets == IGNORED)[:, None].expand_as(logits)] = 1000.0
    gradients = []
    for values in (logits, other):
        values.requires_grad_()
        loss = loss_function(recipe())(values, targets)
        loss.backward()
        gradients.append((loss.item(), values.grad.abs().sum().item()))
    assert gradients[0] == pytest.approx(gradients[1])


def test_logits_of_the_centre_are_held_to_the_targets_centre():
    targets = torch.arange(36, dtype=torch.uint8).view(1, 6, 6)
    assert torch.equal(center_crop(targets, torch.zeros(1, 2, 2, 4)), targets[:, 2:4, 1:5])


def test_what_only_whole_images_can_have_is_refused():
    for settings in ({"loss": "map"}, {"mixup": 0.2}, {"cutmix": 1.0}, {"policy": "randaugment"}):
        with pytest.raises(UsageError, match="classification"):
            loss_function(recipe(**settings))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A U-Net of an eighth of the width after two epochs of digit scenes."""
    from cnn_core import train

    out = tmp_path_factory.mktemp("runs") / "scenes"
    small = {"width": 8, "depth": 3}
    return train(
        *("unet_same", "digit_scenes"),
        out=out,
        epochs=2,
        image_size=64,
        batch_size=16,
        lr=0.002,
        optimizer="adamw",
        flip=True,
        options=small,
        progress=False,
    )


@pytest.mark.xdist_group("segmentation")
def test_a_unet_learns_to_find_digits(trained, cnnzoo):
    last = trained.history()[-1]
    assert last["val/miou"] > 0.75
    assert trained.test_metrics()["test/miou"] > 0.75
    assert {"test/loss", "test/miou", "test/dice", "test/hd95", "test/ece"} <= set(
        trained.test_metrics()
    )
    assert "test/rand_error" not in trained.test_metrics()  # of the challenge's data only
    assert not any("dice" in key for key in last)  # epochs take what is cheap
    done = cnnzoo("evaluate", str(trained.path), "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["test/miou"] == pytest.approx(
        trained.test_metrics()["test/miou"]
    )


@pytest.mark.xdist_group("segmentation")
def test_weights_of_a_unet_come_back(trained):
    model = create_model("unet_same", weights=trained.path, in_channels=1, width=8, depth=3)
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 2, 64, 64)


@pytest.mark.xdist_group("segmentation")
def test_what_is_for_classification_says_so(trained, cnnzoo, tmp_path):
    with pytest.raises(
        UsageError, match=r"is a segmentation model; use cnn_core\.training\.segment"
    ):
        predict(trained.path, ["x.png"])
    done = cnnzoo("train", "unet_same", "--data", "digits", "--out", str(tmp_path / "x"))
    assert done.code == 2
    assert "is for segmentation, but dataset 'digits' is for classification" in done.err


def test_a_batch_size_is_the_recipes_or_the_users():
    assert find_recipe("unet", "digit_scenes", None, {"batch_size": 5}).batch_size == 5
    assert find_recipe("unet_same", "digit_scenes", None, {}).batch_size == 16  # its recipe's
    assert find_recipe("lenet5", "mnist", "lenet5-mnist", {}).batch_size == 64
