"""People's own folders of images: layouts, formats, and every file that is not read."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnn_core import load_dataset
from cnn_core.cli.app import main
from cnn_core.data.decoder import Decoder
from cnn_core.data.readers.listing import LeftOut, sorted_files
from cnn_core.data.split_names import split_of, splits_among
from cnn_core.data.streaming import statistics
from cnn_core.data.verify import verify
from cnn_core.errors import DatasetCorruptError, UsageError
from cnn_core.text import counted, natural
from cnn_core.training.prediction import image_files

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)


def put(path, seed=0, mode="RGB", kind=None, size=(8, 6)):
    """Write an image of noise; its format is that of the suffix, or `kind`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").convert(mode).save(path, kind)
    return path


def tree(root, *folders, count=3):
    """Write `count` images into each folder, all of them different."""
    for folder in folders:
        for number in range(count):
            put(
                root / folder / f"{number}.png",
                seed=zlib.crc32(f"{root.name} {folder} {number}".encode()),
            )
    return root


def load(root):
    return load_dataset(f"imagefolder:{root}")


def counts(root):
    return {name: len(split) for name, split in load(root).splits.items()}


@pytest.fixture
def run(capsys, command_leaves_no_trace):
    """Run a command in this process; return its exit code, stdout and stderr."""

    def run(*args):
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


# --- every file is read or accounted for ------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.webp", "WEBP"),
        ("a.avif", "AVIF"),
        ("a.jfif", "JPEG"),
        ("a.jpe", "JPEG"),
        ("a.ppm", "PPM"),
        ("a.jpg", "WEBP"),
        ("a.png", "JPEG"),
        ("a.jpg", "AVIF"),
        ("a", "JPEG"),
        ("a.JPG_large", "JPEG"),
        ("a.mpo", "JPEG"),
        ("a.dib", "BMP"),
    ],
)
def test_images_are_read_by_what_is_in_them(tmp_path, name, kind):
    tree(tmp_path, "cat", "dog")
    path = put(tmp_path / "cat" / name, seed=99, kind=kind)
    dataset = load(tmp_path)
    assert sum(map(len, dataset.splits.values())) == 7
    assert path in {p for split in dataset.splits.values() for p in split.images}
    assert (dataset.faults, verify(f"imagefolder:{tmp_path}")) == ((), [])


LEFT_OUT = {
    "a.heic": (HEIC, r"not read \(.heic\), such as .*magick mogrify -format png \*.heic"),
    "a": (HEIC, "not read"),
    "a.svg": (b"<svg></svg>", r"not read \(.svg\)"),
    "a.psd": (b"8BPS" + bytes(20), r"not read \(.psd\)"),
    "a.nef": (b"II*\0" + bytes(20), r"not read \(.nef\)"),
    "more.zip": (b"PK\x03\x04" + bytes(20), "archives"),
    "more.tar.gz": (b"\x1f\x8b" + bytes(20), "archives"),
    "b": (b"", "empty files"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_may_be_an_image_and_is_not_read_is_a_fault(tmp_path, name, run):
    data, found = LEFT_OUT[name]
    tree(tmp_path, "cat", "dog")
    (tmp_path / "cat" / name).write_bytes(data)
    (fault,) = verify(f"imagefolder:{tmp_path}")
    assert fault.startswith("left out 1: ")
    assert re.search(found, fault)
    assert str(tmp_path / "cat" / name) in fault
    for command in ("show-data", "describe-data"):
        code, _, err = run(command, f"imagefolder:{tmp_path}")
        assert code == 0
        assert fault in err


@pytest.mark.parametrize("name", ["0.jpg.part", "0.png.bak", "0.png~", "0.png.crdownload"])
def test_copies_are_not_trained_on_twice(tmp_path, name):
    tree(tmp_path, "cat", "dog")
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / name)
    (fault,) = verify(f"imagefolder:{tmp_path}")
    assert "unfinished or old copies" in fault
    assert sum(counts(tmp_path).values()) == 6


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("cat/._0.png", "hidden files"),
        ("cat/Thumbs.db", "hidden files"),
        ("cat/.DS_Store", "hidden files"),
        (".DS_Store", "hidden files"),
        ("__MACOSX/cat/._0.png", "hidden files"),
        ("cat/.ipynb_checkpoints/0.png", "hidden files"),
        ("cat/@eaDir/0.png", "hidden files"),
        ("labels.csv", "other files"),
        ("flowers.zip", "other files"),
        ("cat/0.xml", "other files"),
    ],
)
def test_what_is_no_image_is_noted_and_no_fault(tmp_path, name, found):
    tree(tmp_path, "cat", "dog")
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PK\x03\x04" if name.endswith("zip") else b"some text")
    notes = []
    assert verify(f"imagefolder:{tmp_path}", notes=notes) == []
    assert [note for note in notes if found in note and note.startswith("left out 1: ")]
    assert load(tmp_path).spec.classes == ("cat", "dog")


def test_images_beside_the_classes_are_a_fault(tmp_path, run):
    tree(tmp_path, "cat", "dog")
    for number in range(4):
        put(tmp_path / f"{number}.jpg", seed=50 + number)
    (fault,) = verify(f"imagefolder:{tmp_path}")
    assert fault.startswith("left out 4: images beside the class folders")
    code, out, err = run("verify-data", f"imagefolder:{tmp_path}")
    assert (code, out.strip()) == (3, fault)
    assert "1 fault" in err
    code, out, err = run("verify-data", f"imagefolder:{tmp_path}", "--json")
    assert code == 3
    assert "since there is no folder test" in out


def test_links_are_followed_once_and_never_in_a_circle(tmp_path):
    tree(tmp_path / "data", "cat", "dog")
    tree(tmp_path, "elsewhere", count=2)
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "data" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    dataset = load(tmp_path / "data")
    assert sum(map(len, dataset.splits.values())) == 6 + 2
    assert len(dataset.faults) == 2
    assert "links that lead nowhere" in dataset.faults[0]
    assert "links to folders that are read already" in dataset.faults[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_a_fault(tmp_path):
    tree(tmp_path, "cat", "dog", "cat/closed")
    (tmp_path / "cat" / "closed").chmod(0)
    try:
        assert "unreadable files and folders" in load(tmp_path).faults[0]
    finally:
        (tmp_path / "cat" / "closed").chmod(0o700)


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b")
    left_out = LeftOut()
    assert sorted_files(tmp_path, left_out) == []
    assert sum(count for count, _ in left_out.found.values()) == 2


def test_several_pages_are_a_fault(tmp_path):
    tree(tmp_path, "cat", "dog")
    pages = [Image.new("RGB", (6, 8), value) for value in ("red", "blue", "green")]
    pages[0].save(tmp_path / "cat" / "stack.tif", save_all=True, append_images=pages[1:])
    faults = verify(f"imagefolder:{tmp_path}")
    assert faults == [
        "left out: frames or pages after the first, in 1 image, such as "
        f"{tmp_path / 'cat' / 'stack.tif'}"
    ]


def test_prediction_says_which_files_of_a_folder_it_leaves_out(tmp_path, caplog):
    put(tmp_path / "a.webp")
    put(tmp_path / "b", kind="PNG")
    (tmp_path / "c.heic").write_bytes(HEIC)
    assert [path.name for path in image_files([tmp_path])] == ["a.webp", "b"]
    assert "left out 1: images of a format that is not read (.heic)" in caplog.text
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    (tmp_path / "c.heic").write_bytes(HEIC)
    with pytest.raises(UsageError, match=r"no images in this folder\nleft out 1: images of a"):
        list(image_files([tmp_path]))


def test_the_same_image_in_two_classes_is_a_fault(tmp_path):
    tree(tmp_path / "train", "cat", "dog")
    tree(tmp_path / "test", "cat", "dog", count=1)
    (tmp_path / "test" / "cat" / "0.png").unlink()
    put(tmp_path / "test" / "cat" / "0.png", seed=77)
    put(tmp_path / "test" / "dog" / "0.png", seed=78)
    shutil.copy(tmp_path / "train" / "cat" / "0.png", tmp_path / "train" / "dog" / "9.png")
    (fault,) = verify(f"imagefolder:{tmp_path}")
    assert fault.endswith("train/cat/0.png, of another class")


def test_classes_that_differ_in_case_only_are_a_fault(tmp_path):
    tree(tmp_path, "Cat", "cat", "dog")
    assert "classes whose names differ only in case: ['Cat', 'cat']" in load(tmp_path).faults[0]


def test_absent_classes_are_one_line(tmp_path):
    tree(tmp_path / "train", *"abcdef")
    tree(tmp_path / "test", "a", count=1)
    put(tmp_path / "test" / "a" / "0.png", seed=5)
    (fault,) = verify(f"imagefolder:{tmp_path}")
    assert fault == "split 'test': no sample of 5 classes: 'b', 'c', 'd', 'e', 'f'"


# --- layouts ----------------------------------------------------------------------------------

SPLITS = {
    "Kaggle": ("Training", "Testing"),
    "sets": ("train_set", "test_set"),
    "Intel": ("seg_train", "seg_test"),
    "camel case": ("TrainSet", "TestSet"),
    "capitals": ("TRAIN", "TEST"),
    "dev": ("train", "dev"),
    "eval": ("train", "eval"),
    "evaluation": ("training", "evaluation"),
    "years": ("train2017", "val2017"),
    "data": ("training-data", "validation-data"),
    "images": ("images_train", "images_test"),
    "prefix": ("flowers_train", "flowers_valid"),
}


@pytest.mark.parametrize("names", SPLITS.values(), ids=SPLITS)
def test_splits_under_other_names_are_splits(tmp_path, names):
    train, test = names
    tree(tmp_path / train, "a", "b", "c", count=4)
    tree(tmp_path / test, "a", "b", "c", count=2)
    dataset = load(tmp_path)
    assert dataset.spec.classes == ("a", "b", "c")
    assert counts(tmp_path) == {"train": 12, "test": 6}
    assert {path.parts[-3] for path in dataset.split("test").images} == {test}
    assert dataset.faults == ()


def test_three_splits_with_eval(tmp_path):
    for name, count in (("training", 4), ("validation", 2), ("evaluation", 3)):
        tree(tmp_path / name, "a", "b", count=count)
    assert counts(tmp_path) == {"train": 8, "val": 4, "test": 6}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("seg_train", ("train", "seg")),
        ("bullet train", ("train", "bullet")),
        ("Trainer", ("", "trainer")),
        ("contest", ("", "contest")),
        ("value", ("", "value")),
        ("train_test", ("", "")),
        ("testset", ("test", "")),
        ("holdout", ("test", "")),
        ("", ("", "")),
        ("火车", ("", "火车")),
    ],
)
def test_words_of_splits(name, expected):
    assert split_of(name) == expected


def test_a_name_with_other_words_needs_a_partner():
    assert splits_among(["bullet train", "bus", "tram"]) == {}
    assert splits_among(["x_train", "y_test"]) == {}
    assert splits_among(["x_train", "x_test"]) == {"train": ["x_train"], "test": ["x_test"]}


@pytest.mark.parametrize(
    "classes", [("bus", "car", "train"), ("quiz", "test"), ("test", "urine"), ("Val", "Bob")]
)
def test_a_class_may_have_the_name_of_a_split(tmp_path, classes):
    dataset = load(tree(tmp_path, *classes))
    assert dataset.spec.classes == tuple(sorted(classes))
    assert any("taken as a class" in note for note in dataset.notes)


def test_the_way_out_for_such_a_class_works(tmp_path):
    tree(tmp_path / "train", "bus", "car", "train")
    assert load(tmp_path).spec.classes == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        (("bus", "car", "train/new", "train/old"), "train has class folders .*, but bus, car"),
        (("train", "test"), "train, test hold images, but no folder for each class"),
        (("test/a", "test/b"), "has test, but no folder 'train'"),
        (("a", "b", "test/a", "test/b"), "no folder 'train', only a, b"),
        (("train/a", "train/b", "test/a", "test/c"), "class 'c' is not in the training split"),
        (("train/a", "train/b", "test/c", "test/d"), "class 'c' is not in the training split"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), "has the splits .* in a class"),
        (("train/a", "train/b", "test/a", "testing/a"), "a second test split"),
        (("flowers/a", "flowers/b"), "1 folder of images"),
    ],
)
def test_an_ambiguous_layout_is_an_error_that_says_how_to_write_it(tmp_path, folders, problem):
    with pytest.raises(DatasetCorruptError, match=problem) as caught:
        load(tree(tmp_path, *folders))
    assert str(tmp_path) in str(caught.value)
    assert verify(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    "flat", ["test", "val", "Test", "test/unknown", "test/images", "test/test"]
)
def test_a_folder_of_images_without_labels_is_left_out_and_said(tmp_path, flat, run):
    tree(tmp_path / "train", "cat", "dog", count=5)
    tree(tmp_path, flat, count=6)
    dataset = load(tmp_path)
    assert counts(tmp_path) == {"train": 8, "test": 2}
    folder = tmp_path / flat.partition("/")[0]
    assert any(f"cnnzoo predict RUN {folder}" in note for note in dataset.notes)
    assert dataset.faults[0].startswith("left out 6: images without class folders")
    assert verify(f"imagefolder:{tmp_path}") == list(dataset.faults)
    code, _, err = run("show-data", f"imagefolder:{tmp_path}")
    assert code == 0
    assert "left out 6" in err


def test_an_empty_test_folder_is_none(tmp_path):
    tree(tmp_path / "train", "cat", "dog", count=5)
    (tmp_path / "test").mkdir()
    dataset = load(tmp_path)
    assert counts(tmp_path) == {"train": 8, "test": 2}
    assert any("empty, so there is no test split" in note for note in dataset.notes)


def test_a_split_in_a_folder_of_its_own_name_and_folders_beside(tmp_path):
    tree(tmp_path / "seg_train/seg_train", "a", "b", count=4)
    tree(tmp_path / "seg_test/seg_test", "a", "b", count=2)
    tree(tmp_path, "seg_pred/seg_pred", count=5)
    dataset = load(tmp_path)
    assert counts(tmp_path) == {"train": 8, "test": 4}
    assert dataset.faults[0].startswith("left out 5: images beside the folders of the splits")


def test_splits_under_unknown_names_are_doubted(tmp_path):
    tree(tmp_path / "part1", "a", "b")
    tree(tmp_path / "part2", "a", "b")
    (fault,) = verify(f"imagefolder:{tmp_path}")
    assert "part1, part2 are taken as classes, but all have the folders a, b" in fault


def test_folders_in_a_class_are_noted(tmp_path):
    tree(tmp_path, "cat/indoors", "cat/outdoors", "dog")
    dataset = load(tmp_path)
    assert dataset.spec.classes == ("cat", "dog")
    assert any("1 of 2 classes has folders in it" in note for note in dataset.notes)


def test_validation_without_a_test_folder_has_both_names(tmp_path, run):
    tree(tmp_path / "train", "a", "b", count=4)
    tree(tmp_path / "valid", "a", "b", count=2)
    dataset = load(tmp_path)
    for name in ("val", "valid", "validation", "dev", "test"):
        assert len(dataset.split(name)) == 4
        assert run("show-data", f"imagefolder:{tmp_path}", "--split", name)[0] == 0
    assert any("used as the split 'test'" in note for note in dataset.notes)
    for name in ("nonsense", "tset", "flowers_val"):
        code, _, err = run("show-data", f"imagefolder:{tmp_path}", "--split", name)
        assert code == 2
        assert f"no split '{name}'" in err
    with pytest.raises(UsageError, match="no split 'val'"):
        load_dataset("digits").split("val")


def test_a_missing_folder_has_one_exit_code_everywhere(tmp_path, run):
    data = f"imagefolder:{tmp_path / 'none'}"
    for command in ("show-data", "verify-data"):
        assert run(command, data)[0] == 2
    assert run("train", "lenet5", "--data", data, "--out", tmp_path / "out")[0] == 2
    assert not (tmp_path / "out").exists()


# --- the order of classes ---------------------------------------------------------------------


def test_two_comes_before_ten(tmp_path):
    names = ["10", "2", "1", "a10", "a9", "a", "02"]
    assert sorted(names, key=natural) == ["1", "02", "2", "10", "a", "a9", "a10"]
    dataset = load(tree(tmp_path, "10", "9", "1"))
    assert dataset.spec.classes == ("1", "9", "10")
    for split in dataset.splits.values():
        found = [dataset.spec.classes[n] for n in split.targets.tolist()]
        assert found == [path.parent.name for path in split.images]
        assert split.targets.tolist() == sorted(split.targets.tolist())


def test_another_order_keeps_every_split_as_it_was(tmp_path):
    dataset = load(tree(tmp_path, "10", "9", "1", count=7))
    earlier = dataset.with_class_order(("1", "10", "9"))
    assert earlier.fingerprint() != dataset.fingerprint()
    for name, split in dataset.splits.items():
        assert set(earlier.split(name).images) == set(split.images)
    assert earlier.with_class_order(dataset.spec.classes).fingerprint() == dataset.fingerprint()


def test_one_is_counted_as_one():
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert counted(1, "class", "classes") == "1 class"
    assert counted(1234, "of 2,000 is", "of 2,000 are") == "1,234 of 2,000 are"


# --- values -----------------------------------------------------------------------------------


def test_a_range_may_be_declared_in_the_folder(tmp_path):
    for name, value in (("dark", 0.25), ("light", 0.75)):
        for number in range(3):
            path = tmp_path / name / f"{number}.tif"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 4), value + number / 100, np.float32)).save(path)
    faults = verify(f"imagefolder:{tmp_path}")
    assert len(faults) == 6
    assert all("of an undeclared range" in fault for fault in faults)
    (tmp_path / "dataset.toml").write_text("value_range = [0, 1]\n")
    assert verify(f"imagefolder:{tmp_path}") == []
    dataset = load(tmp_path)
    assert dataset.spec.image == (1, 4, 4)
    assert any("0 to 1 becomes 0 to 255" in note for note in dataset.notes)
    image, _ = Decoder(dataset.split("train"), None)[0]
    assert 64 <= int(image[0, 0, 0]) <= 70
    for text, problem in (
        ("value_range = 3", "dataset.toml"),
        ("value_rang = [0, 1]", "did you mean 'value_range'"),
        ("alpha_background = 'pink'", "one of white, black, drop"),
        ("value_range = [", "not TOML"),
    ):
        (tmp_path / "dataset.toml").write_text(text)
        with pytest.raises(UsageError, match=problem):
            load(tmp_path)


def test_sixteen_bits_are_said_and_arrays_may_have_many_channels(tmp_path):
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        for number in range(3):
            (tmp_path / "npy" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "png" / name).mkdir(parents=True, exist_ok=True)
            values = random.integers(0, 65536, (6, 8, 5), dtype=np.uint16)
            np.save(tmp_path / "npy" / name / f"{number}.npy", values)
            Image.fromarray(values[..., 0]).save(tmp_path / "png" / name / f"{number}.png")
    assert load(tmp_path / "npy").spec.image == (5, 6, 8)
    assert load(tmp_path / "png").spec.image == (1, 6, 8)
    for kind in ("npy", "png"):
        (note,) = (n for n in load(tmp_path / kind).notes if "more than 8 bits" in n)
        assert "0 to 65535 becomes 0 to 255 (value_range)" in note
        assert verify(f"imagefolder:{tmp_path / kind}") == []
    np.save(tmp_path / "npy" / "a" / "9.npy", values[..., :2])
    with pytest.raises(DatasetCorruptError, match=r"5 channels, but .*npy has 2"):
        load(tmp_path / "npy")


@pytest.mark.parametrize("bits", [8, 10, 12, 15, 16])
def test_values_of_fewer_bits_than_the_file_has_are_a_fault(tmp_path, bits):
    for name in ("a", "b"):
        for number in range(3):
            path = tmp_path / name / f"{number}.tif"
            path.parent.mkdir(exist_ok=True)
            random = np.random.default_rng(number + 3 * (name == "a"))
            Image.fromarray(random.integers(0, 2**bits, (9, 9), dtype=np.uint16)).save(path)
    faults = verify(f"imagefolder:{tmp_path}")
    assert len(faults) == (bits < 14)
    if faults:
        assert f"value_range = [0, {2**bits - 1}] may be meant" in faults[0]
        (tmp_path / "dataset.toml").write_text(f"value_range = [0, {2**bits - 1}]")
        assert verify(f"imagefolder:{tmp_path}") == []


def test_transparent_images_are_said(tmp_path):
    for name in ("a", "b"):
        for number in range(3):
            put(tmp_path / name / f"{number}.png", seed=number + 9 * (name == "a"), mode="RGBA")
    dataset = load(tmp_path)
    assert any("6 of 6 images may have transparent parts" in note for note in dataset.notes)
    assert dataset.spec.image[0] == 3
    assert verify(f"imagefolder:{tmp_path}") == []


@pytest.mark.parametrize("case", ["blue is 0", "all black", "nearly constant"])
def test_a_constant_channel_is_not_scaled_up_and_said(tmp_path, case):
    for name in ("a", "b"):
        for number in range(3):
            path = put(tmp_path / name / f"{number}.png", seed=number + 9 * (name == "a"))
            pixels = np.array(Image.open(path))
            pixels[..., 2] = 0
            if case == "nearly constant":
                pixels[0, 0, 2] = 2
            Image.fromarray(pixels * (case != "all black")).save(path)
    mean, std = statistics(load(tmp_path).split("train"))
    assert std[2] == 1
    assert (std[0] == 1) == (case == "all black")
    assert mean[2] < 0.001
    notes = []
    verify(f"imagefolder:{tmp_path}", notes=notes)
    assert any("channel 3 is 0 in every pixel" in n for n in notes) == (case != "nearly constant")
    assert any("have a single colour" in note for note in notes) == (case == "all black")


# --- the documentation --------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "own-images.md"
TREE = re.compile(
    r"```text\n(.*?)```\n\n(?:Read as: classes (.*?); (.*?)\.|Refused: (.*?)\.)\n", re.S
)
TREES = TREE.findall(PAGE.read_text("utf-8"))


def build(text, root):
    """Write the files of a tree; return its folder."""
    parts = {}
    for number, line in enumerate(text.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        parts[depth] = line.strip()
        if not line.endswith("/"):
            put(root.joinpath(*(parts[level] for level in range(depth + 1))), seed=number)
    return root / parts[0]


@pytest.mark.parametrize("number", range(len(TREES)))
def test_every_layout_of_the_page_is_read_as_it_says(tmp_path, number):
    text, classes, splits, refused = TREES[number]
    root = build(text, tmp_path)
    if refused:
        with pytest.raises(DatasetCorruptError, match=refused):
            load(root)
        return
    dataset = load(root)
    assert ", ".join(dataset.spec.classes) == classes
    assert ", ".join(n for n in ("train", "val", "test") if n in dataset.splits) == splits


def test_the_page_has_layouts():
    assert len(TREES) == PAGE.read_text("utf-8").count("```text")
    assert len(TREES) >= 9


# --- the home folder --------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_wherever_a_path_is_taken(tmp_path, monkeypatch, run):
    from cnn_core import train
    from cnn_core.data.fetching.cache import cache_dir
    from cnn_core.runs.recipe import Recipe
    from cnn_core.training import Run, Trained

    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    tree(home / "x", "a", "b", count=4)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    assert run("show-data", "imagefolder:~/x", "--out=~/sheet.png")[0] == 0
    assert run("verify-data", "imagefolder:~/x")[0] == 0
    assert (home / "sheet.png").is_file()
    options = {"epochs": 1, "batch_size": 4, "progress": False}
    first = train("lenet5_modern", "imagefolder:~/x", out="~/r", **options)
    assert first.path == home / "r"
    train("lenet5_modern", "imagefolder:~/x", out="~/s", weights="~/r", **options)
    assert Run.open("~/r").recipe.data == f"imagefolder:{home / 'x'}"
    assert Trained("~/s").path == home / "s"
    assert run("evaluate", "~/s")[0] == 0
    assert run("predict", "~/s", "~/x")[0] == 0
    assert run("export", "~/s", "--out=~/e.pt2")[0] == 0
    monkeypatch.setenv("CNNZOO_CACHE", "~/c")
    assert cache_dir() == home / "c"
    assert Recipe(model="m", data="d", weights="~/w.pth").weights == str(home / "w.pth")
    assert Recipe(model="m", data="imagefolder:~nobody-of-this-name/x").data.endswith("name/x")
    assert list(here.iterdir()) == []
    assert not (Path(home) / "~").exists()
