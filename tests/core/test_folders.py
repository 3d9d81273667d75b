"""Datasets of files: folders of classes and of masks, Pets, the membranes, digit scenes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_core import load_dataset
from cnn_core.data import Files
from cnn_core.data.augment import IGNORED
from cnn_core.data.decoder import Decoder
from cnn_core.data.streaming import decode_to_memory
from cnn_core.errors import (
    DatasetCorruptError,
    DatasetMissingError,
    UnknownNameError,
    UsageError,
)
from cnn_core.training import Run
from cnn_core.training.prediction import image_files, require_distinct_names
from cnn_core.training.trained import load_data


def save_image(path, size=(12, 10), mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size, 3) if mode == "RGB" else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return path


def mask(path, values, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.resize(np.array(values, dtype=np.uint8), size)
    Image.fromarray(pixels, "L").save(path)
    return path


@pytest.fixture
def flowers(tmp_path):
    """Three classes of ten, seven and twelve images, one folder each."""
    root, seed = tmp_path / "flowers", 0
    for name, count in (("rose", 10), ("aster", 7), ("tulip", 12)):
        for number in range(count):
            save_image(root / name / f"{number}.png", seed=seed)
            seed += 1
    (root / "aster" / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    return root


def test_a_data_dir_beside_a_path_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"--data-dir .* does not apply: 'imagefolder:flowers'"):
        load_dataset("imagefolder:flowers", data_dir=tmp_path)


def test_folders_without_images_and_names_that_are_one_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("not an image")
    with pytest.raises(UsageError, match=r"no images in this folder\nexpected \.jpg, .*\.npy"):
        list(image_files([tmp_path]))
    files = [save_image(tmp_path / name) for name in ("a.bmp", "a.png")]
    assert list(image_files([tmp_path])) == files
    with pytest.raises(
        UsageError,
        match=r"a\.png have the same name, so their output files .*\nrun the command once",
    ):
        require_distinct_names(files)


# --- folders of classes --------------------------------------------------------------------


def test_one_folder_is_split_alike_for_each_class(flowers):
    data = load_dataset(f"imagefolder:{flowers}")
    assert data.spec.classes == ("aster", "rose", "tulip")
    assert data.spec.image == (3, 12, 10)
    assert data.spec.splits == {"train": 24, "test": 5}
    assert data.split("train").targets.bincount().tolist() == [6, 8, 10]
    assert data.split("test").targets.bincount().tolist() == [1, 2, 2]
    names = {path for split in data.splits.values() for path in split.images}
    assert len(names) == 29
    for split in data.splits.values():
        for path, target in zip(split.images, split.targets.tolist(), strict=True):
            assert path.parent.name == data.spec.classes[target]
    again = load_dataset(f"imagefolder:{flowers}")
    assert again.split("test").images == data.split("test").images


def test_folders_of_splits_are_taken_as_they_are(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for name in ("a", "b"):
            for number in range(count):
                save_image(tmp_path / split / name / f"{number}.jpg", seed=count * number)
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert data.spec.splits == {"train": 8, "val": 4, "test": 6}
    train, val = data.hold_out(0.1, seed=0)
    assert (len(train), len(val)) == (8, 4)


def test_without_a_folder_test_what_was_kept_to_validate_is_measured(tmp_path):
    for split in ("train", "valid"):
        for name in ("a", "b"):
            for number in range(3):
                save_image(tmp_path / split / name / f"{number}.png")
    assert set(load_dataset(f"imagefolder:{tmp_path}").splits) == {"train", "test"}


def test_grey_images_have_one_channel_and_sizes_may_differ(tmp_path):
    for name in ("a", "b"):
        for number in range(5):
            save_image(tmp_path / name / f"{number}.png", (8 + number, 9), "L")
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert data.spec.image == (1, 0, 0)
    save_image(tmp_path / "a" / "rgb.png")
    assert load_dataset(f"imagefolder:{tmp_path}").spec.image == (3, 0, 0)


def test_what_is_wrong_with_folders_is_said(tmp_path, flowers):
    with pytest.raises(UsageError, match="no such folder"):
        load_dataset(f"imagefolder:{tmp_path / 'none'}")
    with pytest.raises(UsageError, match="needs a folder\nimagefolder:PATH"):
        load_dataset("imagefolder")
    with pytest.raises(UsageError, match="'digits' takes no path, found ':x'"):
        load_dataset("digits:x")
    with pytest.raises(UnknownNameError, match="did you mean 'imagefolder'"):
        load_dataset(f"imagefoldr:{flowers}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetCorruptError, match="0 folders of images"):
        load_dataset(f"imagefolder:{tmp_path / 'empty'}")
    save_image(tmp_path / "s" / "train" / "a" / "0.png")
    save_image(tmp_path / "s" / "train" / "b" / "0.png")
    save_image(tmp_path / "s" / "test" / "c" / "0.png")
    with pytest.raises(DatasetCorruptError, match="class 'c' is not in the training split"):
        load_dataset(f"imagefolder:{tmp_path / 's'}")
    save_image(tmp_path / "t" / "test" / "a" / "0.png")
    with pytest.raises(DatasetCorruptError, match="has test, but no folder 'train'"):
        load_dataset(f"imagefolder:{tmp_path / 't'}")


def test_a_folder_is_trained_on_evaluated_and_reported(flowers, tmp_path, cnnzoo):
    out = tmp_path / "run"
    arguments = ["train", "lenet5_modern", "--data", f"imagefolder:{flowers}", "--out", str(out)]
    done = cnnzoo(*arguments, "--epochs", "1", "--batch-size", "8", "--set", "shift=1")
    assert done.code == 0, done.err
    kept = json.loads((out / "environment.json").read_text())
    assert kept
    weights = cnnzoo("evaluate", str(out), "--json")
    assert weights.code == 0, weights.err
    streamed = tmp_path / "streamed"
    arguments[-1] = str(streamed)
    more = ("--pipeline", "streaming", "--workers", "1")
    done = cnnzoo(*arguments, "--epochs", "1", "--batch-size", "8", "--set", "shift=1", *more)
    assert done.code == 0, done.err
    one, other = ((run / "metrics.jsonl").read_text().splitlines() for run in (out, streamed))
    for a, b in zip(map(json.loads, one), map(json.loads, other), strict=True):
        assert {k: v for k, v in a.items() if "/" in k} == {k: v for k, v in b.items() if "/" in k}


def test_several_broken_files_are_listed_at_once_and_left_out_ever_after(
    flowers, tmp_path, cnnzoo
):
    for number, harm in enumerate((b"", b"<html></html>", bytes(900))):
        (flowers / "tulip" / f"{number}.png").write_bytes(harm)
    test = load_dataset(f"imagefolder:{flowers}").split("test").images[0]
    test.write_bytes(test.read_bytes()[:200])
    out = tmp_path / "a"
    arguments = ["train", "lenet5_modern", "--data", f"imagefolder:{flowers}", "--epochs", "1"]
    arguments += ["--out", str(out)]
    done = cnnzoo(*arguments)
    assert done.code == 3
    assert "4 samples cannot be used" in done.err
    assert "--on-bad-sample skip:4" in done.err
    assert not out.exists()
    assert cnnzoo(*arguments, "--on-bad-sample", "skip:4").code == 0
    assert cnnzoo("evaluate", str(out)).code == 0
    faults = cnnzoo("verify-data", f"imagefolder:{flowers}").out.splitlines()
    assert len(faults) == 4


def test_a_run_notices_that_its_folder_has_changed(flowers, tmp_path, cnnzoo, monkeypatch):
    monkeypatch.chdir(flowers.parent)
    out = tmp_path / "a"
    arguments = ["train", "lenet5_modern", "--data", "imagefolder:flowers", "--epochs", "2"]
    assert cnnzoo(*arguments, "--out", str(out)).code == 0
    monkeypatch.chdir(tmp_path.parent)  # it is found from elsewhere as well
    assert cnnzoo("evaluate", str(out)).code == 0
    moved = flowers.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"flowers: no such folder\n.*--data-dir DIR"):
        load_data(Run.open(out))
    data = load_data(Run.open(out), moved)  # wherever it is now
    assert data.split("test").images[0].is_relative_to(moved)
    moved.rename(flowers)
    save_image(flowers / "rose" / "new.png", seed=99)
    for command in (["evaluate", str(out)], ["train", "--resume", str(out)]):
        done = cnnzoo(*command)
        assert done.code == 3
        assert "have changed since the run began" in done.err


@pytest.mark.parametrize("name", ["notes", "Val"])
def test_a_folder_without_images_is_no_class(flowers, name):
    (flowers / name).mkdir()
    with pytest.raises(DatasetCorruptError, match=r"no images|but no folder 'train'"):
        load_dataset(f"imagefolder:{flowers}")


def test_hidden_folders_and_capital_letters(tmp_path):
    for split in ("Train", "TEST"):
        for name in ("a", "b"):
            save_image(tmp_path / split / name / "0.png", seed=len(split))
            save_image(tmp_path / split / name / ".checkpoints" / "0.png")
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert data.spec.splits == {"train": 2, "test": 2}
    (tmp_path / "val").mkdir()
    (tmp_path / "valid").mkdir()
    with pytest.raises(DatasetCorruptError, match="a second val split"):
        load_dataset(f"imagefolder:{tmp_path}")
    few = tmp_path / "few"
    for name in ("a", "b"):
        save_image(few / name / "0.png")
    with pytest.raises(DatasetCorruptError, match="2 images are too few to hold out a fifth"):
        load_dataset(f"imagefolder:{few}")


def test_masks_in_folders_of_their_own_keep_apart(tmp_path):
    for camera in ("cam1", "cam2"):
        for number in range(3):
            save_image(tmp_path / "images" / camera / f"{number}.png", seed=number)
            mask(tmp_path / "masks" / camera / f"{number}.png", [0, 1])
    data = load_dataset(f"maskfolder:{tmp_path}")
    assert sum(map(len, data.splits.values())) == 6
    for split in data.splits.values():
        for image, path in zip(split.images, split.targets, strict=True):
            assert image.parts[-2:] == path.parts[-2:]


def test_escapes_in_names_of_files_do_not_reach_the_terminal(flowers, cnnzoo, tmp_path):
    (flowers / "rose" / "\x1b]0;owned\x07.png").write_bytes(b"")
    data = f"imagefolder:{flowers}"
    for command in (
        ["train", "lenet5_modern", "--data", data, "--out", str(tmp_path / "a")],
        ["train", "lenet5_modern", "--data", data, "--epochs", "1", "--on-bad-sample", "skip:1"],
        ["verify-data", data],
    ):
        done = cnnzoo(*command, cwd=tmp_path) if "skip:1" in command else cnnzoo(*command)
        assert "\x1b" not in done.err + done.out
        assert "owned" in done.err + done.out


def test_a_broken_file_is_named_before_the_first_epoch_or_left_out(flowers, tmp_path, cnnzoo):
    (flowers / "rose" / "3.png").write_bytes((flowers / "rose" / "4.png").read_bytes()[:80])
    arguments = ["train", "lenet5_modern", "--data", f"imagefolder:{flowers}", "--epochs", "1"]
    done = cnnzoo(*arguments, "--out", str(tmp_path / "a"))
    assert done.code == 3
    assert "rose/3.png" in done.err
    assert "--on-bad-sample skip:1" in done.err
    assert "epoch" not in done.err
    done = cnnzoo(*arguments, "--out", str(tmp_path / "b"), "--on-bad-sample", "skip:1")
    assert done.code == 0, done.err
    assert "skipped 1 unreadable sample: " in done.err
    done = cnnzoo(*arguments, "--on-bad-sample", "skip")
    assert done.code == 2


# --- folders of masks ----------------------------------------------------------------------


def test_masks_go_with_images_by_stem_and_two_values_are_two_classes(tmp_path):
    for number in range(10):
        save_image(tmp_path / "images" / f"{number}.jpg", seed=number)
        mask(tmp_path / "masks" / f"{number}.png", [0, 255, 255])
    (tmp_path / "classes.txt").write_text("ground\ncell\n")
    data = load_dataset(f"maskfolder:{tmp_path}")
    assert data.spec.classes == ("ground", "cell")
    assert data.spec.splits == {"train": 8, "test": 2}
    for split in data.splits.values():
        for image, path in zip(split.images, split.targets, strict=True):
            assert image.stem == path.stem
    loaded = decode_to_memory(data.split("train"), None)
    assert loaded.targets.shape == (8, 12, 10)
    assert loaded.targets.unique().tolist() == [0, 1]
    assert loaded.targets.float().mean() == pytest.approx(2 / 3)


def test_masks_of_class_numbers_keep_them_and_255_counts_in_nothing(tmp_path):
    for number in range(5):
        save_image(tmp_path / "images" / f"{number}.png", seed=number)
        mask(tmp_path / "masks" / f"{number}.png", [0, 1, 2, 255])
    data = load_dataset(f"maskfolder:{tmp_path}")
    assert data.spec.classes == ("0", "1", "2")
    targets = decode_to_memory(data.split("train"), None).targets
    assert targets.unique().tolist() == [0, 1, 2, IGNORED]
    resized = decode_to_memory(data.split("train"), (24, 20)).targets
    assert torch.equal(resized, targets.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_what_is_wrong_with_masks_is_said(tmp_path):
    for number in range(6):
        save_image(tmp_path / "images" / f"{number}.png")
    with pytest.raises(UsageError, match="masks: no such folder"):
        load_dataset(f"maskfolder:{tmp_path}")
    for number in range(6):
        mask(tmp_path / "masks" / f"{number}.png", [0, 1, 7])
    with pytest.raises(DatasetCorruptError, match="have the values 0, 1, 7, expected class num"):
        load_dataset(f"maskfolder:{tmp_path}")
    for number in range(6):
        mask(tmp_path / "masks" / f"{number}.png", [0, 1, 2], size=(11, 10))
    data = load_dataset(f"maskfolder:{tmp_path}")
    with pytest.raises(DatasetCorruptError, match=r"\d\.png: mask is 11x10, its image is 12x10"):
        Decoder(data.split("train"), None)[0]
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match="2 names, but the masks have 3 classes"):
        load_dataset(f"maskfolder:{tmp_path}")
    mask(tmp_path / "masks" / "5.bmp", [0, 1, 2])
    with pytest.raises(DatasetCorruptError, match=r"5\.png: same name as 5\.bmp"):
        load_dataset(f"maskfolder:{tmp_path}")
    (tmp_path / "masks" / "5.png").unlink()
    (tmp_path / "masks" / "5.bmp").unlink()
    with pytest.raises(DatasetCorruptError, match=r"images/5\.png: has no mask"):
        load_dataset(f"maskfolder:{tmp_path}")


# --- Oxford-IIIT Pets ----------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path):
    """Six pets as they are published: a cat's head in the middle, with a border around it."""
    lists = {"trainval": [], "test": []}
    names = [("Abyssinian_1", 1, 1, 1), ("beagle_2", 5, 2, 3), ("yorkshire_terrier_3", 37, 2, 25)]
    for part, rows in lists.items():
        for number, (stem, breed, species, within) in enumerate(names):
            stem = f"{stem}{number}{part}"  # noqa: PLW2901
            save_image(tmp_path / "images" / f"{stem}.jpg", (20, 16), seed=number)
            trimap = np.full((20, 16), 2, dtype=np.uint8)
            trimap[4:16, 4:12] = 3
            trimap[6:14, 6:10] = 1
            path = tmp_path / "annotations" / "trimaps" / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(trimap, "L").save(path)
            rows.append(f"{stem} {breed} {species} {within}")
        text = "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(rows) + "\n"
        (tmp_path / "annotations" / f"{part}.txt").write_text(text)
    return tmp_path


def test_breeds_and_species_of_pets(pets):
    data = load_dataset("pets", data_dir=pets)
    train = data.split("train")
    assert [data.spec.classes[n] for n in train.targets.tolist()] == [
        "Abyssinian",
        "beagle",
        "yorkshire_terrier",
    ]
    assert len(data.spec.classes) == 37
    species = load_dataset("pets_species", data_dir=pets)
    assert species.split("test").targets.tolist() == [0, 1, 1]
    assert species.spec.classes == ("cat", "dog")


def test_in_a_trimap_1_is_the_pet_2_the_ground_and_3_the_border(pets):
    decoder = Decoder(load_dataset("pets_segmentation", data_dir=pets).split("train"), None)
    _, found = decoder[0]
    assert (found[6:14, 6:10] == 1).all()  # the pet, in the middle
    assert (found[0] == 0).all()
    assert (found[5, 5:11] == IGNORED).all()
    assert (found == 1).sum() == 8 * 4
    assert (found == IGNORED).sum() == 12 * 8 - 8 * 4
    # Whoever swaps 1 and 2 sees a pet along the image's edge.
    assert found[0, 0] != 1
    _, three = Decoder(load_dataset("pets_trimap", data_dir=pets).split("train"), None)[0]
    assert three.unique().tolist() == [0, 1, 2]
    assert (three[5, 5:11] == 2).all()
    assert torch.equal(three == 1, found == 1)


def test_what_is_wrong_with_pets_is_said(pets, tmp_path):
    with pytest.raises(DatasetMissingError, match="no folder images in"):
        load_dataset("pets", data_dir=tmp_path / "none")
    path = pets / "annotations" / "test.txt"
    path.write_text("Abyssinian_1 38 1 1\n")
    with pytest.raises(DatasetCorruptError, match=r"test\.txt: number 38, expected 1 to 37"):
        load_dataset("pets", data_dir=pets)
    for line in ("Abyssinian_1 1 1", "../secret 1 1 1", "a b c d", "x 1 1 ²"):
        path.write_text(f"# a comment\n{line}\n")
        with pytest.raises(DatasetCorruptError, match=r"test\.txt: line 2: expected a name and"):
            load_dataset("pets", data_dir=pets)


# --- membranes, scenes ---------------------------------------------------------------------


def test_six_slices_of_the_membranes_are_held_out(tmp_path):
    for number in range(30):
        save_image(tmp_path / "isbi" / "images" / f"{number}.png", (32, 32), "L", number)
        mask(tmp_path / "isbi" / "masks" / f"{number}.png", [0, 255], (32, 32))
    data = load_dataset("isbi_em", data_dir=tmp_path)
    stems = {name: [int(p.stem) for p in split.images] for name, split in data.splits.items()}
    assert {name: len(numbers) for name, numbers in stems.items()} == {"train": 24, "test": 6}
    assert sorted(stems["train"] + stems["test"]) == list(range(30))
    assert stems["train"] == sorted(stems["train"])
    assert stems["test"] == [9, 13, 14, 23, 27, 29]
    _, cells = Decoder(data.split("test"), None)[0]
    assert cells.unique().tolist() == [0, 1]
    (tmp_path / "isbi" / "masks" / "3.png").unlink()
    with pytest.raises(DatasetCorruptError, match="30 images and 29 masks, expected 30"):
        load_dataset("isbi_em", data_dir=tmp_path)


def test_digit_scenes_are_the_same_every_time_and_keep_splits_apart():
    data = load_dataset("digit_scenes")
    again = load_dataset("digit_scenes")
    for name, count in data.spec.splits.items():
        split = data.split(name)
        assert split.images.shape == (count, 1, 64, 64)
        assert torch.equal(split.images, again.split(name).images)
        assert torch.equal(split.targets, again.split(name).targets)
        assert split.targets.unique().tolist() == [0, 1]
        assert 0.08 < split.targets.float().mean() < 0.2
    train, test = (data.split(name).images.float() for name in ("train", "test"))
    assert torch.cdist(train[:200].flatten(1), test.flatten(1)).min() > 100
    bright = [
        (images[targets == n]).float().mean()
        for images, targets in [(data.split("test").images[:, 0], data.split("test").targets)]
        for n in (0, 1)
    ]
    assert bright[1] > bright[0] + 60
    values = data.split("train").images.double() / 255
    assert data.spec.mean == pytest.approx((values.mean().item(),), abs=1e-3)
    assert data.spec.std == pytest.approx((values.std().item(),), abs=1e-3)


def test_files_can_be_divided(tmp_path):
    files = Files((tmp_path / "a", tmp_path / "b"), (tmp_path / "c", tmp_path / "d"))
    part = files.subset(torch.tensor([1]))
    assert part.images == (tmp_path / "b",)
    assert part.targets == (tmp_path / "d",)


# --- commands ------------------------------------------------------------------------------


def test_show_data_says_what_a_data_set_is_and_draws_it(cnnzoo, flowers, tmp_path):
    done = cnnzoo("show-data", f"imagefolder:{flowers}", "--out", str(tmp_path / "s.png"))
    assert done.code == 0, done.err
    assert "RGB, 12x10" in done.out
    assert "aster, rose, tulip" in done.out
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 1000
        assert len(sheet.getcolors(10**6)) > 50
    done = cnnzoo("show-data", "cifar10", "--data-dir", str(tmp_path / "none"))
    assert done.code == 0
    assert "50,000 (not on disk)" in done.out
    assert "--download" in done.err
    done = cnnzoo("show-data", "digit_scenes", "--json", "--out", str(tmp_path / "t.png"))
    assert '"digit_scenes"' in done.out
    done = cnnzoo("show-data", "cifar10", "--data-dir", str(tmp_path), "--out", "x.png")
    assert done.code == 1
    done = cnnzoo("show-data", "digits", "--out", str(tmp_path / "x.jpg"))
    assert done.code == 2


def test_verify_data_says_whether_all_is_sound(cnnzoo, flowers):
    done = cnnzoo("verify-data", f"imagefolder:{flowers}")
    assert (done.code, done.out.strip()) == (0, f"imagefolder:{flowers}: no faults")
    (flowers / "rose" / "1.png").write_bytes(b"")
    done = cnnzoo("verify-data", f"imagefolder:{flowers}", "--json")
    assert done.code == 3
    assert "rose/1.png: an empty file" in done.out
