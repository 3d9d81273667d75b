"""Labels and folders that can be misread: each is refused, or said in a line."""

from __future__ import annotations

import shutil
import unicodedata

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cnn_core import load_dataset
from cnn_core.cli.app import app
from cnn_core.data.verify import verify
from cnn_core.errors import DatasetCorruptError, UsageError


def put(path, seed=0, size=(6, 8), **options):
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def tree(root, *folders, count=4):
    """Write different images 0.png, 1.png, … into each folder."""
    for number, folder in enumerate(folders):
        for n in range(count):
            put(root / folder / f"{n}.png", seed=100 * number + n)
    return root


@pytest.fixture
def table(tmp_path):
    """Return a function that loads a table of 0.png, 1.png, … with these labels."""

    def load(labels, choice="", header="path,label"):
        for number in range(len(labels)):
            put(tmp_path / f"{number}.png", seed=number)
        rows = "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))
        (tmp_path / "labels.csv").write_text(f"{header}\n{rows}")
        return load_dataset(f"csv:{tmp_path / 'labels.csv'}{choice}")

    return load


# --- several labels in a cell -----------------------------------------------------------------

LISTS = ["healthy", "scab", "scab{}frog{}rust", "rust", "rust{}frog", "scab{}frog"] * 3
MARKS = {"space": " ", "comma": ", ", "semicolon": ";"}


def cells(mark):
    return [f'"{cell.replace("{}", mark)}"' for cell in LISTS]


@pytest.mark.parametrize(("name", "mark"), MARKS.items())
def test_cells_that_look_like_lists_are_said_and_can_be_split(table, name, mark):
    dataset = table(cells(mark))
    assert (dataset.spec.task, len(dataset.spec.classes)) == ("classification", 6)
    assert f"csv:FILE#separator={name}" in dataset.faults[0]
    with pytest.raises(DatasetCorruptError, match=rf"too few(.|\n)*separator={name}"):
        table(cells(mark)[:6])
    assert table(cells(mark), "#task=classification").faults == ()
    for choice in (f"#separator={name}", "#task=multilabel"):
        split = table(cells(mark), choice)
        assert split.spec.task == "multilabel"
        assert split.spec.classes == ("frog", "healthy", "rust", "scab")
        assert split.faults == ()
    assert any("#separator=pipe" in line for line in split.notes)


def test_names_with_spaces_are_names(table):
    names = ["black cat", "black dog", "white cat", "white dog"] * 4
    assert table(names).faults == ()
    with pytest.raises(DatasetCorruptError, match=r"some hold ' '(.|\n)*#separator=space"):
        table(names, "#task=multilabel")
    assert len(table(names, "#separator=pipe").spec.classes) == 4
    assert table(["cat", "dog"] * 6, "#task=multilabel").spec.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("separator=tab", "separator = 'tab'"),
        ("separator=space,task=classification", "multilabel"),
        ("separator=space,threshold=1", "multilabel"),
    ],
)
def test_a_separator_that_does_not_apply_is_an_error(table, choice, message):
    with pytest.raises(UsageError, match=message):
        table(["a", "b"] * 4, f"#{choice}")


def test_a_name_with_a_comma_is_quoted(table, tmp_path):
    table(['"cat, domestic"', "dog"] * 4)
    result = CliRunner().invoke(app, ["show-data", f"csv:{tmp_path / 'labels.csv'}"])
    assert 'classes   "cat, domestic", dog\n' in result.output


def test_a_small_table_is_told_of_a_column(table):
    with pytest.raises(DatasetCorruptError, match="column 'split'"):
        table(["a", "b"])


# --- links to folders above -------------------------------------------------------------------


@pytest.mark.parametrize("target", ["..", "../..", "../../flowers"])
def test_a_link_to_a_folder_above_reads_nothing_twice(tmp_path, target):
    root = tree(tmp_path / "flowers", "cat", "dog")
    (root / "cat" / "loop").symlink_to(target)
    dataset = load_dataset(f"imagefolder:{root}")
    images = [path for split in dataset.splits.values() for path in split.images]
    assert len(images) == 8
    assert not any("loop" in path.parts for path in images)
    assert any("that contain this one" in line for line in dataset.faults)


def test_a_linked_class_does_not_lead_back(tmp_path):
    root = tree(tmp_path / "flowers", "cat", "dog")
    shutil.move(root / "cat", tmp_path / "elsewhere")
    (root / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(root)
    dataset = load_dataset(f"imagefolder:{root}")
    assert sum(map(len, dataset.splits.values())) == 8


# --- no label, and names of splits ------------------------------------------------------------


@pytest.mark.parametrize("empty", ["nan", "NaN", "NA", "None", "null"])
def test_what_programs_write_for_an_empty_cell_is_no_label(table, empty):
    with pytest.raises(DatasetCorruptError, match=rf"csv:14: no label in 'label' but '{empty}'"):
        table([*["cat", "dog"] * 6, empty])
    dataset = table([*["cat|dog", "dog"] * 6, empty])
    assert dataset.spec.classes == ("cat", "dog")
    assert "1 image has no label: it belongs to no class" in dataset.notes


def test_holdout_is_said_to_be_the_test_split(table, tmp_path):
    splits = ["train", "train", "train", "holdout"]
    labels = [f"{'ab'[n % 2]},{splits[n // 2 % 4]}" for n in range(16)]
    dataset = table(labels, header="path,label,split")
    assert len(dataset.split("test")) == 4
    assert "'split': 'holdout' is taken as the split 'test'" in dataset.notes
    with pytest.raises(DatasetCorruptError, match="holdout; another column"):
        table([label.replace("holdout", "x") for label in labels], header="path,label,split")
    root = tree(tmp_path / "own", "train/a", "train/b", "holdout/a", "holdout/b")
    dataset = load_dataset(f"imagefolder:{root}")
    assert len(dataset.split("test")) == 8
    assert f"{root / 'holdout'}: taken as the split 'test'" in dataset.notes


# --- files of a table -------------------------------------------------------------------------


@pytest.fixture
def sites(tmp_path):
    """Return a function that loads rows of paths; there are siteA/000.png to 005.png and siteB."""
    tree(tmp_path / "images", "siteA", "siteB", count=6)

    def load(paths):
        rows = "".join(f"{path},{'ab'[n % 2]}\n" for n, path in enumerate(paths))
        (tmp_path / "images" / "labels.csv").write_text(f"path,label\n{rows}")
        return load_dataset(f"csv:{tmp_path / 'images' / 'labels.csv'}")

    return load


def found(dataset):
    return {f"{p.parent.name}/{p.name}" for split in dataset.splits.values() for p in split.images}


def test_a_file_of_another_folder_is_not_taken(sites, tmp_path):
    (tmp_path / "images" / "siteB" / "3.png").unlink()
    paths = [f"siteB/{n}.png" for n in range(6)]
    with pytest.raises(DatasetCorruptError, match=r"csv:5: siteB/3.png: no such file"):
        sites(paths)


@pytest.mark.parametrize(
    "start", ["siteA/", "C:\\data\\images\\siteA\\", "/mnt/x/siteA/", "images/siteA/"]
)
@pytest.mark.parametrize("end", ["", ".png"])
def test_folders_choose_among_files_of_one_name(sites, start, end):
    dataset = sites([f"{start}{n}{end}" for n in [*range(6), 0]][:6])
    assert found(dataset) == {f"siteA/{n}.png" for n in range(6)}


def test_a_name_that_is_in_two_folders_is_an_error_that_says_so(sites):
    with pytest.raises(DatasetCorruptError) as caught:
        sites([f"{n}.png" for n in range(6)])
    assert "0.png, 1.png, 2.png: found in siteA and siteB (6 rows)" in str(caught.value)
    assert "give the folder, such as siteA/0.png" in str(caught.value)


def test_images_found_by_name_are_counted_not_rows(sites):
    dataset = sites([f"C:\\siteA\\{n}.png" for n in (0, 1, 2, 3, 4, 5, 0, 1, 0)][:8])
    assert "6 images were found by their names in siteA" in dataset.notes


# --- copies, names and how images are read ----------------------------------------------------


def copies(root):
    return [line for line in verify(f"imagefolder:{root}") if " is also " in line]


@pytest.mark.parametrize("where", ["test/dog/copy.bmp", "train/dog/copy.bmp", "test/cat/copy.tif"])
def test_the_same_pixels_in_another_format_are_a_fault(tmp_path, where):
    tree(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    assert copies(tmp_path) == []
    original = tmp_path / "train" / "cat" / "0.png"
    Image.open(original).save(tmp_path / where)
    (fault,) = copies(tmp_path)
    assert str(tmp_path / where) in fault
    assert str(original) in fault


def test_images_of_one_colour_are_not_copies(tmp_path):
    tree(tmp_path, "train/cat", "train/dog")
    for name in ("cat/plain.bmp", "dog/plain.png"):
        Image.new("RGB", (8, 6), (9, 9, 9)).save(tmp_path / "train" / name)
    assert copies(tmp_path) == []


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def test_names_that_differ_in_their_unicode_form_are_said(tmp_path, table):
    root = tree(tmp_path / "a", f"train/{NFC}", "train/2", "train/10", f"val/{NFD}")
    with pytest.raises(DatasetCorruptError, match=r"Unicode NFC or NFD\): give both"):
        load_dataset(f"imagefolder:{root}")
    (root / "val" / NFD).rename(root / "val" / "x")
    with pytest.raises(DatasetCorruptError, match=rf"the classes of training: 2, 10, {NFC}"):
        load_dataset(f"imagefolder:{root}")
    root = tree(tmp_path / "b", NFC, NFD)
    assert "only in case or Unicode form" in load_dataset(f"imagefolder:{root}").faults[0]
    assert any("NFC, NFD" in line for line in table([NFC, NFD] * 4).faults)


def test_tables_beside_class_folders_are_named(tmp_path):
    root = tree(tmp_path, "train/cat", "train/dog")
    for path in (root / "labels.csv", root / "train" / "metadata.csv"):
        path.write_text("file_name,label\n")
        line = f"{path}: not read, since folders are the classes; csv:{path} reads it"
        assert line in load_dataset(f"imagefolder:{root}").notes


def test_turned_and_squashed_images_are_counted(tmp_path):
    tree(tmp_path, "cat", "dog")
    exif = Image.Exif()
    exif[0x112] = 6
    put(tmp_path / "cat" / "turned.jpg", size=(8, 8), exif=exif)
    notes = load_dataset(f"imagefolder:{tmp_path}").notes
    assert "1 of 9 images is turned upright, as its EXIF data say" in notes
    assert any(line.startswith("8 of 9 images are not square, and sizes differ") for line in notes)
