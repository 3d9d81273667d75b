"""Overlap-tile, losses of pixels and their weights, masks of files: against other ways there."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cnn_core import create_model, load_dataset, train
from cnn_core.data.augment import IGNORED, Augmentation
from cnn_core.data.batching import batches
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.splits import Split
from cnn_core.data.windows import crop_reflected
from cnn_core.errors import UsageError
from cnn_core.tasks.pixel_weights import balance_weights, border_weights
from cnn_core.tasks.segmentation import loss_function
from cnn_core.tasks.tiles import flip_tta, overlap_tile, tile_margin
from cnn_core.training import Recipe, segment
from cnn_core.training.setup import set_up


def valid(width=4):
    torch.manual_seed(0)
    return create_model("unet", num_classes=2, in_channels=1, width=width).eval()


@pytest.mark.parametrize("box", [(-3, -2, 12, 11), (0, 0, 5, 4), (-20, 7, 50, 3), (2, -9, 1, 30)])
def test_windows_are_mirrored_as_numpy_does(box):
    top, left, height, width = box
    image = torch.arange(20.0).view(5, 4)
    wide = np.pad(image.numpy(), 64, mode="reflect")
    expected = wide[64 + top : 64 + top + height, 64 + left : 64 + left + width]
    assert np.array_equal(crop_reflected(image, *box).numpy(), expected)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(404, 404), (300, 420), (100, 217)])
def test_tiles_say_what_one_pass_over_all_says(size):
    model, images = valid(), torch.rand(1, 1, *size)
    margin = tile_margin(model, 252, 1, torch.device("cpu"))
    assert margin == 92
    height, width = (188 + math.ceil((side - 4) / 16) * 16 for side in size)
    whole = model(crop_reflected(images, -92, -92, height, width))[..., : size[0], : size[1]]
    tiles = overlap_tile(model, images, 252, margin)
    assert tiles.shape == (1, 2, *size)
    assert (tiles - whole).abs().max() < 1e-5


PEAK = """
import re, sys
from pathlib import Path
import torch
from cnn_core import create_model
from cnn_core.data.windows import crop_reflected
from cnn_core.tasks.tiles import overlap_tile

how, width, saved = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
torch.manual_seed(0)
model = create_model("unet", num_classes=2, in_channels=1, width=width).eval()
images = torch.rand(1, 1, 1024, 1024)

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

with torch.inference_mode():
    model(torch.rand(1, 1, 188, 188))  # the libraries' own
    before = peak()
    if how == "tiles":
        logits = overlap_tile(model, images, 572, 92)
    else:
        logits = model(crop_reflected(images, -92, -92, 1212, 1212))[..., :1024, :1024].clone()
    print(peak() - before)
torch.save(logits, saved)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says what the peak was")
@pytest.mark.parametrize("width", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_tiles_of_a_large_image_are_equal_to_one_pass_and_need_a_third_of_the_memory(
    width, tmp_path
):
    peaks, logits = {}, {}
    for how in ("whole", "tiles"):
        saved = tmp_path / f"{how}.pt"
        command = [sys.executable, "-c", PEAK, how, str(width), str(saved)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[how], logits[how] = int(found.stdout), torch.load(saved, weights_only=True)
    assert logits["tiles"].shape == (1, 2, 1024, 1024)
    assert (logits["tiles"] - logits["whole"]).abs().max() < 1e-5
    assert peaks["tiles"] < peaks["whole"] / 3, peaks


@torch.inference_mode()
def test_padded_networks_see_more_than_they_are_asked_for():
    def blurred(x):
        return F.conv2d(x, torch.ones(2, 1, 9, 9), padding=4)

    images = torch.rand(2, 1, 160, 192)
    tiles = overlap_tile(blurred, images, 64, 0)
    assert (tiles - blurred(images)).abs().max() < 1e-4  # 8 pixels on each side are enough for 4


@torch.inference_mode()
def test_flips_are_undone():
    images = torch.rand(1, 2, 8, 6)
    assert torch.allclose(flip_tta(lambda x: x, images).exp(), images.softmax(1), atol=1e-6)


def test_tiles_of_a_training_lie_within_images_and_go_with_their_masks():
    images = torch.arange(64 * 80).remainder(251).to(torch.uint8).view(1, 1, 64, 80)
    masks = images[:, 0] % 2
    shape = {
        "size": (32, 32),
        "image_size": (64, 80),
        "fit": "tile",
        "mean": (0.0,),
        "std": (1.0,),
    }
    for epoch in range(20):
        draws = Augmentation().draws(0, epoch)
        split = Split(images, masks, masks.float())
        (batch,) = batches(split, Preprocessing(**shape), 1, draws=draws)
        tile = (batch.images[0, 0] * 255).round().to(torch.uint8)
        rows = images[0, 0].unfold(0, 32, 1).unfold(1, 32, 1)
        assert (rows == tile).all(-1).all(-1).any()
        assert torch.equal(batch.targets[0], tile % 2)
        assert torch.equal(batch.weights[0], (tile % 2).float())


def recipe(**settings):
    return Recipe(model="unet_same", data="digit_scenes", **settings)


def pixels(seed, classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 5, 6, generator=generator, dtype=torch.float64).float()
    targets = torch.randint(0, classes, (2, 5, 6), generator=generator).to(torch.uint8)
    targets[torch.rand(2, 5, 6, generator=generator) < 0.2] = IGNORED
    return logits, targets


@pytest.mark.parametrize("seed", range(5))
def test_losses_are_those_of_loops(seed):
    logits, targets = pixels(seed)
    p = logits.double().softmax(1)
    found = {"focal": [], "bce": [], "cross_entropy": []}
    sums = {k: [0.0, 0.0, 0.0] for k in range(3)}  # TP, FP, FN
    for n, y, x in itertools.product(range(2), range(5), range(6)):
        t = int(targets[n, y, x])
        if t == IGNORED:
            continue
        right = float(p[n, t, y, x])
        found["cross_entropy"].append(-math.log(right))
        found["focal"].append(-((1 - right) ** 2) * math.log(right))
        odds = [float(logits[n, k, y, x]) * (1 if k == t else -1) for k in range(3)]
        found["bce"].append(sum(math.log1p(math.exp(-o)) for o in odds))
        for k in range(3):
            q = float(p[n, k, y, x])
            sums[k][0] += q * (k == t)
            sums[k][1] += q * (k != t)
            sums[k][2] += (1 - q) * (k == t)
    expected = {name: sum(values) / len(values) for name, values in found.items()}
    costs = {"dice": (0.5, 0.5), "tversky": (0.3, 0.7)}
    for name, (a, b) in costs.items():
        expected[name] = sum(1 - tp / (tp + a * fp + b * fn) for tp, fp, fn in sums.values()) / 3
    expected["dice_ce"] = expected["dice"] + expected["cross_entropy"]
    for name, value in expected.items():
        loss = loss_function(recipe(loss=name))(logits, targets)
        assert float(loss) == pytest.approx(value, rel=1e-5), name
        nothing = torch.full_like(targets, IGNORED)
        assert float(loss_function(recipe(loss=name))(logits, nothing)) == 0


def test_border_weights_are_those_of_all_pairs_of_pixels():
    mask = torch.zeros(14, 17, dtype=torch.uint8)
    mask[1:6, 1:5], mask[2:7, 8:12], mask[9:13, 3:14] = 1, 1, 1
    objects = [mask.clone() * 0 for _ in range(3)]
    objects[0][1:6, 1:5], objects[1][2:7, 8:12], objects[2][9:13, 3:14] = 1, 1, 1
    found = border_weights(mask, 5.0)
    for y, x in itertools.product(range(14), range(17)):
        near = sorted(
            min(math.hypot(y - r, x - c) for r, c in o.nonzero().tolist()) for o in objects
        )
        expected = math.exp(-((near[0] + near[1]) ** 2) / 50) if mask[y, x] == 0 else 0.0
        assert float(found[y, x]) == pytest.approx(expected, abs=1e-6)
    assert not border_weights((mask > 5).to(torch.uint8), 5.0).any()
    renumbered = torch.tensor([2, 0])[mask.long()].to(torch.uint8)
    renumbered[-1] = IGNORED
    expected = found * (renumbered != IGNORED)
    assert torch.equal(border_weights(renumbered, 5.0, background=2), expected)


@pytest.mark.parametrize("background", ["", "c"])
def test_border_weights_need_a_background(tmp_path, background):
    for number in range(6):
        mask = np.full((32, 32), 2, np.uint8)
        mask[4:12, 4:12], mask[4:12, 14:22], mask[20:28, 4:12] = 0, 0, 1
        for folder, pixels in (("images", mask * 90), ("masks", mask)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    labels = '[labels]\n0 = "a"\n1 = "b"\n2 = "c"\n'
    declared = f"background = '{background}'\n" if background else ""
    (tmp_path / "dataset.toml").write_text(declared + labels)
    settings = {"data": f"maskfolder:{tmp_path}", "border_weight": 10.0, "image_size": 32}
    asked = Recipe(model="unet_same", options={"width": 4, "depth": 2}, **settings)
    data, device = load_dataset(asked.data), torch.device("cpu")
    act = partial(set_up, asked, data, device, show_progress=False)
    if not background:
        with pytest.raises(UsageError, match=r"border_weight = 10 .*not say which class that is"):
            act()
        return
    weights = act().dataset.split("train").weights[0]
    between = weights[8, 13]
    assert between > 5
    assert weights[8, 8] == weights[24, 8] == 1  # objects
    assert weights[30, 30] < between


def test_balanced_classes_weigh_the_same():
    masks = torch.tensor([[[0, 0, 0, 1], [0, 0, 2, IGNORED]]], dtype=torch.uint8)
    weights = balance_weights(masks, 4)
    assert [float(weights[masks == k].sum()) for k in (0, 1, 2)] == pytest.approx([7 / 3] * 3)
    assert not weights[masks == IGNORED].any()


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiled") / "run"
    settings = {"options": {"width": 4, "depth": 2}, "epochs": 1, "lr": 0.002, "validation": 0.1}
    return train(
        "unet_same", "digit_scenes", out=out, image_size=0, tile=32, border_weight=10.0, **settings
    )


@pytest.mark.xdist_group("tiles")
def test_masks_of_files_have_their_own_sizes(tiled, tmp_path, cnnzoo):
    sizes = {"a": (50, 70), "b": (33, 20)}
    for name, size in sizes.items():
        pixels = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    done = cnnzoo("predict", tiled.path, tmp_path, "--out", tmp_path / "masks", "--json")
    assert done.code == 0, done.err
    rows = json.loads(done.out)["predictions"]
    assert [len(row["files"]) for row in rows] == [3, 3]
    for found in segment(tiled.path, [tmp_path / "a.png", tmp_path / "b.png"]):
        name = found.path.stem
        mask = Image.open(tmp_path / "masks" / f"{name}.mask.png")
        assert mask.mode == "P"
        assert np.array_equal(np.array(mask), found.mask.numpy())
        assert found.mask.shape == sizes[name]
        saved = np.load(tmp_path / "masks" / f"{name}.probabilities.npy")
        assert np.allclose(saved, found.probabilities.numpy(), atol=1e-3)
        assert found.probabilities.sum(0).allclose(torch.ones(sizes[name]), atol=1e-5)
