"""Every number of a segmentation, against loops over pixels, and against the field's libraries.

Oracles are plain Python, from the definitions: they share nothing with what they test.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torchmetrics
from PIL import Image
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff
from sklearn import metrics as sklearn_metrics
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.segmentation import DiceScore

from cnn_core import load_dataset
from cnn_core.data.augment import IGNORED
from cnn_core.data.decoder import Decoder
from cnn_core.errors import UsageError
from cnn_core.tasks import boundaries, curves, em, regions
from cnn_core.tasks.segmentation import MeanIoU, PixelAccuracy

COUNTS = [50, pytest.param(1000, marks=pytest.mark.slow)]
METRICS = (
    regions.Regions,
    regions.PerImage,
    curves.Curves,
    curves.Calibration,
    boundaries.Boundaries,
    em.ChallengeErrors,
)
counts = pytest.mark.parametrize("count", COUNTS)


def exactly(value):
    return pytest.approx(value, rel=0, abs=1e-12)


def smooth(rng, shape, sigma=2.0):
    return ndimage.gaussian_filter(rng.standard_normal(shape), (0, sigma, sigma)) * 4


def masks(seed, classes=None, shape=(2, 12, 15)):
    """Logits and targets: of blobs or noise; a class absent, one everywhere; pixels ignored."""
    rng = np.random.default_rng(seed)
    classes = classes or 2 + seed % 3
    field = rng.standard_normal if seed % 2 else lambda shape: smooth(rng, shape)
    truth = np.stack([field(shape) for _ in range(classes)], 1)
    logits = rng.uniform(0, 2) * truth + rng.uniform(0.2, 1.5) * np.stack(
        [smooth(rng, shape, 1.0) for _ in range(classes)], 1
    )
    targets = truth.argmax(1)
    if seed % 5 == 0:
        targets[targets == classes - 1] = 0  # a class that no target has
    if seed % 7 == 3:
        targets[0] = seed % classes  # full of one class, empty of others
    if seed % 11 == 5:
        logits[:, 0] += 100  # predicts the background only
    if seed % 3 == 1:
        targets[rng.random(shape) < 0.2] = IGNORED
    if seed % 3 == 2:
        targets[:, 2:7, 3:9] = IGNORED
    if seed % 13 == 8:
        targets[-1] = IGNORED  # an image of which nothing counts
    return torch.from_numpy(logits).float(), torch.from_numpy(targets).to(torch.uint8)


def taken(metric, logits, targets):
    metric.update(logits, targets)
    return metric.compute()


def one_hot(mask, classes=2, size=1e4):
    """Logits, N classes H W, that say what a mask, N H W, does."""
    return size * torch.nn.functional.one_hot(mask.long(), classes).movedim(-1, 1).float()


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def counted(predicted, targets):
    pairs = zip(predicted.flatten().tolist(), targets.flatten().tolist(), strict=True)
    return [(p, t) for p, t in pairs if t != IGNORED]


# --- Regions ---------------------------------------------------------------------------------


def regions_by_hand(pairs, classes):
    """{class: (IoU, Dice, precision, recall)} of the classes that some pixel has."""
    found = {}
    for k in range(classes):
        hits = sum(p == k and t == k for p, t in pairs)
        false = sum(p == k and t != k for p, t in pairs)
        missed = sum(p != k and t == k for p, t in pairs)
        if hits + false + missed:
            found[k] = (
                hits / (hits + false + missed),
                2 * hits / (2 * hits + false + missed),
                hits / (hits + false) if hits + false else 0.0,
                hits / (hits + missed) if hits + missed else 0.0,
            )
    return found


@counts
def test_regions_are_those_of_every_pixel_counted_by_hand(count):
    for seed in range(count):
        logits, targets = masks(seed)
        classes, predicted = logits.shape[1], logits.argmax(1)
        found = taken(regions.Regions(classes), logits, targets)
        by_hand = regions_by_hand(counted(predicted, targets), classes)
        assert found == exactly(
            {
                "dice": mean(row[1] for row in by_hand.values()),
                "precision": mean(row[2] for row in by_hand.values()),
                "recall": mean(row[3] for row in by_hand.values()),
                **{f"iou/{k}": row[0] for k, row in by_hand.items()},
            }
        ), seed
        miou = mean(row[0] for row in by_hand.values())
        assert taken(MeanIoU(classes), logits, targets) == exactly(miou), seed
        images = [
            regions_by_hand(pairs, classes)
            for p, t in zip(predicted, targets, strict=True)
            if (pairs := counted(p, t))
        ]
        assert taken(regions.PerImage(classes), logits, targets) == exactly(
            {
                "image_miou": mean(mean(row[0] for row in i.values()) for i in images),
                "image_dice": mean(mean(row[1] for row in i.values()) for i in images),
            }
        ), seed
        pairs = counted(predicted[0], targets[0])
        assert regions.image_scores(predicted[0], targets[0], classes) == exactly(
            {
                "pixel_accuracy": mean(p == t for p, t in pairs),
                "miou": mean(row[0] for row in images[0].values()),
                "dice": mean(row[1] for row in images[0].values()),
                **{f"iou/{k}": row[0] for k, row in images[0].items()},
            }
        ), seed


@counts
def test_regions_are_those_of_sklearn_and_torchmetrics(count):
    for seed in range(count):
        logits, targets = masks(seed)
        classes, predicted = logits.shape[1], logits.argmax(1)
        found = taken(regions.Regions(classes), logits, targets)
        p, t = np.array(counted(predicted, targets)).T
        there = np.union1d(p, t)
        settings = {"labels": there, "zero_division": 0}
        for name, theirs in (
            ("dice", sklearn_metrics.f1_score),
            ("precision", sklearn_metrics.precision_score),
            ("recall", sklearn_metrics.recall_score),
        ):
            assert found[name] == exactly(theirs(t, p, average="macro", **settings)), seed
        ious = sklearn_metrics.jaccard_score(t, p, average=None, **settings)
        assert {k: v for k, v in found.items() if k.startswith("iou/")} == exactly(
            {f"iou/{k}": iou for k, iou in zip(there, ious, strict=True)}
        ), seed
        accuracy = sklearn_metrics.accuracy_score(t, p)
        assert taken(PixelAccuracy(classes), logits, targets) == exactly(accuracy), seed
        for name, theirs in (
            ("miou", torchmetrics.JaccardIndex),
            ("dice", torchmetrics.F1Score),
            ("precision", torchmetrics.Precision),
            ("recall", torchmetrics.Recall),
        ):
            peer = theirs("multiclass", num_classes=classes, average="macro", ignore_index=IGNORED)
            ours = taken(MeanIoU(classes), logits, targets) if name == "miou" else found[name]
            expected = peer(predicted, targets.long()).item()  # in float32
            assert ours == pytest.approx(expected, rel=0, abs=1e-6), seed


@counts
def test_dice_is_that_of_torchmetrics_where_no_pixel_is_ignored(count):
    """Theirs cannot ignore pixels, and counts classes that are absent as NaN, in float32."""
    for seed in range(count):
        logits, targets = masks(seed)
        targets = targets.where(targets != IGNORED, 0)
        classes, predicted = logits.shape[1], logits.argmax(1)
        peer = DiceScore(classes, average="none", aggregation_level="global", input_format="index")
        theirs = peer(predicted, targets.long())
        there = sorted({k for pair in counted(predicted, targets) for k in pair})
        found = taken(regions.Regions(classes), logits, targets)
        expected = mean(theirs[k].item() for k in there)
        assert found["dice"] == pytest.approx(expected, rel=0, abs=1e-6), seed


# --- Curves ----------------------------------------------------------------------------------


def odds_by_hand(row, k):
    """log(p_k / (1 - p_k)) of one pixel."""
    others = [x for j, x in enumerate(row) if j != k]
    top = max(others)
    return row[k] - top - math.log(sum(math.exp(x - top) for x in others))


@counts
def test_rounded_scores_are_steps_of_log_odds(count):
    for seed in range(count):
        logits, _ = masks(seed)
        pixels = logits.movedim(1, -1).flatten(0, 2)[:60] * (1 + seed % 4)
        for row, bins in zip(pixels.double().tolist(), curves.log_odds_bins(pixels), strict=True):
            for k, number in enumerate(bins.tolist()):
                place = min(max((odds_by_hand(row, k) + 16) * 128, 0), 4095)
                assert number <= place + 1e-7, seed
                assert place - 1e-7 < number + 1, seed


def test_rounded_scores_at_the_ends():
    infinite, nan = math.inf, math.nan
    rows = [[0, 0], [0, 15.999], [0, 16], [0, 40], [0, 1e4], [0, infinite], [0, nan], [-16, 0]]
    bins = curves.log_odds_bins(torch.tensor(rows, dtype=torch.float32))
    assert bins[:, 1].tolist() == [2048, 4095, 4095, 4095, 4095, 4095, 0, 4095]
    assert bins[:6, 0].tolist() == [2048, 0, 0, 0, 0, 0]
    assert curves.log_odds_bins(torch.tensor([0.0, -infinite])).tolist() == [4095, 0]
    bins = curves.log_odds_bins(torch.tensor([0, 0, infinite]))
    assert bins.tolist() == [0, 0, 0]  # its softmax: NaN
    bins = curves.log_odds_bins(torch.tensor([[0, 1 / 128], [0, 2 / 128]]))
    assert bins[:, 1].diff().item() == 1


def ranked(logits, targets):
    """(class, bins, odds, whether it is the class) of the classes with pixels and with others."""
    kept = targets != IGNORED
    pixels, truth = logits.movedim(1, -1)[kept], targets[kept].numpy()
    bins = curves.log_odds_bins(pixels).numpy()
    odds = pixels.double().numpy()
    for k in range(logits.shape[1]):
        if 0 < (truth == k).sum() < len(truth):
            others = np.delete(odds, k, 1)
            top = others.max(1)
            rest = top + np.log(np.exp(others - top[:, None]).sum(1))
            yield k, bins[:, k], odds[:, k] - rest, truth == k


def ap_by_hand(scores, labels):
    """Sum over thresholds of precision x what recall gains."""
    total, gained, pairs = sum(labels), 0, list(zip(scores, labels, strict=True))
    area = 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = [label for score, label in pairs if score >= threshold]
        area += sum(above) / len(above) * (sum(above) - gained) / total
        gained = sum(above)
    return area


def auc_by_hand(scores, labels):
    """How many pairs are in order; ties are half of one."""
    positive = [s for s, label in zip(scores, labels, strict=True) if label]
    negative = [s for s, label in zip(scores, labels, strict=True) if not label]
    wins = sum((p > n) + (p == n) / 2 for p, n in itertools.product(positive, negative))
    return wins / len(positive) / len(negative)


@counts
def test_areas_under_curves_are_those_by_hand_and_of_sklearn(count):
    for seed in range(count):
        logits, targets = masks(seed)
        found = taken(curves.Curves(logits.shape[1]), logits, targets)
        there = list(ranked(logits, targets))
        rows = [(bins.tolist(), labels.tolist()) for _, bins, _, labels in there]
        assert found == exactly(
            {
                "ap": mean(ap_by_hand(*row) for row in rows),
                "auc": mean(auc_by_hand(*row) for row in rows),
            }
        ), seed
        theirs = [(labels, bins) for _, bins, _, labels in there]
        assert found == exactly(
            {
                "ap": mean(sklearn_metrics.average_precision_score(*row) for row in theirs),
                "auc": mean(sklearn_metrics.roc_auc_score(*row) for row in theirs),
            }
        ), seed


@counts
def test_curves_are_those_of_sklearn_point_by_point(count):
    for seed in range(count):
        logits, targets = masks(seed)
        metric = curves.Curves(logits.shape[1])
        metric.update(logits, targets)
        for k, bins, _, labels in ranked(logits, targets):
            histograms = metric.sums[k].unbind(1)
            precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, bins)
            ours = curves.precision_recall(*histograms)
            assert ours[0].numpy() == exactly(precision), seed
            assert ours[1].numpy() == exactly(recall), seed
            false, true, _ = sklearn_metrics.roc_curve(labels, bins, drop_intermediate=False)
            ours = curves.roc(*histograms)
            assert ours[0].numpy() == exactly(false), seed
            assert ours[1].numpy() == exactly(true), seed


def rank_bounds(bins, labels):
    """AP of the worst and the best order within bins; pairs in one bin, as a fraction of all."""
    low = high = ties = 0.0
    hits = alarms = 0
    for number in sorted(set(bins.tolist()), reverse=True):
        h = int(labels[bins == number].sum())
        a = int((bins == number).sum()) - h
        low += sum((hits + j) / (hits + j + alarms + a) for j in range(1, h + 1))
        high += sum((hits + j) / (hits + j + alarms) for j in range(1, h + 1))
        hits, alarms, ties = hits + h, alarms + a, ties + h * a
    return low / hits, high / hits, ties / hits / alarms


@counts
def test_rounding_moves_areas_by_no_more_than_the_order_within_a_step(count):
    for seed in range(count):
        logits, targets = masks(seed)
        noise = np.random.default_rng(seed).standard_normal(logits.shape)
        logits = logits.double() + torch.from_numpy(noise) * 1e-9  # no two are the same
        for _, bins, odds, labels in ranked(logits.clamp(-7, 7), targets):
            histograms = [
                torch.from_numpy(np.bincount(bins[of], minlength=4096)) for of in (labels, ~labels)
            ]
            low, high, ties = rank_bounds(bins, labels)
            ap = sklearn_metrics.average_precision_score(labels, odds)
            auc = sklearn_metrics.roc_auc_score(labels, odds)
            assert low - 1e-12 <= ap <= high + 1e-12, seed
            moved = curves.average_precision(*histograms) - ap
            assert low - ap - 1e-12 <= moved, seed
            assert abs(moved) < 0.02, seed  # of 909 masks, not clamped, 0.010 at most
            moved = curves.area_under_roc(*histograms) - auc
            assert abs(moved) <= min(ties / 2 + 1e-12, 0.002), seed  # … 0.0010


@pytest.mark.parametrize("seed", range(5))
def test_rounding_moves_areas_of_an_image_by_little(seed):
    """Of 27 such images, AP by 0.0009 at most, AUC by 0.000014."""
    logits, targets = masks(seed, classes=2, shape=(1, 256, 256))
    found = taken(curves.Curves(2), logits, targets)
    rows = [(labels, odds) for _, _, odds, labels in ranked(logits.double(), targets)]
    ap = mean(sklearn_metrics.average_precision_score(*row) for row in rows)
    auc = mean(sklearn_metrics.roc_auc_score(*row) for row in rows)
    assert found["ap"] == pytest.approx(ap, rel=0, abs=1e-3)
    assert found["auc"] == pytest.approx(auc, rel=0, abs=2e-5)


def test_what_is_beyond_the_limit_is_not_ranked():
    """Odds of e^16 and more, or less, are one step: where all are, they are ties."""
    logits, targets = masks(2, classes=2)
    logits[:, 0] += 100
    assert taken(curves.Curves(2), logits, targets)["auc"] == 0.5


def test_curves_of_nothing():
    none, some = torch.zeros(4096, dtype=torch.int64), torch.zeros(4096, dtype=torch.int64)
    some[7] = 3
    for positives, negatives in ((none, some), (none, none), (some, none)):
        precision, recall = curves.precision_recall(positives, negatives)
        assert (precision[-1], recall[-1]) == (1, 0)
        false, true = curves.roc(positives, negatives)
        assert (false[0], true[0]) == (0, 0)
        assert len(false) == len(recall) == 1 + int((positives + negatives > 0).sum())
        assert bool(recall.any()) == bool(true.any()) == bool(positives.any())
        assert bool(false.any()) == bool(negatives.any())
    assert curves.average_precision(none, some) == 0
    assert curves.average_precision(some, none) == 1
    assert curves.area_under_roc(none, some) == curves.area_under_roc(some, none) == 0


# --- Calibration -----------------------------------------------------------------------------


def groups_by_hand(logits, targets):
    """{m: [(confidence, hit), …]} with (m - 1) / 15 < confidence <= m / 15."""
    groups = {}
    for row, truth in zip(logits.double().tolist(), targets.tolist(), strict=True):
        powers = [math.exp(x - max(row)) for x in row]
        confidence = max(powers) / sum(powers)
        hit = row.index(max(row)) == truth
        m = next(m for m in range(1, 16) if confidence <= m / 15)
        groups.setdefault(m, []).append((confidence, hit))
    return groups


@counts
def test_calibration_is_that_by_hand_and_of_torchmetrics(count):
    for seed in range(count):
        logits, targets = masks(seed)
        metric = curves.Calibration(logits.shape[1])
        found = taken(metric, logits, targets)
        kept = targets != IGNORED
        pixels, truth = logits.movedim(1, -1)[kept], targets[kept]
        groups = groups_by_hand(pixels, truth)
        gaps = [abs(sum(hit - c for c, hit in rows)) for rows in groups.values()]
        assert found == exactly({"ece": sum(gaps) / len(truth)}), seed
        ours = [column.tolist() for column in curves.reliability(metric.sums)]
        rows = [groups[m] for m in sorted(groups)]
        assert ours[0] == exactly([mean(c for c, _ in row) for row in rows]), seed
        assert ours[1] == exactly([mean(hit for _, hit in row) for row in rows]), seed
        assert ours[2] == exactly([len(row) / len(truth) for row in rows]), seed
        theirs = multiclass_calibration_error(
            logits.double().softmax(1),
            targets.long(),
            num_classes=logits.shape[1],
            n_bins=15,
            norm="l1",
            ignore_index=IGNORED,
        )
        expected = pytest.approx(theirs.item(), rel=0, abs=1e-6)  # they add up in float32
        assert found["ece"] == expected, seed


def test_calibration_at_the_ends():
    exact = curves.Calibration(2)  # the highest of two is 1 / 2 at least: the border 8 / 16
    exact.update(torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 1, IGNORED]]], dtype=torch.uint8))
    assert exact.sums[7].tolist() == [3, 1.5, 2]  # (7 / 15, 8 / 15]
    assert exact.compute()["ece"] == exactly(abs(2 - 1.5) / 3)
    five = curves.Calibration(5)
    five.update(torch.zeros(1, 5, 1, 2), torch.zeros(1, 1, 2, dtype=torch.uint8))
    assert five.sums[2].tolist() == pytest.approx([2, 0.4, 2])  # 1 / 5 = 3 / 15 is in the third
    sure = curves.Calibration(2)
    sure.update(torch.tensor([[[[0.0]], [[1e4]]]]), torch.ones(1, 1, 1, dtype=torch.uint8))
    assert sure.sums[14].tolist() == [1, 1, 1]
    assert sure.compute()["ece"] == 0


# --- Boundaries ------------------------------------------------------------------------------


def boundary_by_hand(mask):
    """(row, column) of pixels with a neighbour, of four, that is outside."""
    height, width = len(mask), len(mask[0])

    def inside(y, x):
        return 0 <= y < height and 0 <= x < width and mask[y][x]

    return [
        (y, x)
        for y, x in itertools.product(range(height), range(width))
        if mask[y][x]
        and not all(inside(y + a, x + b) for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)))
    ]


def percentile_by_hand(values, fraction):
    values = sorted(values)
    place = fraction * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def surface_by_hand(ours, theirs, shape, tolerance=2.0):
    a, b = boundary_by_hand(ours), boundary_by_hand(theirs)
    if not a and not b:
        return {"boundary_f1": 1.0, "hausdorff": 0.0, "hd95": 0.0, "assd": 0.0}
    if not a or not b:
        far = math.sqrt(shape[0] ** 2 + shape[1] ** 2)
        return {"boundary_f1": 0.0, "hausdorff": far, "hd95": far, "assd": far}
    there = [min(math.dist(p, q) for q in b) for p in a]
    back = [min(math.dist(p, q) for p in a) for q in b]
    precision = mean(d <= tolerance for d in there)
    recall = mean(d <= tolerance for d in back)
    total = precision + recall
    return {
        "boundary_f1": 2 * precision * recall / total if total else 0.0,
        "hausdorff": max(there + back),
        "hd95": max(percentile_by_hand(there, 0.95), percentile_by_hand(back, 0.95)),
        "assd": mean(there + back),
    }


def band_by_hand(mask):
    """{(row, column)} of pixels at most 2 % of the diagonal from the outside."""
    height, width = len(mask), len(mask[0])
    reach = max(round(0.02 * math.sqrt(height**2 + width**2)), 1)
    around = range(-reach, reach + 1)
    return {
        (y, x)
        for y, x in itertools.product(range(height), range(width))
        if mask[y][x]
        and not all(
            0 <= y + a < height and 0 <= x + b < width and mask[y + a][x + b]
            for a, b in itertools.product(around, around)
        )
    }


def boundary_iou_by_hand(ours, theirs):
    a, b = band_by_hand(ours), band_by_hand(theirs)
    return len(a & b) / len(a | b) if a | b else 1.0


@counts
def test_boundaries_are_those_by_hand(count):
    for seed in range(count):
        logits, targets = masks(seed)
        classes, predicted = logits.shape[1], logits.argmax(1)
        rows = []
        for p, t in zip(predicted, targets, strict=True):
            for k in range(1, classes):
                ours, theirs = ((p == k) & (t != IGNORED)).tolist(), (t == k).tolist()
                if any(map(any, ours)) or any(map(any, theirs)):
                    row = surface_by_hand(ours, theirs, p.shape)
                    rows.append({**row, "boundary_iou": boundary_iou_by_hand(ours, theirs)})
        names = ("boundary_f1", "boundary_iou", "hausdorff", "hd95", "assd")
        expected = {name: mean(row[name] for row in rows) for name in names}
        assert taken(boundaries.Boundaries(classes), logits, targets) == exactly(expected), seed


@counts
def test_distances_are_those_of_scipy(count):
    compared = 0
    for seed in range(count):
        logits, targets = masks(seed, classes=2)
        for ours, theirs in zip(logits.argmax(1) == 1, targets == 1, strict=True):
            edges = []
            for mask in (ours, theirs):
                edge = mask.numpy() & ~ndimage.binary_erosion(mask.numpy())
                assert np.array_equal(boundaries.boundary(mask).numpy(), edge), seed
                edges.append(np.argwhere(edge))
            if all(map(len, edges)):
                compared += 1
                there, back = directed_hausdorff(*edges), directed_hausdorff(*edges[::-1])
                found = boundaries.surface_scores(ours, theirs)
                assert found["hausdorff"] == exactly(max(there[0], back[0])), seed
    assert compared > count


@pytest.mark.parametrize("shape", [(40, 50), (60, 110), (120, 125)])
def test_bands_are_as_wide_as_two_per_cent_of_the_diagonal(shape):
    for seed in range(4):
        logits, targets = masks(seed, classes=2, shape=(1, *shape))
        ours, theirs = logits.argmax(1) == 1, targets == 1
        found = boundaries.boundary_iou(ours, theirs)
        by_hand = boundary_iou_by_hand(ours[0].tolist(), theirs[0].tolist())
        assert found.item() == exactly(by_hand), seed
        width = {(40, 50): 1, (60, 110): 3, (120, 125): 3}[shape]
        square = np.ones((2 * width + 1, 2 * width + 1))
        a, b = (
            m[0].numpy() & ~ndimage.binary_erosion(m[0].numpy(), square) for m in (ours, theirs)
        )
        assert found.item() == exactly((a & b).sum() / (a | b).sum()), seed


def square(top, left, size=6, shape=(16, 20)):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[top : top + size, left : left + size] = True
    return mask


def test_distances_of_squares():
    same = boundaries.surface_scores(square(4, 4), square(4, 4))
    assert same == {"boundary_f1": 1, "hausdorff": 0, "hd95": 0, "assd": 0}
    for shift, f1 in ((1, 1), (2, 1)):
        found = boundaries.surface_scores(square(4, 4), square(4, 4 + shift))
        assert found["hausdorff"] == shift
        assert found["boundary_f1"] == f1  # at the tolerance is within it
    far = boundaries.surface_scores(square(0, 0, 1), square(3, 4, 1))
    assert far == {"boundary_f1": 0, "hausdorff": 5, "hd95": 5, "assd": 5}
    near = boundaries.surface_scores(square(0, 0, 1), square(3, 4, 1), tolerance=5)
    assert near["boundary_f1"] == 1


def test_boundaries_of_empty_and_of_full_masks():
    empty, full = torch.zeros(16, 20, dtype=torch.bool), torch.ones(16, 20, dtype=torch.bool)
    far = math.hypot(16, 20)
    nothing = {"boundary_f1": 1, "hausdorff": 0, "hd95": 0, "assd": 0}
    assert boundaries.surface_scores(empty, empty) == nothing
    for pair in ((empty, full), (full, empty)):
        found = boundaries.surface_scores(*pair)
        assert found == {"boundary_f1": 0, "hausdorff": far, "hd95": far, "assd": far}
    assert boundaries.boundary(full).sum() == 2 * (16 + 20) - 4
    ious = boundaries.boundary_iou(
        torch.stack([empty, empty, full]), torch.stack([empty, full, full])
    )
    assert ious.tolist() == [1, 0, 1]


# --- Errors of ISBI 2012 ---------------------------------------------------------------------


def cells_by_hand(mask):
    """{(row, column): cell} of 4-connected cells, by filling them one by one."""
    left = {(y, x) for y, row in enumerate(mask) for x, cell in enumerate(row) if cell}
    found, number = {}, 0
    while left:
        number += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            found[y, x] = number
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            front += near
    return found


def rand_by_hand(predicted, target):
    """1 - 2 precision x recall / (precision + recall) of all pairs of pixels of cells."""
    theirs = cells_by_hand((target == 1).tolist())
    ours = cells_by_hand(((predicted == 1) & (target != IGNORED)).tolist())
    if not theirs:
        return 0.0
    both = in_ours = in_theirs = 0
    for a, b in itertools.product(theirs, theirs):
        together = a == b or (a in ours and ours[a] == ours.get(b))
        in_ours += together
        in_theirs += theirs[a] == theirs[b]
        both += together and theirs[a] == theirs[b]
    precision, recall = both / in_ours, both / in_theirs
    return 1 - 2 * precision * recall / (precision + recall)


def parts(cells):
    """How many cells and membranes an image has."""
    return ndimage.label(cells)[1], ndimage.label(~cells, np.ones((3, 3)))[1]


def warped_by_hand(predicted, target):
    """The target, a frame around it, after warping: a flip may change no number of parts."""
    goal = np.pad(((predicted == 1) & (target != IGNORED)).numpy(), 1)
    image = np.pad((target == 1).numpy(), 1)
    queue = [tuple(place) for place in np.argwhere(image != goal).tolist()]
    while queue:
        y, x = queue.pop(0)
        if image[y, x] == goal[y, x]:
            continue
        before = parts(image)
        image[y, x] = goal[y, x]
        if parts(image) != before:
            image[y, x] = not goal[y, x]
            continue
        around = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
        queue += [(y + a, x + b) for a, b in around if image[y + a, x + b] != goal[y + a, x + b]]
    return image, goal


@counts
def test_errors_of_the_challenge_are_those_by_hand(count):
    for seed in range(count):
        logits, targets = masks(seed, classes=2, shape=(2, 9, 11))
        rows = []
        for p, t in zip(logits.argmax(1), targets, strict=True):
            if not (pairs := counted(p, t)):
                continue
            image, goal = warped_by_hand(p, t)
            assert parts(image) == parts(np.pad((t == 1).numpy(), 1)), seed
            left = (image != goal)[1:-1, 1:-1]
            assert np.array_equal(em.topology_errors(p, t).numpy(), left), seed
            errors = {
                "pixel_error": mean(a != b for a, b in pairs),
                "rand_error": rand_by_hand(p, t),
                "warping_error": left.sum() / len(pairs),
            }
            assert em.pixel_error(p, t) == exactly(errors["pixel_error"]), seed
            assert em.rand_error(p, t) == exactly(errors["rand_error"]), seed
            assert em.warping_error(p, t) == exactly(errors["warping_error"]), seed
            rows.append(errors)
        names = ("pixel_error", "rand_error", "warping_error")
        expected = {name: mean(row[name] for row in rows) for name in names}
        assert taken(em.ChallengeErrors(2), logits, targets) == exactly(expected), seed


def test_simple_pixels_are_those_that_join_and_part_nothing_around_them():
    """One cell, 4-connected, and one membrane, 8-connected, touch the pixel (Kong, 1989)."""
    places = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))
    sides = [(0, 1), (1, 2), (2, 1), (1, 0)]
    for number, simple in enumerate(em.SIMPLE):
        cells = np.zeros((3, 3), dtype=bool)
        for k, place in enumerate(places):
            cells[place] = number >> k & 1
        membranes = ~cells
        membranes[1, 1] = False
        labels = ndimage.label(cells)[0]
        touching = {labels[place] for place in sides} - {0}
        around = ndimage.label(membranes, np.ones((3, 3)))[1]
        assert simple == (len(touching) == 1 and around == 1), number
    assert len(em.SIMPLE) == 256


def drawing(text):
    rows = [[character == "." for character in row] for row in text.split()]
    return torch.tensor(rows).to(torch.uint8)


TWO_CELLS = drawing("...#... ...#... ...#... ...#...")


@pytest.mark.parametrize(
    ("name", "predicted", "left", "rand"),
    [
        ("as it is", "...#... ...#... ...#... ...#...", 0, 0.0),
        ("shifted", "....#.. ....#.. ....#.. ....#..", 0, None),
        ("wider", "..###.. ..###.. ..###.. ..###..", 0, None),
        ("crooked", "...#... ..#.... ...#... ...#...", 0, None),  # a diagonal parts cells
        ("open", "...#... ...#... ....... ...#...", 1, 1 - 2 * 288 / (288 + 24**2)),
        ("all cell", "....... ....... ....... .......", 4, None),
        ("a hole", "...#... .#.#... ...#... ...#...", 1, None),
        ("a line too many", "...#.#. ...#.#. ...#.#. ...#.#.", 1, None),
        ("all membrane", "####### ####### ####### #######", 2, 1 - 2 * 24 / (24 + 288)),
    ],
)
def test_warping_counts_what_breaks_topology(name, predicted, left, rand):
    predicted = drawing(predicted)
    assert int(em.topology_errors(predicted, TWO_CELLS).sum()) == left, name
    assert em.warping_error(predicted, TWO_CELLS) == exactly(left / 28)
    if rand is not None:
        assert em.rand_error(predicted, TWO_CELLS) == exactly(rand)
    image, goal = warped_by_hand(predicted, TWO_CELLS)
    assert (image != goal).sum() == left


def test_errors_of_the_challenge_are_for_two_classes():
    with pytest.raises(UsageError, match="two classes, membrane and cell, found 3"):
        em.ChallengeErrors(3)


# --- All of them -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METRICS)
@counts
def test_sums_of_parts_are_the_sums_of_the_whole(kind, count):
    for seed in range(count):
        logits, targets = masks(seed, classes=2, shape=(3, 7, 8))
        first, second, whole = kind(2), kind(2), kind(2)
        first.update(logits[:1], targets[:1])
        second.update(logits[1:], targets[1:])
        whole.update(logits, targets)
        added = first.sums + second.sums
        if whole.sums.is_floating_point():
            torch.testing.assert_close(added, whole.sums, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(added, whole.sums), seed
        first.sums = added
        assert first.compute() == exactly(whole.compute()), seed


@pytest.mark.parametrize("kind", METRICS)
def test_ignored_pixels_count_in_nothing(kind):
    for seed in range(20):
        logits, targets = masks(seed, classes=2)
        targets[:, 5:9, 4:8] = IGNORED
        other = logits.clone()
        other[(targets == IGNORED)[:, None].expand_as(logits)] *= -50
        assert taken(kind(2), other, targets) == taken(kind(2), logits, targets), seed


NOTHING = {
    regions.Regions: {"dice": 0, "precision": 0, "recall": 0},
    regions.PerImage: {"image_miou": 0, "image_dice": 0},
    curves.Curves: {"ap": 0, "auc": 0},
    curves.Calibration: {"ece": 0},
    boundaries.Boundaries: dict.fromkeys(boundaries.Boundaries.names, 0),
    em.ChallengeErrors: dict.fromkeys(em.ChallengeErrors.names, 0),
}


@pytest.mark.parametrize("kind", METRICS)
def test_of_nothing_every_number_is_zero(kind):
    assert kind(2).compute() == NOTHING[kind]
    ignored = torch.full((2, 12, 15), IGNORED, dtype=torch.uint8)
    assert taken(kind(2), masks(0, classes=2)[0], ignored) == NOTHING[kind]


GROUND_ONLY = {  # targets and predictions have class 0 only
    regions.Regions: {"dice": 1, "precision": 1, "recall": 1, "iou/0": 1},
    regions.PerImage: {"image_miou": 1, "image_dice": 1},
    curves.Curves: {"ap": 0, "auc": 0},  # there are no others
    curves.Calibration: {"ece": 0},
    boundaries.Boundaries: dict.fromkeys(boundaries.Boundaries.names, 0),  # no pair counts
    em.ChallengeErrors: dict.fromkeys(em.ChallengeErrors.names, 0),
}
ONE_ONLY = {
    **GROUND_ONLY,
    regions.Regions: {"dice": 1, "precision": 1, "recall": 1, "iou/1": 1},
    boundaries.Boundaries: {
        "boundary_f1": 1,
        "boundary_iou": 1,
        "hausdorff": 0,
        "hd95": 0,
        "assd": 0,
    },
}


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize(("number", "expected"), [(0, GROUND_ONLY), (1, ONE_ONLY)])
def test_of_one_class_alone_every_number_is_defined(kind, number, expected):
    targets = torch.full((2, 6, 7), number, dtype=torch.uint8)
    targets[:, :2, :2] = IGNORED
    found = taken(kind(2), one_hot(targets.where(targets != IGNORED, 0)), targets)
    assert found == expected[kind]


@pytest.mark.parametrize("kind", METRICS[:-1])
def test_absent_classes_count_in_no_mean(kind):
    logits, targets = masks(4, classes=2)
    more = torch.cat([logits, logits.new_full((2, 3, 12, 15), -1e9)], 1)
    assert taken(kind(5), more, targets) == exactly(taken(kind(2), logits, targets))


@pytest.mark.parametrize("kind", METRICS)
def test_one_channel_is_two_and_logits_may_be_of_the_centre(kind):
    logits, targets = masks(1, classes=2)
    logits[:, 0] = 0
    whole = torch.full((2, 16, 21), 1, dtype=torch.uint8)
    whole[:, 2:14, 3:18] = targets
    assert taken(kind(2), logits[:, 1:], whole) == taken(kind(2), logits, targets)


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("channels", [1, 2])
def test_logits_that_are_not_numbers_crash_nothing(kind, channels):
    logits, targets = masks(1, classes=2)
    for part in (logits[:, :channels].clone(), torch.full((2, channels, 12, 15), math.nan)):
        part[0, 0, :6] = math.nan
        part[1, -1, 3, 3:6] = math.inf
        part[1, 0, 4, 3:6] = -math.inf
        found = taken(kind(2), part, targets)
        assert all(map(math.isfinite, found.values())), found


# --- A trimap --------------------------------------------------------------------------------


@pytest.fixture
def trimap(tmp_path):
    """A pet as it is published, 1 pet, 2 background, 3 border, and as it is read: N H W."""
    drawn = np.full((20, 16), 2, dtype=np.uint8)
    drawn[3:17, 3:12] = 3
    drawn[5:15, 5:10] = 1
    for folder in ("images", "annotations/trimaps"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (16, 20)).save(tmp_path / "images" / "Abyssinian_1.jpg")
    Image.fromarray(drawn).save(tmp_path / "annotations" / "trimaps" / "Abyssinian_1.png")
    for part in ("trainval", "test"):
        (tmp_path / "annotations" / f"{part}.txt").write_text("Abyssinian_1 1 1 1\n")
    data = load_dataset("pets_segmentation", data_dir=tmp_path).split("train")
    return torch.from_numpy(drawn)[None], Decoder(data, None)[0][1].view(1, 20, 16)


PETS, GROUNDS = 10 * 5, 20 * 16 - 14 * 9  # pixels; 76 of the border


def all_scores(logits, targets):
    found = {}
    for kind in (*METRICS, MeanIoU, PixelAccuracy):
        value = taken(kind(2), logits, targets)
        found |= value if isinstance(value, dict) else {kind.__name__: value}
    return found


@pytest.mark.parametrize("number", [0, 1])
def test_one_class_everywhere_scores_what_a_trimap_says(trimap, number):
    _, targets = trimap
    part = (GROUNDS, PETS)[number] / (PETS + GROUNDS)
    logits = one_hot(torch.full_like(targets, number), size=math.log(3.0))  # p = 3 / 4
    found = all_scores(logits, targets)
    dice = 2 * part / (1 + part)
    expected = {
        "PixelAccuracy": part,
        "MeanIoU": part / 2,
        f"iou/{number}": part,
        f"iou/{1 - number}": 0,
        "dice": dice / 2,
        "precision": part / 2,
        "recall": 1 / 2,
        "image_miou": part / 2,
        "image_dice": dice / 2,
        "ap": 1 / 2,  # each class is as frequent as it is
        "auc": 1 / 2,
        "pixel_error": 1 - part,
    }
    assert {name: found[name] for name in expected} == exactly(expected)
    assert found["ece"] == pytest.approx(abs(0.75 - part), abs=1e-7)  # log(3) is a float32
    if number == 0:
        far = math.hypot(20, 16)
        assert [found[name] for name in ("hausdorff", "hd95", "assd")] == [far] * 3
        assert found["boundary_f1"] == found["boundary_iou"] == 0
        assert found["rand_error"] == exactly(1 - 2 * PETS / (PETS + PETS**2))
        assert found["warping_error"] == exactly(1 / (PETS + GROUNDS))  # what a cell shrinks to
    else:
        assert found["rand_error"] == 0  # the one cell is within one


def test_an_inverted_trimap_scores_worse_in_everything(trimap):
    drawn, targets = trimap
    assert Counter(targets.flatten().tolist()) == {0: GROUNDS, 1: PETS, IGNORED: 76}
    right = all_scores(one_hot(drawn == 1), targets)
    wrong = all_scores(one_hot(drawn == 2), targets)
    less = ("hausdorff", "hd95", "assd", "ece", "pixel_error", "rand_error", "warping_error")
    assert set(right) == set(wrong)
    for name in right:
        better, worse = (
            (-right[name], -wrong[name]) if name in less else (right[name], wrong[name])
        )
        assert better > worse, name
        assert right[name] == (0 if name in less else 1), name
