"""Images that occur twice are found, in files and in memory; so are those that look alike."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image, ImageEnhance

from cnn_core import load_dataset
from cnn_core.data import duplicates as module
from cnn_core.data.dataset import Dataset
from cnn_core.data.duplicates import duplicates, near_duplicates
from cnn_core.data.splits import Split
from cnn_core.data.verify import verify


def photograph(seed, side=64):
    """A smooth image of its own."""
    noise = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic")[0]
    pixels = (smooth * 50 + 128).clamp(0, 255).byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


@pytest.fixture
def folder(tmp_path):
    """Two classes in two splits, all images different."""
    seed = 0
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            path = tmp_path / split / name
            path.mkdir(parents=True)
            for number in range(6):
                photograph(seed).save(path / f"{number}.png")
                seed += 1
    return tmp_path


def test_different_images_are_no_duplicates(folder):
    data = load_dataset(f"imagefolder:{folder}")
    assert duplicates(data) == ([], [])
    assert near_duplicates(data) == []
    assert verify(f"imagefolder:{folder}", near=True, notes=[]) == []


@pytest.mark.parametrize(
    ("copy", "fault", "note"),
    [
        ("test/cat/9.png", "is also {original} of split 'train'", ""),
        ("train/dog/9.png", "is also {original}, of another class", ""),
        ("train/cat/9.png", "", "1 image repeats another, such as: {copy} is also {original}"),
    ],
)
def test_a_copy_is_found_wherever_it_is(folder, copy, fault, note):
    original, copied = folder / "train/cat/0.png", folder / copy
    shutil.copy(original, copied)
    faults, notes = duplicates(load_dataset(f"imagefolder:{folder}"))
    for found, expected in ((faults, fault), (notes, note)):
        text = expected.format(original=original, copy=copied)
        assert [text in line for line in found] == [True] * bool(expected)
    assert near_duplicates(load_dataset(f"imagefolder:{folder}")) == []  # copies are not repeated


CHANGES = {
    "compressed": lambda image, path: image.save(path, "JPEG", quality=50),
    "smaller": lambda image, path: image.resize((32, 32)).save(path),
    "larger": lambda image, path: image.resize((100, 100)).save(path),
    "brighter": lambda image, path: ImageEnhance.Brightness(image).enhance(1.2).save(path),
    "grey": lambda image, path: image.convert("L").save(path),
    "saved again": lambda image, path: image.save(path, optimize=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_looks_like_its_original(folder, change):
    for number in range(6):
        suffix = "jpg" if change == "compressed" else "png"
        image = Image.open(folder / f"train/cat/{number}.png")
        CHANGES[change](image, folder / f"test/cat/{number + 10}.{suffix}")
    lines = near_duplicates(load_dataset(f"imagefolder:{folder}"))
    assert len(lines) == 6
    for number in range(6):
        assert any(
            f"test/cat/{number + 10}." in line
            and f"{folder}/train/cat/{number}.png of split 'train'" in line
            for line in lines
        )


def test_few_digits_of_different_people_look_alike():
    data = load_dataset("digits")
    assert duplicates(data) == ([], [])
    assert len(near_duplicates(data)) < 20  # of 1,797; the threshold is not lax


def test_images_of_one_colour_are_not_like_others_and_unreadable_ones_are_left_out(folder):
    for number in range(3):
        Image.new("RGB", (64, 64), (number,) * 3).save(folder / f"train/cat/1{number}.png")
    (folder / "test/dog/0.png").write_bytes(b"broken")
    assert near_duplicates(load_dataset(f"imagefolder:{folder}")) == []


def test_only_some_pairs_are_listed_and_those_between_splits_come_first(monkeypatch):
    spec, one = load_dataset("digits").spec, load_dataset("digits").split("train").images[:1]
    noisy = one.repeat(30, 1, 1, 1).clone()
    noisy[torch.arange(30), 0, 0, 0] = torch.arange(30).byte()  # 30 files that differ in a pixel
    labels = torch.zeros(30, dtype=torch.int64)
    splits = {"train": Split(noisy[:25], labels[:25]), "test": Split(noisy[25:], labels[25:])}
    monkeypatch.setattr(module, "ROWS", 7)
    lines = near_duplicates(Dataset(spec, splits))
    assert len(lines) == module.SHOWN + 1
    assert all("of split 'train'" in line for line in lines[:5])
    assert lines[-1] == "9 more images look like others"


def test_the_command_notes_what_looks_alike(in_process, folder):
    CHANGES["smaller"](Image.open(folder / "train/cat/0.png"), folder / "test/cat/7.png")
    code, out, err = in_process("verify-data", f"imagefolder:{folder}", "--near")
    assert (code, out) == (0, f"imagefolder:{folder}: no faults\n")
    assert "looks like" in err
    assert "looks like" not in in_process("verify-data", f"imagefolder:{folder}")[2]
