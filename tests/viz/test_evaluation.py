"""The evaluation figures of a classifier, checked against sklearn or against plain counting."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import (
    auc,
    average_precision_score,
    confusion_matrix,
    f1_score,
    log_loss,
    roc_auc_score,
)
from torch import Tensor, nn
from torch.nn import functional as F

import cnn_core
from cnn_core.errors import UsageError
from cnn_core.training import Predictions
from cnn_viz import draw, style
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.results.metrics import (
    TEMPERATURES,
    cluster_order,
    confused_pairs,
    fit_temperature,
    mean_curves,
    one_vs_rest,
    ranking_curves,
    reliability,
    risk_coverage,
)
from cnn_viz.views.calibration import calibration
from cnn_viz.views.class_scores import class_scores
from cnn_viz.views.confused import confused
from cnn_viz.views.confusion import confusion
from cnn_viz.views.coverage import coverage
from cnn_viz.views.predictions import predictions
from cnn_viz.views.rankings import rankings
from cnn_viz.views.weights import value_histograms


def noisy(count: int, classes: int, sharpness: float = 2.0) -> Predictions:
    """Return predictions better than chance, with logits of a known sharpness."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(count) % classes
    logits = torch.randn(count, classes, generator=generator)
    logits += 1.5 * F.one_hot(targets, classes)
    images = torch.randint(0, 256, (count, 1, 6, 6), generator=generator, dtype=torch.uint8)
    names = tuple(f"class {n}" for n in range(classes))
    return Predictions(images, sharpness * logits, targets, names)


def drawn(text: Figure) -> str:
    """Return all text of a figure."""
    inside = [t.get_text() for ax in text.axes for t in ax.texts]
    titles = [ax.get_title(loc="left") for ax in text.axes]
    return "\n".join([text.get_suptitle(), text.get_supxlabel(), *titles, *inside])


# calibration


def counted(logits: Tensor, targets: Tensor) -> tuple[list[int], list[int], list[float]]:
    """Return each non-empty bin's number, count and gap (Guo et al. 2017, Eq. 2-5)."""
    groups: dict[int, list[tuple[float, bool]]] = {}
    for row, target in zip(logits.double().softmax(1), targets, strict=True):
        confidence = float(row.max())
        place = math.ceil(confidence * 15) - 1
        groups.setdefault(place, []).append((confidence, bool(row.argmax() == target)))
    pairs = [np.array(groups[place], dtype=float) for place in sorted(groups)]
    gaps = [abs(pair[:, 1].mean() - pair[:, 0].mean()) for pair in pairs]
    return sorted(groups), [len(pair) for pair in pairs], gaps


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_reliability_equals_counting(classes):
    outputs = noisy(500, classes)
    found = reliability(outputs.logits, outputs.targets)
    bins, counts, gaps = counted(outputs.logits, outputs.targets)
    assert len(bins) > 3
    assert found.bins.tolist() == bins
    np.testing.assert_allclose(found.share, np.array(counts) / 500)
    assert found.ece == pytest.approx(np.dot(counts, gaps) / 500)
    assert found.mce == pytest.approx(max(gaps))
    shares = outputs.logits.double().softmax(1).numpy()
    assert found.nll == pytest.approx(log_loss(outputs.targets, shares))
    truth = np.eye(classes)[outputs.targets]
    assert found.brier == pytest.approx(
        np.mean([((p - t) ** 2).sum() for p, t in zip(shares, truth, strict=True)])
    )


def test_a_known_temperature_is_recovered():
    """Targets drawn from the softmax itself: sharpened threefold, a temperature of 3 fixes it."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=generator)
    targets = logits.softmax(1).multinomial(1, generator=generator).squeeze(1)
    assert fit_temperature(logits, targets) == pytest.approx(1, abs=0.03)
    assert fit_temperature(3 * logits, targets) == pytest.approx(3, abs=0.1)
    before, after = reliability(3 * logits, targets), reliability(logits, targets)
    assert after.ece < 0.02 < before.ece
    grid = np.geomspace(1, 9, 100)
    best = min(
        float(F.cross_entropy(3 * logits / float(temperature), targets)) for temperature in grid
    )
    temperature = fit_temperature(3 * logits, targets)
    assert float(F.cross_entropy(3 * logits / temperature, targets)) <= best + 1e-7


def test_calibration_fits_on_the_images_that_training_held_out(view_inputs):
    outputs, held_out = view_inputs.predictions, view_inputs.validation
    run = view_inputs.run
    train = cnn_core.load_dataset("digits")
    _, part = train.divide(*run.recipe.part())
    assert torch.equal(held_out.targets, part.targets[part.rows])  # the same split as in training
    assert torch.equal(held_out.images, part.images[part.rows])
    best = max(line["val/top1"] for line in run.history())
    share = (held_out.predicted == held_out.targets).double().mean()
    assert float(share) == pytest.approx(best)  # the images that selected the weights
    with style.applied():
        figure = calibration(run, outputs, held_out)
    temperature = fit_temperature(held_out.logits, held_out.targets)
    found = drawn(figure)
    assert f"a temperature of {temperature:.3f}" in found
    assert f"{len(part):,} images of the validation split" in found
    for logits in (outputs.logits, outputs.logits / temperature):
        numbers = reliability(logits, outputs.targets)
        assert f"ECE {style.percent(numbers.ece, 2)}, " in found
        assert f"NLL {numbers.nll:.4f}" in found


def test_calibration_without_validation_says_so(run):
    with style.applied():
        figure = calibration(run, noisy(100, 3), None)
    assert drawn(figure).count("no validation images to fit a temperature on") == 1
    assert "recipe: validation = 0" in drawn(figure)
    assert not figure.axes[1].patches


def test_a_run_without_validation_has_none(run, tmp_path):
    recipe = replace(run.recipe, validation=0.0, epochs=1)
    out = tmp_path / "run"
    whole = cnn_core.train(
        recipe.model, recipe.data, out=out, progress=False, epochs=1, validation=0.0, device="cpu"
    )
    assert ViewInputs(whole, device="cpu").validation is None


def test_a_temperature_at_the_border_says_so(run):
    outputs = noisy(60, 3)
    sure = replace(
        outputs, logits=F.one_hot(outputs.targets, 3).float()
    )  # all correct: the lower the temperature, the better
    assert fit_temperature(sure.logits, sure.targets) == pytest.approx(TEMPERATURES[0], rel=0.01)
    with style.applied():
        figure = calibration(run, outputs, sure)
    assert "at the limit of the search range, 0.05 to 20" in figure.get_supxlabel()


# class scores


@pytest.mark.parametrize("classes", [2, 7])
def test_one_vs_rest_scores_equal_sklearn_and_counting(classes):
    outputs = noisy(300, classes)
    shares = outputs.logits.double().softmax(1).numpy()
    truth = np.eye(classes)[outputs.targets]
    found = one_vs_rest(outputs)
    expected = average_precision_score(truth, shares, average=None)
    np.testing.assert_allclose([row.ap for row in found], expected)
    expected = roc_auc_score(truth, shares, average=None)
    np.testing.assert_allclose([row.auc for row in found], expected)
    for number, row in enumerate(found):
        place = np.ceil(shares[:, number] * 15)
        gap = 0.0
        for one in np.unique(place):
            inside = place == one
            gap += abs((shares[inside, number] - truth[inside, number]).sum()) / 300
        assert row.ece == pytest.approx(gap)


def test_the_worst_class_comes_first_and_a_class_without_images_last(run):
    outputs = noisy(200, 5)
    some = outputs.targets != 2
    outputs = replace(
        outputs,
        images=outputs.images[some],
        logits=outputs.logits[some],
        targets=outputs.targets[some],
    )
    outputs.logits[:, 2] = -9.0  # and it is never predicted
    with style.applied():
        figure = class_scores(run, outputs)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    f1 = f1_score(outputs.targets, outputs.predicted, average=None, labels=[0, 1, 3, 4])
    order = np.array([0, 1, 3, 4])[np.argsort(f1, kind="stable")]
    assert names == [f"class {k}  (40)" for k in order] + ["class 2  (0)"]
    widths = [bar.get_width() for bar in figure.axes[2].patches]
    np.testing.assert_allclose(widths, [*np.sort(f1), 0])
    assert figure.axes[2].texts[-1].get_text() == "\N{EN DASH}"
    assert f"mean {style.percent(f1.mean(), 2)}" in figure.axes[2].get_title(loc="left")
    assert "All 5 classes" in figure.get_supxlabel()


def test_of_many_classes_the_worst_thirty_are_shown(run):
    with style.applied():
        figure = class_scores(run, noisy(500, 100))
    assert "The 30 of 100 classes with the lowest F1" in figure.get_supxlabel()
    f1, ap = ([bar.get_width() for bar in figure.axes[n].patches] for n in (2, 3))
    assert f1.count(0) > 1
    assert sorted(zip(f1, ap, strict=True)) == list(zip(f1, ap, strict=True))
    for ax in figure.axes:
        assert len(ax.patches) == 30


# confused


def test_confused_pairs_are_the_largest_cells_beside_the_diagonal():
    counts = np.array([[90, 2, 0], [5, 80, 2], [0, 7, 99]])
    assert confused_pairs(counts, 3) == [(2, 1), (1, 0), (0, 1)]
    assert confused_pairs(counts, 10) == [(2, 1), (1, 0), (0, 1), (1, 2)]
    assert confused_pairs(np.diag([4, 5]), 10) == []


def test_confused_shows_the_images_of_each_pair(run):
    outputs = noisy(300, 4)
    with style.applied():
        figure = confused(run, outputs)
    counts = confusion_matrix(outputs.targets, outputs.predicted)
    np.fill_diagonal(counts, 0)
    true, predicted = np.unravel_index(counts.argmax(), counts.shape)
    first = figure.axes[0]
    assert first.get_title(loc="left").startswith(
        f"class {true} \N{RIGHTWARDS ARROW} class {predicted}:  {counts.max()} of 75 ("
    )
    cell = (outputs.targets == int(true)) & (outputs.predicted == int(predicted))
    confidence = outputs.probabilities.amax(1).where(cell, -1.0)
    best = confidence.argsort(descending=True)[:6]
    assert len(first.images) == len(first.texts) == 6
    for image, text, place in zip(first.images, first.texts, best.tolist(), strict=True):
        np.testing.assert_allclose(image.get_array(), outputs.images[place, 0] / 255, rtol=1e-6)
        assert text.get_text() == style.confidence(float(confidence[place]))
    shown = np.sort(counts, axis=None)[::-1][:10].sum()
    assert f"{shown:,} of {counts.sum():,} mistakes in 300 images" in figure.get_supxlabel()


def test_a_run_without_mistakes_says_so(run):
    outputs = noisy(60, 3)
    with style.applied():
        figure = confused(run, replace(outputs, logits=F.one_hot(outputs.targets, 3).float()))
    assert figure.get_supxlabel() == "None of 60 images was misclassified."
    assert not any(ax.images for ax in figure.axes)


# rankings


def test_curves_have_sklearns_areas(run):
    outputs = noisy(300, 4)
    for number, score in enumerate(one_vs_rest(outputs)):
        (recall, precision), (false, true) = ranking_curves(
            outputs.logits.double().softmax(1), outputs.targets, number
        )
        assert auc(false, true) == pytest.approx(score.auc)
        assert (np.diff(recall) > 0).all()
        assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(
            score.ap
        )  # the area under the steps
        # Each point can be found by counting above some threshold.
        order = outputs.logits.double().softmax(1)[:, number].argsort(descending=True)
        hits = (outputs.targets[order] == number).double().cumsum(0).numpy()
        points = {
            (round(h / hits[-1], 9), round(h / n, 9)) for n, h in enumerate(hits, start=1)
        } | {(0, 1)}
        drawn_points = zip(recall, precision, strict=True)
        assert {(round(r, 9), round(p, 9)) for r, p in drawn_points} <= points


def test_the_mean_of_equal_curves_is_the_curve_and_of_others_lies_between():
    outputs = noisy(300, 4)
    (grid, one), (_, rate) = mean_curves(outputs.logits.double().softmax(1), outputs.targets, [2])
    (_, twice), (_, rate_twice) = mean_curves(
        outputs.logits.double().softmax(1), outputs.targets, [2, 2]
    )
    np.testing.assert_allclose(one, twice)
    np.testing.assert_allclose(rate, rate_twice)
    (_, other), _ = mean_curves(outputs.logits.double().softmax(1), outputs.targets, [3])
    (_, both), _ = mean_curves(outputs.logits.double().softmax(1), outputs.targets, [2, 3])
    np.testing.assert_allclose(both, (one + other) / 2)
    # Precision at a recall is that of the fewest images that reach it.
    order = outputs.logits.double().softmax(1)[:, 2].argsort(descending=True)
    hits = (outputs.targets[order] == 2).double().cumsum(0).numpy()
    for recall, precision in list(zip(grid, one, strict=True))[1::20]:
        n = int((hits / hits[-1] >= recall - 1e-9).argmax()) + 1
        assert precision == pytest.approx(hits[n - 1] / n)


def test_rankings_name_the_worst_of_many_and_their_mean(run):
    outputs = noisy(600, 50)
    with style.applied():
        figure = rankings(run, outputs)
    scores = one_vs_rest(outputs)
    worst = np.argsort([score.ap for score in scores], kind="stable")[:6]
    left, right = figure.axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    expected = [f"class {k}, AP {scores[k].ap:.3f}" for k in worst]
    assert labels == [*expected, f"mean of all, AP {np.mean([s.ap for s in scores]):.3f}"]
    assert len(right.lines) == 40 + 2
    flat = [line for line in left.lines if len(line.get_xdata()) == 2]
    assert {line.get_drawstyle() for line in left.lines if line not in flat} == {"steps-pre"}
    shares = [float((outputs.targets == k).double().mean()) for k in worst]
    assert [line.get_ydata()[0] for line in flat] == pytest.approx([*shares, 1 / 50])
    assert "the 6 classes with the lowest AP; grey: the next 34" in figure.get_supxlabel()
    with style.applied():
        figure = rankings(run, noisy(60, 3))
    assert "All 3 classes" in figure.get_supxlabel()


def test_a_split_of_one_class_has_no_ranking(run):
    outputs = noisy(60, 3)
    with pytest.raises(UsageError, match="images of one class only"):
        rankings(run, replace(outputs, targets=torch.zeros_like(outputs.targets)))


# coverage


def test_risk_is_the_fraction_of_mistakes_among_the_surest():
    generator = torch.Generator().manual_seed(0)
    confidence, hit = (
        torch.rand(40, generator=generator),
        torch.rand(40, generator=generator) < 0.7,
    )
    risk = risk_coverage(confidence, hit)
    order = confidence.argsort(descending=True)
    for count in range(1, 41):
        assert risk[count - 1] == pytest.approx(1 - float(hit[order[:count]].double().mean()))


def test_images_of_equal_confidence_count_with_their_mean_over_all_orders():
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.2])
    hit = torch.tensor([True, True, False, False, True])
    orders = [[0, *middle, 4] for middle in permutations([1, 2, 3])]
    wrong = ~hit.numpy()
    expected = np.mean([wrong[order].cumsum() / np.arange(1, 6) for order in orders], axis=0)
    np.testing.assert_allclose(risk_coverage(confidence, hit), expected)


def test_coverage_shows_both_orders_and_their_areas(run):
    outputs = noisy(200, 4)
    with style.applied():
        figure = coverage(run, outputs)
    hit = outputs.predicted == outputs.targets
    (ax,) = figure.axes
    ideal, found = ax.lines[:2]
    mistakes = int((~hit).sum())
    area = np.maximum(np.arange(1, 201) - (200 - mistakes), 0) / np.arange(1, 201)
    np.testing.assert_allclose(ideal.get_ydata(), 100 * (1 - area))
    assert ideal.get_label() == f"ideal order, AURC {area.mean():.4f}"
    risk = risk_coverage(outputs.logits.double().softmax(1).amax(1), hit)
    assert found.get_label() == f"by confidence, AURC {risk.mean():.4f}"
    assert (ideal.get_ydata() >= found.get_ydata() - 1e-9).all()
    ninety = style.percent(float(1 - risk[179]))
    assert f"{ninety} of the\ntop 90 %" in drawn(figure)
    whole = style.percent(float(hit.double().mean()))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[2] == f"all images, {whole}"


@pytest.mark.parametrize(
    ("count", "surest"), [(1, []), (3, [67]), (7, [71, 86]), (40, [70, 80, 90])]
)
def test_coverage_of_few_images_names_the_shares_there_are(run, count, surest):
    with style.applied():
        (ax,) = coverage(run, noisy(count, 4)).axes
    assert [text.get_text().split("top ")[1] for text in ax.texts] == [f"{n} %" for n in surest]


# confusion


def test_clustering_brings_classes_together_that_are_confused():
    """Fifteen classes in five groups of three, dealt out like cards."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(5), 3))
    counts = rng.integers(1, 4, (15, 15)) + 30 * (group[:, None] == group)
    counts += 90 * np.eye(15, dtype=counts.dtype)
    order = cluster_order(counts)
    assert sorted(order) == list(range(15))
    ordered_groups = group[order].reshape(5, 3)
    assert (ordered_groups == ordered_groups[:, :1]).all()


def test_the_order_of_three_classes_puts_the_confused_ones_side_by_side():
    counts = np.array([[50, 0, 20], [0, 70, 0], [20, 0, 50]])
    assert abs(np.diff([cluster_order(counts).index(k) for k in (0, 2)])[0]) == 1
    assert cluster_order(np.array([[3, 1], [1, 3]])) == [0, 1]
    absent = np.zeros((4, 4), dtype=int)  # no class has images
    assert sorted(cluster_order(absent)) == [0, 1, 2, 3]


def test_a_matrix_of_many_classes_is_ordered_and_says_so(run):
    outputs = noisy(400, 13)
    with style.applied():
        figure, few = confusion(run, outputs), confusion(run, noisy(400, 12))
    counts = confusion_matrix(outputs.targets, outputs.predicted)
    order = cluster_order(counts)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"class {k}" for k in order]
    shares = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), shares[np.ix_(order, order)])
    assert "average linkage" in figure.get_supxlabel()
    assert "average linkage" not in few.get_supxlabel()
    assert [t.get_text() for t in few.axes[0].get_yticklabels()] == [
        f"class {k}" for k in range(12)
    ]


# predictions


def test_the_least_confident_correct_predictions_are_shown(run):
    outputs = noisy(200, 4)
    with style.applied():
        figure = predictions(run, outputs)
    confidence = outputs.probabilities.amax(1)
    right = (outputs.predicted == outputs.targets).nonzero().squeeze(1)
    least = right[confidence[right].argsort()[:8]]
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts == [
        f"class {int(outputs.targets[k])}\n{style.confidence(float(confidence[k]))}" for k in least
    ]


# weights


def test_histograms_count_weights_outputs_and_dead_units():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        model[0].bias[:2] = -1e3  # never above 0
    images = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    found = value_histograms(model, images, ["0", "1", "absent"])
    assert list(found) == ["0", "1"]
    inside, before = found["0"]
    assert inside is not None
    kernels = model[0].weight.detach()
    assert inside.counts.sum() == kernels.numel()
    assert inside.mean == pytest.approx(float(kernels.mean()), abs=1e-6)
    assert inside.std == pytest.approx(float(kernels.std(correction=0)), rel=1e-4)
    assert (before.dead, before.units) == (0, 4)
    none, after = found["1"]
    assert none is None
    assert (after.dead, after.units) == (2, 4)
    with torch.no_grad():
        output = model[:2](images)
    assert after.zeros == pytest.approx(float((output == 0).double().mean()))
    assert after.counts.sum() == output.numel()
    assert not any(module._forward_hooks for module in model.modules())


def test_weights_has_a_row_for_each_stage(view_inputs):
    figure = draw("weights", view_inputs.run, device="cpu")
    stages = list(cnn_core.get_spec("lenet5_modern").stages)
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == stages
    found = value_histograms(view_inputs.model, view_inputs.batch.images, stages)
    dead, units = (sum(getattr(o, key) for _, o in found.values()) for key in ("dead", "units"))
    assert figure.get_supxlabel().endswith(f"{dead:,} of {units:,}.")


# names


def test_names_from_elsewhere_harm_no_figure(run):
    hostile = ("<script>alert(1)</script>", "$\\foo$", "a\nb\x1b[31m", "\u202eevil", "")
    outputs = replace(noisy(200, 5), classes=hostile)
    with style.applied():
        for figure in (class_scores(run, outputs), confused(run, outputs), rankings(run, outputs)):
            figure.draw_without_rendering()
            ticks = "".join(t.get_text() for t in figure.axes[0].get_yticklabels())
            legend = figure.axes[0].get_legend()
            named = "".join(t.get_text() for t in legend.get_texts()) if legend else ""
            shown = drawn(figure) + ticks + named
            assert "<script" in shown
            assert "\x1b" not in shown
            assert "\u202e" not in shown
