"""Reading files while training: quickly, whatever is broken, and from a pack."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_core import registry
from cnn_core.data import Dataset, Files, Preprocessing, batches
from cnn_core.data import packing as packs
from cnn_core.data.augment import Augmentation
from cnn_core.data.bad_samples import BadSamples
from cnn_core.data.compact import compact_paths
from cnn_core.data.dataset import load_dataset
from cnn_core.data.headers import image_facts
from cnn_core.data.images import read_image
from cnn_core.data.pipeline import load_splits
from cnn_core.data.readers import survey as surveys
from cnn_core.data.splits import below_common_folder
from cnn_core.data.splitting import held_out
from cnn_core.data.streaming import decode_to_memory
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.training import Run, Trained, evaluate, train

SHAPES = [(60, 80), (80, 60), (64, 64), (100, 50)]


def photograph(height, width, seed):
    """Return a smooth image: its scaled copies look alike whatever the method."""
    coarse = np.random.default_rng(seed).random((4, 4, 3)) * 255
    return Image.fromarray(coarse.astype(np.uint8)).resize((width, height), 3)


def prepared(fit="crop", size=24, resize=32):
    return Preprocessing(
        size=(size, size),
        image_size=(0, 0),
        fit=fit,
        resize=resize if fit == "crop" else 0,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


@pytest.fixture
def folder(tmp_path):
    """Twenty-four photographs of two classes, of several sizes."""
    for number in range(24):
        path = (
            tmp_path / "set" / "ab"[number % 2] / f"{number:02}.{'jpg' if number % 3 else 'png'}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(*SHAPES[number % 4], number).save(path)
    return tmp_path / "set"


def damage(path):
    """Change a byte of a PNG's pixels: only decoding finds it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def pixels(split, preprocessing, draws=None, **more):
    return {
        index: image
        for batch in batches(split, preprocessing, 8, draws=draws, **more)
        for index, image in zip(batch.indices.tolist(), batch.images, strict=True)
    }


# --- decoding ------------------------------------------------------------------------------


def test_a_jpeg_is_scaled_down_while_it_is_decoded_as_far_as_its_crop_allows(tmp_path):
    path = tmp_path / "large.jpg"
    photograph(480, 640, 1).save(path, quality=95)
    whole = read_image(path, 3)
    for factor, expected in [(1, (480, 640)), (3, (240, 320)), (4, (120, 160)), (9, (60, 80))]:
        found = read_image(path, 3, reduction=lambda h, w, f=factor: f)
        assert found.shape[1:] == expected
        same = torch.nn.functional.interpolate(whole[None].float(), expected, mode="area")[0]
        assert (found.float() - same).abs().mean() < 2
    asked = []
    read_image(path, 3, reduction=lambda *size: asked.append(size) or 1)
    assert asked == [(480, 640)]


def test_a_photograph_on_its_side_is_reduced_by_its_upright_size(tmp_path):
    path, exif = tmp_path / "side.jpg", Image.Exif()
    exif[0x0112] = 6
    photograph(480, 640, 1).save(path, exif=exif)
    asked = []
    found = read_image(path, 3, reduction=lambda *size: asked.append(size) or 2)
    assert asked == [(640, 480)]
    assert found.shape[1:] == (320, 240)


def test_the_crop_of_a_reduced_photograph_is_that_of_the_whole_one(tmp_path):
    as_jpeg, as_png = tmp_path / "a.jpg", tmp_path / "a.png"
    photograph(480, 640, 2).save(as_jpeg, quality=98)
    Image.open(as_jpeg).save(as_png)  # is never reduced
    for seed in range(5):
        draws = Augmentation(crop=(0.3, 1.0), flip=True).draws(seed, 0)
        one, other = (
            pixels(Files((path,), torch.zeros(1, dtype=torch.int64)), prepared(), draws)[0]
            for path in (as_jpeg, as_png)
        )
        assert (one - other).abs().mean() < 0.03


def test_a_large_image_of_a_wrong_size_is_an_error_also_if_it_is_reduced(tmp_path):
    path = tmp_path / "a.jpg"
    photograph(480, 640, 2).save(path)
    fixed = dataclasses.replace(prepared("resize"), image_size=(480, 320))
    files = Files((path,), torch.zeros(1, dtype=torch.int64))
    draws = Augmentation(crop=(0.3, 1.0)).draws(0, 0)
    with pytest.raises(DatasetCorruptError, match="480x640 pixels, expected 480x320"):
        pixels(files, fixed, draws)


# --- broken files --------------------------------------------------------------------------


def streamed(folder, allowed=0, pipeline="streaming", preprocessing=None):
    bad = BadSamples(allowed)
    dataset = load_dataset(f"imagefolder:{folder}")
    return load_splits(dataset, preprocessing or prepared(), pipeline, bad=bad), bad


def test_a_stream_is_not_decoded_before_training(folder, monkeypatch):
    read = []
    monkeypatch.setattr(
        "cnn_core.data.splits.read_image",
        lambda *args: read.append(args) or torch.zeros(3, 40, 40, dtype=torch.uint8),
    )
    dataset, _ = streamed(folder)
    assert not read
    list(batches(dataset.split("test"), prepared(), 8))
    assert len(read) == len(dataset.split("test"))


@pytest.mark.parametrize("kind", ["cut off", "empty", "text"])
def test_a_broken_header_and_a_missing_end_are_known_before_the_first_step(folder, kind):
    path = folder / "a" / "04.jpg"
    data = {"cut off": path.read_bytes()[:-90], "empty": b"", "text": b"<html>"}[kind]
    path.write_bytes(data)
    with pytest.raises(DatasetCorruptError, match=r"1 sample cannot .*a/04\.jpg.*\n.*skip:1"):
        streamed(folder)
    _, bad = streamed(folder, allowed=1)
    assert len(bad.messages) == 1


def test_data_behind_the_end_marker_is_no_fault(folder):
    for path, more in ((folder / "a" / "04.jpg", 9000), (folder / "a" / "06.png", 20)):
        path.write_bytes(path.read_bytes() + b"\0" * more)
    assert not image_facts(
        folder / "a" / "04.jpg"
    ).whole  # so it is decoded, and found to be sound
    assert image_facts(folder / "a" / "06.png").whole
    streamed(folder)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_in_training_the_image_before_takes_the_place_of_a_skipped_one(folder, caplog):
    path = folder / "a" / "06.png"
    damage(path)
    dataset, bad = streamed(folder, allowed=1)
    split = dataset.split("train")
    place = list(split.images).index(path)
    draws = Augmentation(crop=(0.5, 1.0)).draws(0, 0)
    found = pixels(split, prepared(), draws)
    assert torch.equal(found[place], found[place - 1])
    assert len(found) == len(split)
    (message,) = bad.messages
    assert "06.png" in message
    assert caplog.text.count("skipped:") == 1
    assert "the image before it takes its place" in caplog.text
    for more in ({"workers": 2}, {"rank": 1, "world": 2}):
        again = pixels(split, prepared(), draws, **more)
        assert all(torch.equal(image, found[index]) for index, image in again.items())
    # In evaluation, nothing is measured twice.
    kept = pixels(split, prepared())
    assert sorted(kept) == [n for n in range(len(split)) if n != place]


def test_too_many_broken_files_end_the_epoch(folder):
    dataset, _ = streamed(folder, allowed=1)
    for name in ("06.png", "12.png", "18.png", "00.png"):
        damage(folder / "a" / name)
    everything = dataset.split("all")
    with pytest.raises(DatasetCorruptError, match="2 samples cannot be used"):
        pixels(everything, prepared(), Augmentation().draws(0, 0))


def test_a_file_that_breaks_during_training_costs_nothing_but_itself(folder, tmp_path):
    """It is named, what was trained is kept, and the run resumes to the same weights."""
    settings = {
        "model": "lenet5_modern",
        "data": f"imagefolder:{folder}",
        "pipeline": "streaming",
        "batch_size": 4,
        "epochs": 2,
        "lr": 0.01,
        "validation": 0.0,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    whole = train(**settings, out=tmp_path / "whole")
    path = folder / "a" / "06.png"
    sound = path.read_bytes()
    damage(path)
    with pytest.raises(DatasetCorruptError, match=r"06\.png") as error:
        train(**settings, out=tmp_path / "cut")
    assert "train --resume" in error.value.hint
    assert Run.open(tmp_path / "cut").path.is_dir()
    path.write_bytes(sound)
    resumed = train(resume=tmp_path / "cut")
    assert resumed.final_metrics() == whole.final_metrics()
    one, other = (Trained.of(run).model.state_dict() for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_skipped_a_streamed_file_is_evaluated_on_the_images_it_held_out(
    folder, tmp_path
):
    damage(folder / "b" / "09.png")
    run = train(
        model="lenet5_modern",
        data=f"imagefolder:{folder}",
        pipeline="streaming",
        on_bad_sample="skip:1",
        epochs=1,
        lr=0.01,
        validation=0.3,
        out=tmp_path / "run",
    )
    recorded = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0])
    found = evaluate(run, split="val")
    assert found["top1"] == pytest.approx(recorded["val/top1"])
    assert found["loss"] == pytest.approx(recorded["val/loss"], rel=1e-5)


# --- packs ---------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packed"


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_evaluation_sees_the_same_pixels_in_a_pack_as_in_files(folder, cache, fit):
    files, packed = (streamed(folder, 0, p, prepared(fit))[0] for p in ("streaming", "packed"))
    for name in ("train", "test"):
        one, other = (pixels(dataset.split(name), prepared(fit)) for dataset in (files, packed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[index], other[index]) for index in one)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_pack_gives_the_same_pixels_to_any_number_of_processes(folder, cache):
    packed, _ = streamed(folder, 0, "packed")
    split = packed.split("train")
    draws = Augmentation(crop=(0.3, 1.0), flip=True).draws(0, 0)
    alone = pixels(split, prepared(), draws)
    for more in ({"workers": 2}, {"rank": 0, "world": 2}, {"rank": 1, "world": 2}):
        found = pixels(split, prepared(), draws, **more)
        assert all(torch.equal(image, alone[index]) for index, image in found.items())


def test_masks_are_packed_with_their_images(tmp_path, cache):
    images, masks = [], []
    for number in range(4):
        height, width = SHAPES[number]
        images.append(tmp_path / f"{number}.png")
        masks.append(tmp_path / f"{number}_mask.png")
        photograph(height, width, number).save(images[-1])
        values = np.random.default_rng(number).integers(0, 2, (height, width), np.uint8) * 255
        Image.fromarray(values).save(masks[-1])
    files = Files(tuple(images), tuple(masks), values={0: 0, 255: 1})
    spec = dataclasses.replace(
        registry.datasets().get("maskfolder"), classes=("a", "b"), image=(3, 0, 0)
    )
    dataset = Dataset(spec, {"train": files})
    packed, _ = packs.pack(dataset, prepared("resize"))
    found = next(batches(packed.split("train"), prepared("resize"), 4))
    expected = decode_to_memory(files, (24, 24))
    assert torch.equal(found.targets, expected.targets)
    assert torch.equal(found.images, prepared("resize")(expected.images))


def test_a_killed_pack_is_continued_and_a_finished_one_is_used(folder, cache, monkeypatch):
    dataset, decoded = load_dataset(f"imagefolder:{folder}"), []
    made, _ = packs.pack(dataset, prepared())
    (place,) = cache.iterdir()
    whole = {name: (place / name).read_bytes() for name in ("samples.bin", "index.bin")}
    real = packs.decode_all

    def counted(*arguments):
        for sample in real(*arguments):
            decoded.append(sample)
            yield sample

    monkeypatch.setattr(packs, "decode_all", counted)
    packs.pack(dataset, prepared())
    assert not decoded
    # As a kill leaves it: pixels without a row, and half a row.
    (place / "pack.json").unlink()
    (place / "samples.bin").write_bytes(whole["samples.bin"][:-1000])
    (place / "index.bin").write_bytes(whole["index.bin"][: 24 * 15 + 10])
    again, _ = packs.pack(dataset, prepared())
    assert len(decoded) == 24 - 15
    assert {name: (place / name).read_bytes() for name in whole} == whole
    one, other = (pixels(d.split("train"), prepared()) for d in (made, again))
    assert all(torch.equal(one[index], other[index]) for index in one)


def test_a_changed_file_and_another_size_are_packed_anew(folder, cache):
    dataset = load_dataset(f"imagefolder:{folder}")
    packs.pack(dataset, prepared())
    photograph(50, 50, 99).save(folder / "a" / "04.jpg")
    packs.pack(load_dataset(f"imagefolder:{folder}"), prepared())
    packs.pack(dataset, prepared(resize=40))
    assert len(list(cache.iterdir())) == 3


def test_broken_files_of_a_pack_are_listed_again_after_a_kill(folder, cache):
    damage(folder / "a" / "06.png")
    with pytest.raises(DatasetCorruptError, match=r"1 sample .*06\.png"):
        streamed(folder, 0, "packed")
    (place,) = cache.iterdir()
    errors = (place / "pack.json").read_text()
    (place / "pack.json").unlink()
    _, bad = streamed(folder, 1, "packed")
    assert (place / "pack.json").read_text() == errors
    assert len(bad.messages) == 1


def test_a_run_from_a_pack_ends_as_it_is_evaluated(folder, cache, tmp_path):
    run = train(
        model="lenet5_modern",
        data=f"imagefolder:{folder}",
        pipeline="packed",
        fit="crop",
        epochs=1,
        crop=[0.5, 1.0],
        out=tmp_path / "run",
    )
    assert run.recipe.pipeline == "packed"
    assert evaluate(run)["loss"] == pytest.approx(run.final_metrics()["test/loss"], rel=1e-5)


def test_the_command_packs_what_training_uses(folder, cache, cnnzoo, tmp_path):
    variables = {"CNNZOO_CACHE": tmp_path / "cache"}
    data = f"imagefolder:{folder}"
    done = cnnzoo("pack", data, "--side", 32, **variables)
    assert done.code == 0
    assert f"--data {data} --pipeline packed --set fit=crop --set resize=32" in done.err
    (place,) = cache.iterdir()
    assert done.out.strip() == str(place)
    arguments = ("--pipeline", "packed", "--set", "fit=crop", "--set", "resize=32", "--epochs", 1)
    out = ("--out", tmp_path / "run")
    assert (
        cnnzoo("train", "lenet5_modern", "--data", data, *arguments, *out, **variables).code == 0
    )
    assert list(cache.iterdir()) == [place]
    for wrong in ((), ("--side", 9, "--size", 9), ("--size", 9, "--interpolation", "bicubic")):
        assert cnnzoo("pack", data, *wrong, **variables).code == 2
    assert cnnzoo("pack", "digits", "--side", 9, **variables).code == 2


def test_what_is_in_memory_is_not_packed():
    with pytest.raises(UsageError, match="in memory and cannot be packed"):
        load_splits(load_dataset("digits"), prepared(), "packed")


# --- many files ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_headers_read_by_workers_say_the_same(folder, monkeypatch):
    (folder / "a" / "04.jpg").write_bytes(b"")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    alone = surveys.survey_images(paths)
    monkeypatch.setattr(surveys, "PARALLEL", 2)
    monkeypatch.setattr(surveys, "PART", 5)
    assert surveys.survey_images(paths) == alone
    assert list(alone.broken) == [folder / "a" / "04.jpg"]


def test_compact_paths_are_the_paths(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b/ü.png", "b/\udcff.png", "c")]
    compact = compact_paths(paths)
    assert list(compact) == paths
    assert [compact[n] for n in (-1, 0)] == [paths[-1], paths[0]]
    assert list(compact[1:3]) == paths[1:3]
    assert list(compact.take(torch.tensor([2, 0]))) == [paths[2], paths[0]]
    assert below_common_folder(compact) == ["a.png", "b/ü.png", "b/\udcff.png", "c"]


def test_classes_are_held_out_as_if_one_after_the_other():
    labels = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(3))
    generator, expected = torch.Generator().manual_seed(7), torch.zeros(200, dtype=torch.bool)
    for number in range(5):
        members = (labels == number).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        expected[members[order[: round(0.2 * len(members))]]] = True
    assert torch.equal(held_out(labels, 0.2, 7), expected)
