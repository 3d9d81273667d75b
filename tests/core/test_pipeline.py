"""From splits to batches: what is drawn, that it is counted, and that both paths agree."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from cnn_core import registry
from cnn_core.data import Dataset, Files, Preprocessing, Split, batches
from cnn_core.data.augment import IGNORED, Augmentation
from cnn_core.data.bad_samples import BadSamples
from cnn_core.data.batching import Batch, batch_sizes, permutation, shard
from cnn_core.data.colour import jitter, rotate_hue
from cnn_core.data.counter_rng import key_of, normal, uniform
from cnn_core.data.pipeline import load_splits
from cnn_core.data.streaming import decode_to_memory, drop_bad_files, statistics
from cnn_core.errors import DatasetCorruptError

EVERYTHING = {
    "shift": {"shift": 4},
    "flip": {"flip": True},
    "both": {"shift": 4, "flip": True},
    "policy": {"policy": "trivialaugment"},
    "randaugment": {"policy": "randaugment"},
    "crop": {"crop": (0.3, 1.0)},
    "rotate": {"rotate": 20.0, "zoom": 1.2},
    "elastic": {"elastic": 2.0},
    "jitter": {"jitter": (0.4, 0.4, 0.4, 0.1)},
    "erase": {"erase": 0.5},
    "cutout": {"cutout": 8},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
}
CHANGES = pytest.mark.parametrize("changes", EVERYTHING.values(), ids=EVERYTHING)


def prepare(size=(32, 32), image_size=(32, 32), fit="resize", channels=3):
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Preprocessing(size=size, image_size=image_size, fit=fit, mean=mean, std=std)


def random_images(count=40, size=32, channels=3):
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, channels, 8, 8, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


def split_of(count=40, size=32, channels=3):
    return Split(random_images(count, size, channels), torch.arange(count) % 10)


def run(split, changes, seed=0, epoch=0, size=16, **more):
    draws = Augmentation(**changes).draws(seed, epoch)
    return list(batches(split, prepare(), size, draws=draws, **more))


def by_index(found):
    """Return {index: image} of batches."""
    return {
        index: image
        for batch in found
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True)
    }


# --- numbers -------------------------------------------------------------------------------


def test_numbers_are_uniform_and_depend_on_key_and_index_only():
    u = uniform(key_of(0, 0, "a"), np.arange(20_000), 3)
    assert u.shape == (20_000, 3)
    assert 0 <= u.min() < 0.001
    assert 0.999 < u.max() < 1
    for column in u.T:
        counts = np.histogram(column, 20, (0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi square, 19 degrees, p = 0.001
    assert abs(np.corrcoef(u.T)[0, 1]) < 0.03
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03
    some = np.array([7, 19_999, 3])
    assert (uniform(key_of(0, 0, "a"), some, 3) == u[some]).all()


def test_no_two_samples_epochs_seeds_or_purposes_share_a_draw():
    keys = [key_of(s, e, p) for s in range(3) for e in range(5) for p in ("a", "b")]
    found = np.concatenate([uniform(key, np.arange(2000), 4).ravel() for key in keys])
    assert len(np.unique(found)) == found.size


def test_normal_numbers_are_normal():
    z = normal(5, np.arange(50_000), 1)
    assert abs(z.mean()) < 0.02
    assert z.std() == pytest.approx(1, abs=0.02)
    assert (np.abs(z) < 1.96).mean() == pytest.approx(0.95, abs=0.005)


# --- order and shares ----------------------------------------------------------------------


def test_batches_cover_a_split_once_in_an_order_that_seed_and_epoch_fix():
    split = split_of(103)

    def order(seed, epoch):
        found = run(split, {}, seed, epoch, size=25)
        assert [len(batch.targets) for batch in found] == [25, 25, 25, 25, 3]
        return torch.cat([batch.indices for batch in found])

    assert torch.equal(order(0, 0), order(0, 0))
    assert not torch.equal(order(0, 0), order(1, 0))
    assert not torch.equal(order(0, 0), order(0, 1))
    assert torch.equal(order(0, 0).sort().values, torch.arange(103))
    plain = torch.cat([batch.indices for batch in batches(split, prepare(), 25)])
    assert torch.equal(plain, torch.arange(103))


@pytest.mark.parametrize(("length", "world"), [(10, 3), (9, 3), (11, 4), (2, 4), (1, 1)])
def test_ranks_share_a_batch_and_what_repeats_does_not_count(length, world):
    order = permutation(length, 0, 0)
    parts = [shard(order, rank, world, never_empty=True) for rank in range(world)]
    assert all(len(part) for part, _ in parts)
    # The mean over ranks of factor times local mean is the mean over the batch.
    numbers = torch.randn(length, dtype=torch.float64)
    means = [factor * numbers[part].mean() for part, factor in parts]
    assert float(sum(means) / world) == pytest.approx(float(numbers.mean()), rel=1e-12)
    counted = torch.cat([part for part, factor in parts if factor])
    assert torch.equal(counted.sort().values, torch.arange(length))
    uneven = [shard(order, rank, world, never_empty=False)[0] for rank in range(world)]
    assert torch.equal(torch.cat(uneven).sort().values, torch.arange(length))


def test_a_rank_sees_the_pixels_that_one_process_alone_would():
    split = split_of(41)
    alone = by_index(run(split, EVERYTHING["both"]))
    ranks = [run(split, EVERYTHING["both"], rank=rank, world=3, size=5) for rank in range(3)]
    assert sum(len(batch.indices) for found in ranks for batch in found if batch.loss_weight) == 41
    assert len({len(found) for found in ranks}) == 1
    for found in ranks:
        for index, image in by_index(found).items():
            assert torch.equal(image, alone[index])


# --- changes -------------------------------------------------------------------------------


@CHANGES
def test_a_sample_changes_with_the_epoch_and_the_seed_but_not_with_its_batch(changes):
    split = split_of()
    one = by_index(run(split, changes))
    again = by_index(run(split, changes, size=7))
    if "mixup" not in changes and "cutmix" not in changes:  # which mix with their neighbours
        assert all(torch.allclose(one[index], again[index], atol=1e-5) for index in one)
    same = by_index(run(split, changes))
    assert all(torch.equal(one[index], same[index]) for index in one)
    for other in (by_index(run(split, changes, epoch=1)), by_index(run(split, changes, seed=1))):
        differ = sum(not torch.equal(one[index], other[index]) for index in one)
        assert differ > (5 if changes in ({"flip": True}, {"erase": 0.5}) else 30)


@CHANGES
def test_a_changed_image_is_still_one(changes):
    for batch in run(split_of(), changes):
        assert batch.images.shape[1:] == (3, 32, 32)
        assert batch.images.dtype == torch.float32
        assert batch.images.abs().max() <= 2.001  # (1 - 0.5) / 0.25
        assert batch.images.std() > 0.1


def test_shifts_move_each_image_by_its_own_draw_and_lose_only_the_edge():
    images = torch.zeros(400, 1, 9, 9, dtype=torch.uint8)
    images[:, :, 4, 4] = 255
    white = prepare((9, 9), (9, 9), channels=1)
    split, draws = Split(images, torch.zeros(400).long()), Augmentation(shift=2).draws(0, 0)
    found = torch.cat([b.images for b in batches(split, white, 50, draws=draws)]) > 0
    assert (found.flatten(1).sum(1) == 1).all()
    rows, columns = found[:, 0].int().amax(2).argmax(1), found[:, 0].int().amax(1).argmax(1)
    places = set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert places == {(r, c) for r in range(2, 7) for c in range(2, 7)}


def test_shift_and_flip_are_random_crop_and_mirror_written_out():
    split, changes = split_of(), EVERYTHING["both"]
    found = by_index(run(split, changes))
    draws = Augmentation(**changes).draws(0, 0)
    down, right, mirrored = draws.shifts(np.arange(40))
    assert (down.min(), down.max(), right.min(), right.max()) == (-4, 4, -4, 4)
    assert 10 < mirrored.sum() < 30
    for index, image in found.items():
        padded = F.pad(split.images[index], [4] * 4)
        top, left = 4 - int(down[index]), 4 - int(right[index])
        crop = padded[:, top : top + 32, left : left + 32]
        expected = prepare()((crop.flip(-1) if mirrored[index] else crop)[None])[0]
        assert torch.equal(image, expected)


def test_a_shift_beyond_the_image_leaves_it_black():
    split = split_of(30)
    found = torch.cat([batch.images for batch in run(split, {"shift": 1000})])
    assert (found == -2).flatten(1).all(1).sum() >= 25


def test_a_crop_of_the_whole_area_without_stretch_is_no_change():
    split = split_of()
    draws = Augmentation(zoom=1.0000001).draws(0, 0)
    changed = by_index(list(batches(split, prepare(), 16, draws=draws)))
    plain = prepare()(split.images)
    assert all(torch.allclose(image, plain[index], atol=1e-4) for index, image in changed.items())


def test_a_crop_is_the_window_that_its_draws_say():
    split = split_of(size=64)
    inputs = prepare((64, 64), (64, 64))
    draws = Augmentation(crop=(0.25, 0.25)).draws(0, 0)
    theta = draws._affine(np.arange(40), 1.0)
    assert (theta[:, 0, 0] * theta[:, 1, 1]).numpy() == pytest.approx(0.25, abs=0.01)
    found = by_index(list(batches(split, inputs, 16, draws=draws)))
    for index in range(5):
        wide, tall = (theta[index, i, i].item() * 64 for i in (0, 1))
        left = (theta[index, 0, 2].item() + 1) * 32 - wide / 2
        top = (theta[index, 1, 2].item() + 1) * 32 - tall / 2
        assert -0.01 <= left <= 64 - wide + 0.01
        box = [round(v) for v in (top, left, tall, wide)]
        expected = tv.resized_crop(split.images[index], *box, [64, 64], antialias=False)
        difference = (inputs.denormalise(found[index][None]) - expected / 255).abs().mean()
        assert difference < 0.03  # the box of the expected one is rounded to pixels


def test_a_rotation_turns_about_the_centre():
    split = split_of()
    draws = Augmentation(rotate=30.0).draws(0, 0)
    theta = draws._affine(np.arange(40), 1.0)
    angles = torch.rad2deg(torch.atan2(theta[:, 1, 0], theta[:, 0, 0]))
    assert angles.abs().max() <= 30
    assert angles.std() > 10
    changed = inputs_of(split, draws)
    for index in range(5):
        expected = tv.rotate(
            split.images[index].float() / 255, angles[index].item(), tv.InterpolationMode.BILINEAR
        )
        middle = (slice(None), slice(12, 20), slice(12, 20))
        assert torch.allclose(changed[index][middle], expected[middle], atol=0.02)


def inputs_of(split, draws):
    found = by_index(list(batches(split, prepare(), 16, draws=draws)))
    return prepare().denormalise(torch.stack([found[index] for index in range(len(split))]))


def test_an_elastic_deformation_has_the_deviation_it_says():
    draws = Augmentation(elastic=3.0).draws(0, 0)
    flat = Augmentation(zoom=1.0).draws(0, 0)._grid(np.arange(500), 33, 33)
    moved = (draws._grid(np.arange(500), 33, 33) - flat) * 33 / 2  # in pixels
    assert moved[:, 0, 0].std() == pytest.approx(3, rel=0.1)  # a corner is a point of the grid
    assert moved[:, 16, 16].std() == pytest.approx(3, rel=0.1)
    steps = (moved[:, 1:] - moved[:, :-1]).abs().max()
    assert steps < 2.5  # smooth


def test_jitter_is_torchvisions():
    images = random_images(6).float() / 255
    half = torch.full((6, 4), 0.75)  # half of each amount, upwards
    only = {0: tv.adjust_brightness, 1: tv.adjust_contrast, 2: tv.adjust_saturation}
    for number, theirs in only.items():
        amounts = [0.0, 0.0, 0.0, 0.0]
        amounts[number] = 0.8
        expected = torch.stack([theirs(image, 1.4) for image in images])
        assert torch.allclose(jitter(images, amounts, half), expected, atol=2e-3)
    expected = tv.adjust_hue(images, 0.1)
    assert torch.allclose(rotate_hue(images, torch.full((6, 1, 1, 1), 0.1)), expected, atol=1e-4)
    assert torch.equal(jitter(images, (), half), images)
    grey = random_images(3, channels=1).float() / 255
    assert jitter(grey, (0.4, 0.4, 0.4, 0.4), half[:3]).shape == grey.shape


def test_erasing_hits_as_often_and_as_much_as_it_says():
    ones = torch.full((2000, 1, 32, 32), 255, dtype=torch.uint8)
    split = Split(ones, torch.zeros(2000).long())
    draws = Augmentation(erase=0.25).draws(0, 0)
    found = list(batches(split, prepare(channels=1), 500, draws=draws))
    share_of_holes = (torch.cat([batch.images for batch in found]) == 0).float().mean((1, 2, 3))
    assert (share_of_holes > 0).float().mean() == pytest.approx(0.25, abs=0.04)
    hit = share_of_holes[share_of_holes > 0]
    assert 0.01 < hit.min() < 0.05
    assert 0.28 < hit.max() < 0.36
    draws = Augmentation(cutout=8).draws(0, 0)
    found = list(batches(split, prepare(channels=1), 500, draws=draws))
    holes = (torch.cat([batch.images for batch in found]) == 0).sum((1, 2, 3))
    assert holes.max() == 64
    assert holes.min() >= 16


@pytest.mark.parametrize("changes", [{"mixup": 0.4}, {"cutmix": 1.0}])
def test_mixing_says_what_it_mixed(changes):
    values = torch.arange(40, dtype=torch.uint8) * 6
    split = Split(values[:, None, None, None].expand(-1, 3, 32, 32).clone(), torch.arange(40))
    plain = prepare()(split.images)[:, 0, 0, 0]
    for batch in run(split, changes):
        mix = batch.mix
        assert torch.equal(mix.targets, batch.targets.roll(1))
        assert 0 <= mix.lam.min() <= mix.lam.max() <= 1
        assert mix.lam.std() > 0.05
        expected = mix.lam * plain[batch.targets] + (1 - mix.lam) * plain[mix.targets]
        assert torch.allclose(batch.images.mean((1, 2, 3)), expected, atol=1e-4)


# --- masks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shift", "flip", "both", "crop", "rotate", "elastic"])
def test_masks_go_where_their_pixels_go(name):
    images = random_images(20)
    masks = (images[:, 0] > 127).to(torch.uint8)
    draws = Augmentation(**EVERYTHING[name]).draws(0, 0)
    for batch in batches(Split(images, masks), prepare(), 10, draws=draws):
        assert batch.targets.dtype == torch.uint8
        counted = batch.targets != IGNORED
        assert counted.float().mean() > (0.6 if "shift" in EVERYTHING[name] else 0.999)
        seen = (prepare().denormalise(batch.images)[:, 0] > 0.5).to(torch.uint8)
        agree = (seen == batch.targets)[counted].float().mean()
        assert agree > 0.93  # all but edges, which interpolation blurs
        aside = (seen.roll((2, 2), (1, 2)) == batch.targets)[counted].float().mean()
        assert aside < agree - 0.05


def test_the_frame_of_a_padded_mask_counts_in_nothing():
    split = Split(random_images(2, 28), torch.ones(2, 28, 28, dtype=torch.uint8))
    (batch,) = batches(split, prepare((32, 32), (28, 28), "pad"), 2)
    assert (batch.targets[:, 2:30, 2:30] == 1).all()
    assert (batch.targets == IGNORED).sum() == 2 * (32 * 32 - 28 * 28)


# --- files ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Forty images of one size on disk, beside the same in memory."""
    split, paths = split_of(), []
    for number, image in enumerate(split.images):
        paths.append(tmp_path / f"{number:02}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    return split, Files(tuple(paths), split.targets)


@CHANGES
def test_a_split_on_disk_gives_the_same_pixels_as_in_memory(files, changes):
    split, on_disk = files
    for one, other in zip(run(split, changes), run(on_disk, changes), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.indices, other.indices)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_number_of_workers_changes_no_pixel(files, workers):
    _, on_disk = files
    changes = {**EVERYTHING["both"], **EVERYTHING["jitter"]}
    alone = run(on_disk, changes)
    for one, other in zip(alone, run(on_disk, changes, workers=workers), strict=True):
        assert torch.equal(one.images, other.images)


def test_files_are_decoded_into_memory_as_they_are(files):
    split, on_disk = files
    decoded = decode_to_memory(on_disk, None, threads=2)
    assert torch.equal(decoded.images, split.images)
    assert torch.equal(decoded.targets, split.targets)


def test_what_is_broken_is_found_before_training_and_listed(files):
    _, on_disk = files
    for number in (3, 17):
        on_disk.images[number].write_bytes(on_disk.images[number].read_bytes()[:60])
    for use in (
        lambda bad: decode_to_memory(on_disk, None, 1, bad),
        lambda bad: drop_bad_files(on_disk, 2, bad),
    ):
        with pytest.raises(DatasetCorruptError, match=r"2 samples .*03\.png.*17\.png.*\n.*skip:2"):
            use(None)
        bad = BadSamples(allowed=2)
        kept = use(bad)
        assert kept.targets.tolist() == [n % 10 for n in range(40) if n not in (3, 17)]
        assert len(bad.messages) == 2
        bad.raise_if_too_many()


def test_images_of_other_sizes_are_scaled_with_antialiasing(tmp_path):
    paths = []
    for number, size in enumerate((48, 32, 100)):
        image = random_images(1, size)[0].permute(1, 2, 0).numpy()
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    decoded = decode_to_memory(Files(tuple(paths), torch.arange(3)), (32, 32))
    expected = tv.resize(random_images(1, 100)[0], [32, 32], antialias=True)
    assert (decoded.images[2].int() - expected.int()).abs().max() <= 1
    # Prediction resizes single images: it has to see the same pixels as training and evaluation.
    large, preprocessing = random_images(1, 100), prepare((32, 32), (0, 0))
    assert torch.equal(preprocessing(large), preprocessing(decoded.images[2:]))
    assert torch.equal(preprocessing.resized(large), decoded.images[2:].float() / 255)


def test_a_crop_of_large_images_is_cut_on_disk_where_the_grid_would_look(tmp_path):
    paths, split = [], split_of(12, 96)
    for number, image in enumerate(split.images):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(paths[-1])
    on_disk = Files(tuple(paths), split.targets)
    draws = Augmentation(crop=(0.3, 0.9), flip=True).draws(0, 0)
    differing = prepare((32, 32), (0, 0))  # as if they were not of one size
    found = by_index(list(batches(on_disk, differing, 4, draws=draws)))
    again = by_index(list(batches(on_disk, differing, 4, draws=draws, workers=1)))
    small = decode_to_memory(on_disk, (32, 32))
    grid = by_index(list(batches(small, differing, 4, draws=draws)))
    for index, image in found.items():
        assert torch.equal(image, again[index])
        # The window's edge is rounded to a pixel on disk, and scaling differs: a few per cent.
        apart = (
            differing.denormalise(image[None]) - differing.denormalise(grid[index][None])
        ).abs()
        assert apart.mean() < 0.03
        wrong = differing.denormalise(grid[(index + 1) % 12][None])
        assert (differing.denormalise(image[None]) - wrong).abs().mean() > 0.08


def test_a_split_in_memory_costs_its_bytes_and_two_batches():
    code = """
import resource, torch
from cnn_core.data import Preprocessing, Split, batches
from cnn_core.data.augment import Augmentation
torch.set_num_threads(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def epoch(split):
    draws = Augmentation(shift=4, flip=True).draws(0, 0)
    for batch in batches(split, prepare, 1000, draws=draws):
        pass
mean, std = (0.5,) * 3, (1.0,) * 3
prepare = Preprocessing(size=(32, 32), image_size=(32, 32), fit="resize", mean=mean, std=std)
epoch(Split(torch.zeros(1000, 3, 32, 32, dtype=torch.uint8), torch.zeros(1000).long()))
before = peak()
split = Split(torch.ones(60_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(60_000).long())
loaded = peak()
epoch(split)
print(loaded - before, peak() - loaded)
"""
    # Blocks are mapped one by one, so that what is freed is gone, and no hole in the heap counts.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    loaded, more = map(int, done.stdout.split())
    image_bytes, batch_bytes = 60_000 * 3072, 1000 * 3072 * 4
    assert loaded < image_bytes * 1.05
    # The batch in use, the next one, and the bytes that it is made of.
    assert more < 2.3 * batch_bytes


def test_no_batch_of_training_is_a_single_image():
    sizes = [len(batch.targets) for batch in run(split_of(33), {}, size=16)]
    assert sizes == [16, 17]
    assert batch_sizes(33, 16, training=True) == sizes
    assert batch_sizes(33, 16, training=False) == [16, 16, 1]
    assert batch_sizes(1, 16, training=True) == [1]
    assert batch_sizes(32, 16, training=True) == [16, 16]


def test_batches_of_one_stay_batches_of_one():
    assert batch_sizes(3, 1, training=True) == [1, 1, 1]
    assert [len(batch.targets) for batch in run(split_of(3), {}, size=1)] == [1, 1, 1]
    images, indices = torch.zeros(3, 1, 2, 2), torch.arange(3)
    micro_batches = list(Batch(images, indices, indices).micro_batches(1))
    assert [len(batch.indices) for batch in micro_batches] == [1, 1, 1]
    assert sum(batch.loss_weight for batch in micro_batches) == pytest.approx(1)


def test_a_split_is_divided_without_copying_an_image():
    spec = registry.datasets().get("digits")
    data = Dataset(spec, {"train": split_of(60)})
    copied = data.hold_out(0.2, seed=1)
    for part, copy in zip(data.divide(0.2, seed=1), copied, strict=True):
        assert part.images is data.split("train").images
        assert len(part) == len(copy)
        for one, other in zip(
            run(part, EVERYTHING["both"]), run(copy, EVERYTHING["both"]), strict=True
        ):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.targets, other.targets)
        three = torch.tensor([0, 2, 5])
        (batch,) = batches(part.subset(three), prepare(), 10)
        assert torch.equal(batch.targets, copy.targets[three])


def test_an_image_of_another_size_than_all_is_named(files):
    _, on_disk = files
    Image.new("RGB", (31, 32)).save(on_disk.images[7])
    with pytest.raises(DatasetCorruptError, match=r"07\.png: 32x31 pixels, expected 32x32"):
        decode_to_memory(on_disk, None, required_size=(32, 32))
    with pytest.raises(DatasetCorruptError, match=r"07\.png: 32x31 pixels, expected 32x32"):
        list(batches(on_disk, prepare(), 8))


def test_statistics_are_those_of_all_pixels(files):
    split, on_disk = files
    values = split.images.double().transpose(0, 1).flatten(1) / 255
    for part in (split, on_disk):
        mean, std = statistics(part)
        assert mean == pytest.approx(values.mean(1).tolist(), abs=1e-4)
        assert std == pytest.approx(values.std(1, correction=0).tolist(), abs=1e-4)


def test_pipeline_auto_keeps_what_fits_in_memory(files, monkeypatch):
    from cnn_core.data import pipeline as pipelines

    spec = registry.datasets().get("imagefolder")
    dataset = Dataset(spec, {"train": files[1]})
    kinds = {}
    for pipeline in ("auto", "memory", "streaming"):
        kinds[pipeline] = type(load_splits(dataset, prepare(), pipeline).split("train"))
    assert kinds == {"auto": Split, "memory": Split, "streaming": Files}
    monkeypatch.setattr(pipelines, "IN_MEMORY", 1000)
    assert isinstance(load_splits(dataset, prepare(), "auto").split("train"), Files)
