"""Folders as archives, cameras and programs leave them: copies, ranges, orientations, alpha."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from cnn_core import load_dataset
from cnn_core.data.headers import image_facts
from cnn_core.data.images import read_image
from cnn_core.data.mask_image import exif_orientation
from cnn_core.data.pixels import Reading
from cnn_core.data.readers.copies import source_of
from cnn_core.data.verify import verify
from cnn_core.errors import DatasetCorruptError

ORIENTATION = 274


def noise(seed, size=(8, 12), channels=3, top=255):
    shape = (*size, channels) if channels > 1 else size
    values = np.random.default_rng(seed).integers(0, top + 1, shape)
    values.flat[0] = top
    return values.astype(np.uint8 if top < 256 else np.uint16)


def put(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def tree(root, *folders, count=4, suffix="png"):
    for number, folder in enumerate(folders):
        for n in range(count):
            put(root / folder / f"{n}.{suffix}", noise(100 * number + n))
    return root


def load(root):
    return load_dataset(f"imagefolder:{root}")


def checked(root):
    """Return the faults and the notes of verify-data."""
    notes = []
    return verify(f"imagefolder:{root}", notes=notes), notes


# --- ordinary folders cost no line ---------------------------------------------------------------


def test_digits_in_folders_cost_no_line(tmp_path):
    digits = load_dataset("digits").split("train")
    for digit in range(10):
        for n, image in enumerate(digits.images[digits.targets == digit][:6]):
            put(tmp_path / str(digit) / f"{n}.png", image[0].numpy())
    assert checked(tmp_path) == (
        [],
        ["test: a fifth of each class (10 images), since there is no folder test"],
    )


def test_photographs_with_exif_cost_one_line(tmp_path):
    tree(tmp_path, "cat", "dog", suffix="jpg")
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    put(tmp_path / "cat" / "turned.jpg", noise(7, (12, 8)), exif=exif)
    exif = Image.Exif()
    exif[ORIENTATION] = 0  # as some programs write it
    put(tmp_path / "cat" / "zero.jpg", noise(8), exif=exif)
    faults, notes = checked(tmp_path)
    assert faults == []
    assert [line for line in notes if "EXIF" in line] == [
        "1 of 10 images is turned upright, as its EXIF data say"
    ]


# --- a copy of the dataset inside itself, and a folder around it ---------------------------------


@pytest.mark.parametrize(
    ("classes", "copy"),
    [
        (("rose", "tulip"), "flowers"),
        (("rose", "tulip", "iris"), "flowers"),
        (("rose", "tulip"), "new/flowers"),
        (("train/rose", "train/tulip", "test/rose", "test/tulip"), "train/train"),
    ],
)
def test_a_copy_of_the_dataset_inside_itself_is_refused_by_name(tmp_path, classes, copy):
    root = tree(tmp_path / "flowers", *classes)
    for name in classes:
        if name.startswith("test"):
            continue
        shutil.copytree(root / name, root / copy / name.rpartition("/")[2].capitalize())
    with pytest.raises(DatasetCorruptError, match="a copy of the dataset inside itself") as caught:
        load(root)
    assert str(root / copy) in str(caught.value)
    assert "delete it, or move it away" in str(caught.value)
    shutil.rmtree(root / copy)
    if "/" in copy and copy != "train/train":
        shutil.rmtree((root / copy).parent)
    assert checked(root)[0] == []


def test_a_folder_that_is_named_like_another_class_is_noted(tmp_path):
    root = tree(tmp_path, "animal/cat", "animal/other", "plant/rose", "plant/other", "other")
    faults, notes = checked(root)
    assert faults == []
    (line,) = (line for line in notes if "with the name of another class" in line)
    assert line.startswith("2 folders in a class with the name of another class, such as ")
    assert str(root / "animal" / "other") in line


@pytest.mark.parametrize("beside", ["", "__MACOSX", ".git", "other"])
def test_a_folder_around_the_splits_is_named(tmp_path, beside):
    inside = tmp_path / "archive" / "dataset"
    tree(inside, "train/cat", "train/dog", "test/cat", "test/dog")
    if beside:
        tree(tmp_path / "archive", beside)
    with pytest.raises(DatasetCorruptError, match="splits train, test, with folders") as caught:
        load(tmp_path / "archive")
    assert f"imagefolder:{inside}" in str(caught.value)
    assert len(load(inside).splits) == 2
    tree(tmp_path / "pets", "cat/train", "cat/test", "dog/train", "dog/test")
    with pytest.raises(DatasetCorruptError, match=r"in a class\nwrite .*/train/cat/FILE"):
        load(tmp_path / "pets")


# --- copies of one image -------------------------------------------------------------------------

COPIES = {
    "Roboflow": "IMG_{n}_jpg.rf.{k:032x}",
    "Roboflow, letters": "IMG {n}_png.rf.Ab{k}Zx0Qw",
    "Augmentor": "cat_original_IMG{n}.jpg_{k:08x}-1111-2222-3333-444444444444",
    "numbered": "IMG_{n}_aug_{k}",
    "Keras": "aug_{n}_{k}",
    "turned": "IMG_{n}_rot{t}",
    "Windows": "IMG_{n} - Copy ({k})",
}


@pytest.mark.parametrize("name", COPIES.values(), ids=COPIES)
def test_copies_of_one_image_stay_on_one_side(tmp_path, name):
    for number, folder in enumerate(("cat", "dog")):
        for n in range(6):
            for k in range(3):
                text = name.format(n=n, k=k, t=90 * k + 90)
                put(tmp_path / folder / f"{text}.png", noise(100 * number + 10 * n + k))
    dataset = load(tmp_path)
    parts = {"test": dataset.splits["test"]}
    parts["train"], parts["validation"] = dataset.hold_out(0.2, seed=3)
    where = {}
    for part, files in parts.items():
        assert len(files)
        for path in files.images:
            key = (path.parent.name, source_of(path.stem))
            assert where.setdefault(key, part) == part
    assert len(where) == 12
    (line,) = (line for line in dataset.notes if "copies of 12" in line)
    assert line.startswith("36 images are copies of 12, by names such as ")


def test_a_number_in_brackets_is_a_copy_beside_the_name_without_it(tmp_path):
    for number, folder in enumerate(("cat", "dog")):
        for n in range(6):
            for k, name in enumerate((f"{n}.png", f"{n} (1).png", f"{n} - Copy.png")):
                put(tmp_path / folder / name, noise(100 * number + 10 * n + k))
    dataset = load(tmp_path)
    sides = [
        {(p.parent.name, p.stem[0]) for p in split.images} for split in dataset.splits.values()
    ]
    assert not sides[0] & sides[1]
    assert any("36 images are copies of 12" in line for line in dataset.notes)


def test_tables_and_masks_keep_copies_together_too(tmp_path):
    rows = ""
    for n in range(10):
        for k in range(2):
            name = f"x{n}_jpg.rf.{k}{n}abcdef"
            put(tmp_path / "images" / f"{name}.png", noise(10 * n + k))
            mask = np.zeros((8, 12), np.uint8)
            mask[2:5, 2:6] = 1
            put(tmp_path / "masks" / f"{name}.png", mask)
            rows += f"images/{name}.png,{'ab'[n % 2]}\n"
    (tmp_path / "labels.csv").write_text(f"path,label\n{rows}")
    for data in (f"csv:{tmp_path / 'labels.csv'}", f"maskfolder:{tmp_path}"):
        dataset = load_dataset(data)
        sides = [{source_of(p.stem) for p in s.images} for s in dataset.splits.values()]
        assert not sides[0] & sides[1]
        assert any("20 images are copies of 10" in line for line in dataset.notes)


def test_copies_in_several_splits_are_noted(tmp_path):
    for split, k in (("train", 0), ("test", 1)):
        for folder in ("cat", "dog"):
            for n in range(4):
                path = tmp_path / split / folder / f"{n}_jpg.rf.{k}aaaaaaa{n}.png"
                put(path, noise(1000 * k + 10 * n + len(folder) + (folder == "dog")))
    faults, notes = checked(tmp_path)
    assert faults == []
    (line,) = (line for line in notes if "copies in several splits" in line)
    assert line.startswith("8 images have copies in several splits, by their names, such as 0 in")


@pytest.mark.parametrize(
    "names",
    [
        [f"black_rot_{n}" for n in (1, 2, 90, 180)],
        [f"flower ({n})" for n in range(4)],
        ["mirror", "carrot", "original", "august"],
        [f"robot_{n}_front" for n in range(4)],
    ],
)
def test_other_names_are_not_copies(tmp_path, names):
    for number, folder in enumerate(("a", "b")):
        for n, name in enumerate(names):
            put(tmp_path / folder / f"{name}.png", noise(50 * number + n))
    dataset = load(tmp_path)
    assert dataset.splits["train"].groups is None
    assert not any("copies" in line for line in dataset.notes)


# --- ranges of 16-bit images ---------------------------------------------------------------------


def deep(root, tops, count=5, suffix="png"):
    """Write 16-bit images with a highest value for each folder."""
    for number, (folder, top) in enumerate(tops.items()):
        for n in range(count):
            path = root / folder / f"{n}.{suffix}"
            array = noise(100 * number + n, channels=1, top=max(top, 256)).clip(0, top)
            if suffix == "npy":
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array.astype(np.uint16))
            else:
                put(path, array.astype(np.uint16))
    return root


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
@pytest.mark.parametrize(
    ("tops", "words"),
    [
        ({"A": 65535, "B": 4095}, r"65535 in class 'A', but only up to 4095 in class 'B'"),
        ({"A": 65535, "B": 255, "C": 1023}, r"255 in class 'B', 1023 in class 'C'"),
        ({"A": 4080, "B": 1020}, r"4080 in class 'A', but only up to 1020 in class 'B'"),
        (
            {"train/A": 65535, "train/B": 65535, "test/A": 4095, "test/B": 4095},
            r"only up to 4095 in split 'test', class 'A', 4095 in split 'test', class 'B'",
        ),
    ],
)
def test_classes_and_splits_of_different_ranges_are_a_fault(tmp_path, suffix, tops, words):
    faults, _ = checked(deep(tmp_path, tops, suffix=suffix))
    found = [line for line in faults if line.startswith("images of different ranges: ")]
    assert len(found) == 1
    assert words in found[0]
    assert found[0] in load(tmp_path).faults  # training and show-data say it, too


def test_files_of_different_ranges_in_all_classes_are_a_fault(tmp_path):
    for number, folder in enumerate(("A", "B")):
        for n in range(8):
            top = 4095 if n % 2 else 60000 + n
            put(tmp_path / folder / f"{n}.png", noise(100 * number + n, channels=1, top=top))
    (fault,) = checked(tmp_path)[0]
    assert fault.startswith("images of two ranges: values up to 4095 in 8 images, such as ")


def test_dark_scenes_among_bright_ones_are_only_noted(tmp_path):
    for number, folder in enumerate(("A", "B")):
        for n in range(8):
            top = 2000 + n if n % 2 else 60000 + n
            put(tmp_path / folder / f"{n}.png", noise(100 * number + n, channels=1, top=top))
    faults, notes = checked(tmp_path)
    assert faults == []
    assert any("images of two ranges" in line for line in notes)


def test_one_range_costs_no_line_and_a_declared_one_only_a_note(tmp_path):
    root = deep(tmp_path / "even", {"A": 65535, "B": 40000, "C": 20000})
    assert checked(root)[0] == []
    root = deep(tmp_path / "dark", {"A": 65535, "B": 3000})
    (root / "dataset.toml").write_text("value_range = [0, 65535]")
    faults, notes = checked(root)
    assert faults == []
    assert any("but only up to 3000 in class 'B'" in line for line in notes)
    read = load(root).read_as(Reading(value_range=(0, 70000)))
    assert any("0 to 70000 becomes 0 to 255" in line for line in read.notes)
    assert not any("0 to 65535 becomes" in line for line in read.notes)


# --- orientation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_a_tiff_says_that_it_is_turned(tmp_path, orientation, compression):
    for channels, top in ((3, 255), (1, 255), (1, 65535)):
        array = noise(orientation, channels=channels, top=top)
        tags = {ORIENTATION: orientation}
        path = put(tmp_path / "a.tif", array, compression=compression, tiffinfo=tags)
        facts = image_facts(path)
        assert facts.turned == (orientation > 1)
        assert exif_orientation(path) == orientation
        assert facts.size == read_image(path, channels).shape[1:]
        assert facts.size == ((12, 8) if orientation > 4 else (8, 12))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "avif"])
def test_turned_images_of_every_format_are_counted(tmp_path, kind):
    tree(tmp_path, "a", "b")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    put(tmp_path / "a" / f"turned.{kind}", noise(9, (12, 8)), exif=exif)
    assert "1 of 9 images is turned upright, as its EXIF data say" in load(tmp_path).notes


def test_an_orientation_in_xmp_turns_a_tiff_and_its_size(tmp_path):
    xmp = b'<x><rdf:Description tiff:Orientation="6"/></x>'
    path = put(tmp_path / "a.tif", noise(1), tiffinfo={700: xmp})
    assert image_facts(path).size == read_image(path, 3).shape[1:] == (12, 8)
    assert image_facts(path).turned


# --- transparency --------------------------------------------------------------------------------


def clear(seed, mode="RGBA", alpha=0, visible=0):
    """An image of noise whose alpha is 0 but for some pixels."""
    array = np.dstack([noise(seed, (20, 20)), np.full((20, 20), alpha, np.uint8)])
    array[0, :visible, 3] = 255
    return Image.fromarray(array).convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize(("alpha", "visible"), [(0, 0), (1, 0), (0, 3)])
def test_images_that_are_wholly_transparent_are_a_fault(tmp_path, mode, alpha, visible):
    for number, folder in enumerate(("a", "b")):
        for n in range(4):
            path = tmp_path / folder / f"{n}.png"
            path.parent.mkdir(exist_ok=True)
            clear(10 * number + n, mode, alpha, visible).save(path)
    (fault,) = checked(tmp_path)[0]
    assert fault.startswith("8 of 8 images are transparent nearly everywhere, such as ")
    assert 'alpha_background = "drop" shows the colours' in fault
    assert fault in load(tmp_path).faults
    shown = load(tmp_path).read_as(Reading(alpha_background="drop"))
    assert shown.faults == ()
    assert any("show their hidden colours" in line for line in shown.notes)
    assert not any("shown on white" in line for line in shown.notes)
    (tmp_path / "dataset.toml").write_text('alpha_background = "drop"')
    assert checked(tmp_path)[0] == []


def test_one_transparent_image_among_many_is_found_by_verify(tmp_path):
    for number in range(60):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        clear(number, alpha=0 if number == 31 else 200).save(path)
    (fault,) = checked(tmp_path)[0]
    assert fault.startswith("1 of 60 images is transparent")
    assert str(tmp_path / "b" / "31.png") in fault


def test_icons_and_cut_out_objects_are_no_fault(tmp_path):
    for number, folder in enumerate(("a", "b")):
        for n in range(4):
            array = np.zeros((20, 20, 4), np.uint8)
            array[4:8, 4:9] = (*(40 * n + 10 * number + np.arange(3)), 255)
            put(tmp_path / folder / f"{n}.png", array)
    assert checked(tmp_path)[0] == []
