"""The figures and the report of a segmentation run, checked against the run."""

from __future__ import annotations

import copy
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cnn_core.data import Batch
from cnn_core.errors import UsageError
from cnn_core.training import Run, SegmentationOutput
from cnn_core.weights.native import read_weights
from cnn_viz import Cam, seg_grad_cam, style
from cnn_viz.attribution.saliency import score_drops
from cnn_viz.drawing.render import draw_one, draw_or_report, views_for
from cnn_viz.network.mc_dropout import Uncertainty, mc_dropout
from cnn_viz.page.explorer import INTERACTIVE_VIEWS
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.results.metrics import bootstrap, pixel_scores
from cnn_viz.results.segmentations import SegmentationResults, spread_by_miou
from cnn_viz.views import masks
from cnn_viz.views.image_scores import image_scores
from cnn_viz.views.maps_in_masks import _pairs, maps_in_masks
from cnn_viz.views.occlusion import _largest
from cnn_viz.views.pixel_curves import pixel_calibration, pixel_curves
from cnn_viz.views.uncertainty import _entropy_comparison

VIEWS = [
    "curves",
    "masks",
    "probability",
    "uncertainty",
    "image_scores",
    "pixel_curves",
    "pixel_calibration",
    "seg_gradcam",
    "maps_in_masks",
    "occlusion",
    "embedding",
    "architecture",
    "features",
    "arithmetic",
    "receptive_field",
    "weights",
    "filters",
]
SHOWN = [view for view in VIEWS if view not in INTERACTIVE_VIEWS["segmentation"]]  # as figures


@pytest.fixture(scope="module")
def run(scenes_run: Run) -> Run:
    return scenes_run


def made_up(count: int, classes: int = 3, side: int = 24) -> SegmentationResults:
    """Return made-up outputs for several classes, with ignored pixels."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for index in range(count):
        target = torch.randint(0, classes, (side, side), generator=generator).to(torch.uint8)
        logits = torch.randn(classes, side, side, generator=generator)
        logits += (index + 1) * nn.functional.one_hot(target.long(), classes).permute(2, 0, 1)
        target[:4] = 255
        image = torch.rand(3, side, side, generator=generator)
        images.append(SegmentationOutput(index, image, logits, target))
    return SegmentationResults([f"class {k}" for k in range(classes)], lambda: iter(images), count)


def test_the_views_of_a_run_come_in_reading_order(run):
    assert [name for name, _ in views_for("segmentation")] == VIEWS


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_drawn_without_warnings_and_the_same_every_time(view, view_inputs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (draw_one(view, view_inputs) for _ in range(2))
    assert first.png.startswith(b"\x89PNG")
    assert first.svg == second.svg


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize(
    "view", [masks.masks, masks.probability, image_scores, pixel_curves, pixel_calibration]
)
def test_views_draw_any_number_of_images_of_three_classes(view, count, run):
    figure = view(run, made_up(count))
    figure.savefig(Path("/dev/null"), format="png")


def test_masks_say_what_colours_mean_and_no_two_mean_the_same(run):
    with style.applied():
        figure = masks.masks(run, made_up(7, classes=7))
        figure.draw_without_rendering()
    legends = [ax.get_legend() for ax in figure.axes[:2]]
    shown = [patch.get_facecolor() for legend in legends for patch in legend.get_patches()]
    assert len(shown) == len(set(shown)) == 4 + 7
    title = figure._suptitle.get_window_extent()
    assert all(not legend.get_window_extent().overlaps(title) for legend in legends)
    outcomes, classes = (legend.get_window_extent() for legend in legends)
    assert not outcomes.overlaps(classes)
    assert classes.x1 <= figure.bbox.width


def test_average_precision_of_pixels_is_the_area_below_the_steps(run):
    segmented = made_up(3)
    with style.applied():
        figure = pixel_curves(run, segmented)
    for line in figure.axes[0].lines[::2]:
        recall, precision = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert line.get_drawstyle() == "steps-post"
        assert (np.diff(recall) < 0).all()
        area = -(np.diff(recall) * precision[:-1]).sum()
        assert line.get_label().endswith(f"AP {style.share(area, 3)}")


def test_outcomes_of_two_classes_are_true_and_false_positives_and_false_negatives():
    one = next(iter(made_up(1, classes=2)))
    found = masks.outcomes(one.predicted, one.target)
    said, true = one.predicted.numpy()[4:], one.target.numpy()[4:]
    assert (found == masks.CORRECT).sum() == ((said == 1) & (true == 1)).sum()
    assert (found == masks.FALSE_ALARM).sum() == ((said == 1) & (true == 0)).sum()
    assert (found == masks.MISSED).sum() == ((said == 0) & (true == 1)).sum()
    assert (found == masks.WRONG_CLASS).sum() == 0
    assert (found == masks.IGNORED_PIXEL).sum() == 4 * 24


def test_entropy_equals_a_plain_loop():
    one = next(iter(made_up(1)))
    p = one.probabilities.double().numpy()
    expected = -(p * np.log2(p)).sum(0)
    np.testing.assert_allclose(masks.entropy(one.probabilities), expected, rtol=1e-4, atol=1e-6)


def test_the_numbers_of_a_split_are_those_that_the_run_recorded(view_inputs):
    recorded, measured = view_inputs.run.test_metrics(), view_inputs.segmented.metrics
    assert len(measured.scores) == len(view_inputs.segmented) == 200
    mious = [line["miou"] for line in measured.scores]
    assert np.mean(mious) == pytest.approx(recorded["test/image_miou"], abs=1e-6)
    rows = pixel_scores(view_inputs.segmented.classes, measured.pixels)
    assert rows[1].iou == pytest.approx(recorded["test/iou_1"], abs=1e-6)
    low, high = bootstrap(mious)
    assert low < np.mean(mious) < high
    assert bootstrap(mious[:4]) is None


def test_a_large_split_is_not_kept_and_is_looked_at_again(monkeypatch):
    calls = []
    images = list(made_up(3))

    def make():
        calls.append(1)
        return iter(images)

    small = SegmentationResults(["a", "b", "c"], make, 3)
    assert [one.index for one in small] == [one.index for one in small] == [0, 1, 2]
    assert len(calls) == 1
    monkeypatch.setattr(
        "cnn_viz.results.segmentations.MAX_CACHED_LOGITS", images[0].logits.numel()
    )
    large = SegmentationResults(["a", "b", "c"], make, 3)
    assert [one.index for one in large] == [one.index for one in large] == [0, 1, 2]
    assert len(calls) == 3
    assert [one.index for one in large.pick([2, 0])] == [2, 0]


def test_images_are_spread_from_the_worst_miou_to_the_best():
    scores = [{"index": n, "miou": value} for n, value in enumerate([0.3, 0.1, 0.9, 0.5, 0.7])]
    assert [line["miou"] for line in spread_by_miou(scores, 3)] == [0.1, 0.5, 0.9]
    assert len(spread_by_miou(scores, 9)) == 5


def by_hand(model: nn.Module, images: Tensor, stage: str, number: int) -> Tensor:
    """Return Seg-Grad-CAM by plain hooks, image by image."""
    maps = []
    for image in images:
        kept: list[Tensor] = []
        hook = model.get_submodule(stage).register_forward_hook(lambda *a, k=kept: k.append(a[2]))
        logits = model(image[None])[0]
        hook.remove()
        score = logits[number][logits.argmax(0) == number].sum()
        (gradient,) = torch.autograd.grad(score, kept[0])
        maps.append(sum(g.mean() * a for g, a in zip(gradient[0], kept[0][0], strict=True)))
    return torch.stack(maps).detach()


@pytest.mark.parametrize("stage", ["bottom", "up.1"])
def test_seg_grad_cam_is_that_of_the_paper_and_leaves_nothing_behind(stage, view_inputs):
    model, images = copy.deepcopy(view_inputs.model), view_inputs.batch.images[:3]
    model.train()
    state = torch.get_rng_state()
    cam = seg_grad_cam(model, images, stage, [0, 0, 0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert cam.logits.shape == (3, 2, 32, 32)
    assert (cam.raw != 0).any()
    expected = by_hand(model.eval(), images, stage, 0)
    torch.testing.assert_close(cam.raw, expected, rtol=1e-3, atol=1e-4)


def test_seg_grad_cam_of_a_region(view_inputs):
    images = view_inputs.batch.images[:1]
    nowhere = torch.zeros(1, 32, 32, dtype=torch.bool)
    assert bool(seg_grad_cam(view_inputs.model, images, "bottom", [1], nowhere).empty)
    with pytest.raises(UsageError, match=r"region of shape \[1, 4, 4\]: expected \[1, 32, 32\]"):
        seg_grad_cam(view_inputs.model, images, "bottom", [1], nowhere[:, :4, :4])


def test_a_batch_is_limited_by_its_pixels(run, monkeypatch):
    monkeypatch.setattr("cnn_viz.results.inputs.MAX_BATCH_PIXELS", 3 * 32 * 32 + 5)
    assert len(ViewInputs(run, device="cpu").batch.images) == 3
    monkeypatch.setattr("cnn_viz.results.inputs.MAX_BATCH_PIXELS", 1)
    assert len(ViewInputs(run, device="cpu").batch.images) == 1


def test_the_report_shows_every_view_and_loads_nothing(run, report_once, tmp_path):
    text = report_once(Run.open(shutil.copytree(run.path, tmp_path / "run")))
    assert "default-src 'none'; img-src data:" in text
    assert not re.findall(r'(?:src|xlink:href)="(?!#|data:image/webp;base64,)', text)
    headings = re.findall(r"<h2>(.*?)</h2>", text)
    titles = [name.replace("_", " ") for name in SHOWN]
    assert headings[: len(SHOWN) + 3] == ["curves", *titles, "classes", "test"]
    assert "could not be drawn" not in text
    recorded = run.test_metrics()
    assert f"<strong>{100 * recorded['test/miou']:.2f} %</strong> mIoU" in text
    assert f"<td>{recorded['test/hd95']:.4g}</td>" in text


def dropping() -> nn.Module:
    """Return a network with dropout, and with batch norm that must stay in eval mode."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.5))
    return nn.Sequential(*layers, nn.Conv2d(8, 3, 1)).eval()


def test_uncertainty_equals_a_loop_over_passes():
    model, images = dropping(), torch.rand(2, 1, 6, 7)
    found = mc_dropout(model, images, passes=5, seed=3)
    torch.manual_seed(3)
    model[3].train()
    with torch.no_grad():
        p = torch.stack([model(images).softmax(1) for _ in range(5)]).double().numpy()
    mean, of_each = p.mean(0), -(p * np.log2(p)).sum(2)
    entropy = -(mean * np.log2(mean)).sum(1)
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(found.entropy, entropy, atol=1e-5)
    np.testing.assert_allclose(found.mutual, entropy - of_each.mean(0), atol=1e-5)
    assert 0.001 < float(found.mutual.max()) < float(found.entropy.max()) <= np.log2(3)


def test_a_view_that_does_not_apply_to_a_run_is_skipped_without_blaming_a_plugin(
    view_inputs, caplog
):
    (pair,) = (pair for pair in views_for("segmentation") if pair[0] == "uncertainty")
    with pytest.MonkeyPatch.context() as patch:
        for module in view_inputs.model.modules():
            if isinstance(module, nn.Dropout):
                patch.setattr(module, "p", 0.0)
        drawing = draw_or_report(*pair, view_inputs)
    assert "has no dropout" in drawing.skipped
    assert not drawing.error
    assert not drawing.png
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("skipped view uncertainty: UNetSame has no dropout")
    assert "plugin" not in line


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (0, "All pixels are correct."),
        (1, "All pixels are wrong."),
        (255, "All pixels are ignored."),
    ],
)
def test_uncertainty_names_pixels_that_are_all_alike(target, text):
    entropy = torch.zeros(1, 2, 2)
    result = Uncertainty(probabilities=torch.ones(1, 2, 2, 2), entropy=entropy, expected=entropy)
    targets = torch.full((1, 2, 2), target)
    wrong = (targets != 0) & (targets != 255)
    assert _entropy_comparison(result, wrong, targets) == text


def test_uncertainty_leaves_nothing_behind_and_says_when_there_is_no_dropout():
    model, images = dropping(), torch.rand(2, 1, 6, 7)
    wrong = torch.rand(2, 5, 6, 7)
    model[1].train()  # a flag that must be restored
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = (mc_dropout(model, images) for _ in range(2))
    assert torch.equal(first.entropy, second.entropy)
    with pytest.raises(RuntimeError):
        mc_dropout(model, wrong)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [False, True, False, False, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model[3].p = 0.0
    with pytest.raises(UsageError, match="Sequential has no dropout"):
        mc_dropout(model, images)


def test_maps_are_compared_with_masks_of_classes_present_and_predicted():
    targets = torch.zeros(4, 4, 4, dtype=torch.long)
    targets[0, 0], targets[0, 1:3] = 1, 2
    targets[1, :2] = 1
    targets[2], targets[2, 0] = 1, 255  # a class that fills all pixels that are not ignored
    said = targets.clamp(max=2)
    said[1] = 0  # not predicted
    said[3, 0] = 2  # not present
    rows, classes = _pairs(said, targets, 32)
    assert list(zip(rows.tolist(), classes.tolist(), strict=True)) == [(0, 2), (0, 1)]
    assert [part.tolist() for part in _pairs(said, targets, 1)] == [[0], [2]]
    with pytest.raises(UsageError, match="no foreground class is predicted in an image"):
        _pairs(0 * said, targets, 32)


@pytest.mark.parametrize("valid", [False, True])
def test_energy_and_pointing_game_score_perfect_and_opposite_maps(run, valid, monkeypatch):
    """The class is the right half of the image; one map is that half, another the left half."""
    weights, batch = read_weights(run.path), ViewInputs(run, device="cpu").batch
    targets = torch.zeros_like(batch.targets[:2])
    targets[:, :, targets.shape[2] // 2 :] = 1
    edge = 4 if valid else 0
    logits = torch.zeros(2, len(weights.classes), *targets.shape[1:])
    logits[:, 1] = 2.0 * targets - 1
    logits = logits[..., edge : logits.shape[2] - edge, edge : logits.shape[3] - edge]
    network = nn.Sequential(nn.Identity())
    network.forward = lambda x: logits
    halves = iter((targets, 1 - targets) * 3)

    def explained(*args: object, **options: object) -> Cam:
        raw = next(halves).float()
        size = (raw.shape[1], raw.shape[2])
        return Cam(raw=raw, logits=logits, classes=torch.ones(2), size=size)

    monkeypatch.setattr("cnn_viz.views.maps_in_masks.seg_grad_cam", explained)
    two = Batch(batch.images[:2], targets, batch.indices[:2])
    with style.applied():
        figure = maps_in_masks(run, weights, network, two)
    means = [
        [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
        for ax in figure.axes
    ]
    for energy, points, expected in ((*means[:2], [1, 0, 1]), (*means[2:], [0, 1, 0])):
        assert energy[:3] == points[:3] == expected
        assert energy[3] == pytest.approx(0.5, abs=0.05)
    assert "50.0 % on average" in " ".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 2), (4, 4), (5, 1), (7, 3)])
def test_occlusion_is_the_mean_fall_over_the_windows_that_cover_a_pixel(window, stride):
    torch.manual_seed(0)
    weights, image = torch.randn(2, 7, 10), torch.rand(2, 7, 10)
    found = score_drops(lambda x: (x * weights).sum((1, 2, 3)), image[None], window, stride, 0.3)[
        0
    ]
    losses = ((image - 0.3) * weights).sum(0)
    by_pixel: dict[tuple[int, int], list[float]] = {}
    for y in range(0, 7, stride):
        for x in range(0, 10, stride):
            if y - stride + window >= 7 or x - stride + window >= 10:
                continue  # the window before this one reached the end
            part = losses[
                y : y + window, x : x + window
            ]  # windows at the end extend beyond the image
            for row in range(y, min(y + window, 7)):
                for column in range(x, min(x + window, 10)):
                    by_pixel.setdefault((row, column), []).append(float(part.sum()))
    assert len(by_pixel) == 70  # also at the borders
    expected = [[np.mean(by_pixel[row, column]) for column in range(10)] for row in range(7)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_occlusion_finds_the_pixels_that_a_network_looks_at():
    images = torch.rand(2, 1, 16, 16) + 1
    found = score_drops(lambda x: x[:, 0, 10:14, 2:6].mean((1, 2)), images, 4, 2)
    for fall in found:
        assert fall[10:14, 2:6].mean() > 4 * fall.mean()
        assert fall[:6].abs().max() < 1e-6


def test_occlusion_explains_each_images_largest_foreground_class():
    logits = torch.zeros(3, 3, 4, 4)
    logits[0, 2, :, 0], logits[0, 1, 0, 1], logits[1, 1, 1:3] = 1.0, 1.0, 1.0
    classes, pixels = _largest(logits)
    assert classes.tolist() == [2, 1, 0]
    assert pixels.sum((1, 2)).tolist() == [4, 8, 16]
    assert pixels[0, :, 0].all()
    assert pixels[1, 1:3].all()
