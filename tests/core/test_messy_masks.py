"""Masks as people leave them: stray values, palettes, tables of names, files beside the pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cnn_core import load_dataset
from cnn_core.cli.describe_data import command as describe_data
from cnn_core.data.decoder import Decoder
from cnn_core.data.mask_image import turned
from cnn_core.data.readers.class_names import read_names
from cnn_core.data.verify import verify
from cnn_core.errors import CorruptError, DatasetCorruptError, UsageError

SIZE = (20, 24)
ORIENTATION = 274
BLACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 255, 0)


def image(path, seed=0, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def blob(seed, values=(0, 255), size=SIZE):
    """A square of each value but the first, which is around them."""
    drawn = np.full(size, values[0], np.uint8)
    random = np.random.default_rng(seed)
    for number, value in enumerate(values[1:]):
        top, left = random.integers(2, 5), random.integers(2, 5) + 9 * number
        drawn[top : top + 6, left : left + 7] = value
    return drawn


def pairs(root, draw, count=8, suffix="png"):
    """Write images and masks; `draw` returns an array or an image by number."""
    for number in range(count):
        image(root / "images" / f"{number}.png", number)
        path = root / "masks" / f"{number}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        drawn = draw(number)
        (drawn if isinstance(drawn, Image.Image) else Image.fromarray(drawn)).save(path)
    return root


def load(root):
    return load_dataset(f"maskfolder:{root}")


def checked(root):
    """Return the faults and the notes of verify-data."""
    notes = []
    return verify(f"maskfolder:{root}", notes=notes), notes


def describe(root, *options):
    return CliRunner().invoke(describe_data, [f"maskfolder:{root}", *map(str, options)])


# --- ordinary masks cost no line -----------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [(0, 255), (0, 1), (0, 1, 2), (0, 1, 2, 255), tuple(range(12))],
    ids=["0 and 255", "0 and 1", "classes", "with ignored pixels", "CamVid"],
)
def test_ordinary_masks_cost_no_line(tmp_path, values):
    def draw(number):
        columns = np.array(values)[np.arange(24) * len(values) // 24]
        if len(values) < 12:
            drawn = blob(number, values[:3])
            drawn[0:2, :3] = values[-1]  # a few ignored pixels
            return drawn
        return np.roll(np.broadcast_to(columns, SIZE).astype(np.uint8), number, 1)

    faults, notes = checked(pairs(tmp_path, draw))
    assert faults == []
    expected = ["test: a fifth (2 images), since there is no folder test"]
    known = ("ignored: 255", "predicted masks have these values")
    assert [line for line in notes if not any(words in line for words in known)] == expected


# --- stray values --------------------------------------------------------------------------------

STRAYS = {
    "a block of 1": lambda n: [(slice(1, 4), slice(20, 23), 1)] * (n == 3),
    "three pixels of 1": lambda n: [(1, slice(20, 23), 1)] * (n == 3),
    "1 in most masks": lambda n: [(slice(1, 3), slice(21, 23), 1)] * (n > 0),
    "1 and 2": lambda n: [(slice(1, 3), slice(21, 23), 1 + n % 2)] * (n in (2, 3)),
    "254": lambda n: [(slice(1, 4), slice(20, 23), 254)] * (n == 3),
}


@pytest.mark.parametrize("strays", STRAYS.values(), ids=STRAYS)
@pytest.mark.parametrize("named", [False, True])
def test_a_stray_value_does_not_make_the_objects_ignored(tmp_path, strays, named):
    def draw(number):
        drawn = blob(number)
        for rows, columns, value in strays(number):
            drawn[rows, columns] = value
        return drawn

    root = pairs(tmp_path, draw)
    count = len({0, *np.unique([draw(n) for n in range(8)])} - {255})
    if named:
        (root / "classes.txt").write_text("\n".join("abc"[:count]))
    with pytest.raises(DatasetCorruptError) as caught:
        load(root)
    (fault,) = checked(root)[0]
    assert "255" in fault
    assert f"describe-data maskfolder:{root} --threshold 128" in caught.value.hint
    assert len(str(caught.value).splitlines()) <= 3
    assert isinstance(
        describe(root).exception, DatasetCorruptError
    )  # it guesses no more than that
    (root / "classes.txt").unlink(missing_ok=True)
    assert describe(root, "--threshold", 128).exit_code == 0
    data = load(root)
    for number, target in enumerate(data.split("train").targets):
        found = Decoder(data.split("train"), None)[number][1]
        assert torch.equal(found, torch.from_numpy((draw(int(target.stem)) >= 128).astype("u1")))


def test_255_that_covers_more_than_the_objects_must_be_declared(tmp_path):
    def draw(number):
        drawn = blob(number, (0, 1))
        drawn[10:] = 255
        return drawn

    root = pairs(tmp_path, draw)
    with pytest.raises(
        DatasetCorruptError, match="255 covers 50 % of the pixels, and all classes"
    ):
        load(root)
    (root / "dataset.toml").write_text('labels = {0 = "ground", 1 = "cell"}')
    with pytest.raises(DatasetCorruptError, match="is 255 a class, or ignored"):
        load(root)
    (root / "dataset.toml").unlink()
    assert describe(root, "--ignore", 255).exit_code == 0
    assert checked(root)[0] == []
    assert load(root).spec.classes == ("0", "1")


@pytest.mark.parametrize("value", [1, 2])
def test_thin_values_are_refused_with_a_way_out_that_works(tmp_path, value):
    def draw(number):
        drawn = blob(number, (0, 3 - value))
        drawn[1, 20:23] = value
        return drawn

    root = pairs(tmp_path, draw)
    with pytest.raises(DatasetCorruptError, match="nowhere two pixels wide") as caught:
        load(root)
    assert f"describe-data maskfolder:{root} --classes FILE" in caught.value.hint
    assert isinstance(describe(root).exception, DatasetCorruptError)
    (tmp_path / "names").write_text("ground\ncell\nrim\n")
    assert describe(root, "--classes", tmp_path / "names").exit_code == 0
    assert len(load(root).spec.classes) == 3


# --- palettes ------------------------------------------------------------------------------------


def with_palette(array, *colours):
    found = Image.frombytes("P", array.shape[::-1], array.tobytes())
    found.putpalette([value for colour in colours for value in colour])
    return found


def unlike(number):
    """Red and green squares, whose numbers change from mask to mask."""
    colours = (RED, GREEN) if number % 2 else (GREEN, RED)
    values = (0, 1, 2) if number % 2 else (0, 2, 1)
    return with_palette(blob(number, values), BLACK, *colours)


@pytest.mark.parametrize(
    "options", [(), ("--ignore", "2"), ("--classes", "NAMES")], ids=["plain", "ignore", "classes"]
)
def test_a_description_by_number_is_refused_if_palettes_differ(tmp_path, options):
    root = pairs(tmp_path, unlike)
    (tmp_path / "NAMES").write_text("a\nb\nc\n")
    done = describe(root, *(tmp_path / o if o == "NAMES" else o for o in options))
    assert isinstance(done.exception, DatasetCorruptError)
    assert "palette entry 1 is" in done.exception.message
    assert "--colours" in done.exception.hint
    assert not (root / "dataset.toml").exists()
    assert describe(root, "--colours").exit_code == 0
    assert checked(root)[0] == []


def test_numbers_that_are_declared_in_spite_of_palettes_have_a_line(tmp_path):
    root = pairs(tmp_path, unlike)
    (root / "dataset.toml").write_text('labels = {0 = "a", 1 = "b", 2 = "c"}')
    faults, notes = checked(root)
    assert faults == []
    assert any("the numbers are the classes, whatever their colours" in line for line in notes)
    (root / "dataset.toml").write_text("threshold = 2")
    with pytest.raises(DatasetCorruptError, match=r"threshold = 2: #\w+ is number \d here"):
        load(root)
    assert isinstance(
        describe(root, "--threshold", 2, "--out", tmp_path / "x").exception, DatasetCorruptError
    )
    (root / "dataset.toml").write_text("threshold = 1")
    assert load(root).spec.mask_values == (0, 1)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_equal_palettes_cost_no_line(tmp_path, suffix):
    root = pairs(
        tmp_path, lambda n: with_palette(blob(n, (0, 1, 2)), BLACK, RED, GREEN), suffix=suffix
    )
    assert describe(root).exit_code == 0
    faults, notes = checked(root)
    assert faults == []
    assert not any("palette" in line for line in notes)


# --- files of names ------------------------------------------------------------------------------

TABLES = {
    "header": "Pixel Value, Class\n0, background\n1, apple\n2, pear\n",
    "index of pandas": ",name\n0,background\n1,apple\n2,pear\n",
    "no header": "0,background\n1,apple\n2,pear\n",
    "another order": "value;class\n2;pear\n0;background\n1;apple\n",
    "tabs": "id\tname\n0\tbackground\n1\tapple\n2\tpear\n",
    "name first": '"name","id"\n"background","0"\n"apple","1"\n"pear","2"\n',
    "colons": "names:\n  0: background\n  1: apple\n  2: pear\n",
    "spaces": "0 background\n1 apple\n2 pear\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("file", ["names.csv", "classes.txt"])
def test_a_table_of_values_and_names_is_understood(tmp_path, text, file):
    root = pairs(tmp_path, lambda n: blob(n, (0, 1, 2)))
    (root / file).write_text(text)
    if file == "names.csv":
        assert describe(root, "--classes", root / file).exit_code == 0
        assert "read as values and names" in (root / "dataset.toml").read_text()
    else:
        assert any("classes.txt: read as values and names" in line for line in load(root).notes)
    spec = load(root).spec
    assert dict(zip(spec.mask_values, spec.classes, strict=True)) == {
        0: "background",
        1: "apple",
        2: "pear",
    }
    assert checked(root)[0] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class\nbackground\napple\npear\n", "the name of a class, or a header"),
        ("Class Name\nbackground\napple\npear\n", "the name of a class, or a header"),
        ("Idx,Ratio,Name\n0,20,background\n1,9,apple\n2,1,pear\n", "a table with other columns"),
        ('{"0": "background", "1": "apple", "2": "pear"}', "not a list of names"),
        ('["background", "apple", "pear"]', "not a list of names"),
        ("0,background\n0,apple\n2,pear\n", "0 is the value of two names"),
        ("0 background\n1 apple\npear\n", "'pear' has no value"),
        ("1,background\n2,apple\n3,pear\n", "has no name for 0"),
        ("a\na\nb\n", "'a' occurs twice"),
    ],
)
def test_other_tables_are_refused_and_never_one_off(tmp_path, text, words):
    root = pairs(tmp_path, lambda n: blob(n, (0, 1, 2)))
    (tmp_path / "names.csv").write_text(text)
    done = describe(root, "--classes", tmp_path / "names.csv")
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)
    assert not (root / "dataset.toml").exists()
    (root / "classes.txt").write_text(text)
    with pytest.raises((UsageError, CorruptError), match=r"classes\.txt"):
        load(root)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("background\n2 wheeler\ncar", ("background", "2 wheeler", "car")),
        ("1 euro\n2 euro\n5 euro", ("1 euro", "2 euro", "5 euro")),
        ("lane 1\nlane 2", ("lane 1", "lane 2")),
        ("door, double door\nwall, house wall", ("door, double door", "wall, house wall")),
        ("# names\nsky\nroad", ("sky", "road")),
        ('"sky"\n"road"', ("sky", "road")),
    ],
)
def test_names_with_numbers_and_commas_are_names(tmp_path, text, names):
    (tmp_path / "names").write_text(text)
    found = read_names(tmp_path / "names")
    assert (found.names, dict(found.by_value), found.said) == (names, {}, "")


# --- export of CVAT ------------------------------------------------------------------------------

LABELS = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nCat:255,0,0::\nDog:0,255,0::\nnone:0,0,0::",
    "class_dict.csv": "name,r,g,b\nCat,255,0,0\nDog,0,255,0\nnone,0,0,0\n",
    "colours.txt": "255 0 0 Cat\n0 255 0 Dog\n0 0 0 none\n",
}


@pytest.mark.parametrize("name", LABELS)
def test_a_list_of_colours_beside_the_masks_is_named_and_read(tmp_path, name):
    colours = np.array([BLACK, RED, GREEN], np.uint8)
    for number in range(6):
        image(tmp_path / "JPEGImages" / f"{number}.jpg", number)
        for folder in ("SegmentationClass", "SegmentationObject"):
            (tmp_path / folder).mkdir(exist_ok=True)
            drawn = colours[blob(number, (0, 1, 2))]
            Image.fromarray(drawn).save(tmp_path / folder / f"{number}.png")
    (tmp_path / name).write_text(LABELS[name])
    with pytest.raises(DatasetCorruptError) as caught:
        load(tmp_path)
    assert f"--classes {tmp_path / name}" in caught.value.hint
    assert describe(tmp_path, "--classes", tmp_path / name).exit_code == 0
    spec = load(tmp_path).spec
    assert dict(zip(spec.mask_values, spec.classes, strict=True)) == {
        "#ff0000": "Cat",
        "#00ff00": "Dog",
        "#000000": "none",
    }
    faults, notes = checked(tmp_path)
    assert faults == []
    assert any(line.startswith("left out 6: masks of single objects") for line in notes)


# --- images and masks side by side ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "gone", "named"),
    [
        ("b/3_mask_1.png", "", "b/3_mask_1.png"),
        ("a/readme.png", "", "a/readme.png"),
        ("", "a/2_mask.png", "a/2.png"),
        ("", "b/3.png", "b/3_mask.png"),
    ],
)
def test_the_file_that_breaks_a_layout_is_named(tmp_path, extra, gone, named):
    for number in range(6):
        folder = tmp_path / "ab"[number % 2]
        image(folder / f"{number}.png", number)
        Image.fromarray(blob(number)).save(folder / f"{number}_mask.png")
    load(tmp_path)
    if extra:
        Image.fromarray(blob(9)).save(tmp_path / extra)
    if gone:
        (tmp_path / gone).unlink()
    with pytest.raises(DatasetCorruptError) as caught:
        load(tmp_path)
    assert caught.value.message.startswith(f"{tmp_path / named}: has no ")


def test_numbers_that_are_shifted_are_said_to_be(tmp_path):
    for number in range(8):
        image(tmp_path / "images" / f"{number + 1}.png", number)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(blob(number)).save(tmp_path / "masks" / f"{number}.png")
    with pytest.raises(DatasetCorruptError) as caught:
        load(tmp_path)
    assert "all numbers differ by 1: rename" in caught.value.hint
    assert "move away" not in caught.value.hint


@pytest.mark.parametrize("inside", ["images masks", "train/images train/masks"])
def test_a_folder_around_the_dataset_is_named(tmp_path, inside):
    for number in range(5):
        folders = inside.split()
        image(tmp_path / "archive" / "data" / folders[0] / f"{number}.png", number)
        (tmp_path / "archive" / "data" / folders[1]).mkdir(parents=True, exist_ok=True)
        path = tmp_path / "archive" / "data" / folders[1] / f"{number}.png"
        Image.fromarray(blob(number)).save(path)
    with pytest.raises(UsageError, match="one folder further down: maskfolder:") as caught:
        load(tmp_path / "archive")
    assert str(caught.value).endswith(str(tmp_path / "archive" / "data"))
    load(tmp_path / "archive" / "data")


# --- inverted masks ------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (3, 7)])
@pytest.mark.parametrize("wrong", [(2, 7), (0,), (1, 4, 5)])
def test_masks_that_look_inverted_are_noted(tmp_path, values, wrong):
    def draw(number):
        drawn = blob(number, values)
        return values[0] + values[1] - drawn if number in wrong else drawn

    faults, notes = checked(pairs(tmp_path, draw, count=10))
    assert faults == []
    (line,) = (line for line in notes if "may be inverted" in line)
    assert line.startswith(f"{len(wrong)} of 10 masks may be inverted, such as ")
    assert str(tmp_path / "masks" / f"{wrong[0]}.png") in line


@pytest.mark.parametrize("mode", ["palette", "colour", "threshold"])
def test_masks_of_every_kind_may_look_inverted(tmp_path, mode):
    def draw(number):
        drawn = blob(number, (1, 0)) if number in (2, 7) else blob(number, (0, 1))
        if mode == "palette":
            return with_palette(drawn, BLACK, RED)
        return np.array([BLACK, RED], np.uint8)[drawn] if mode == "colour" else drawn * 200

    root = pairs(tmp_path, draw, count=10)
    if mode == "colour":
        (root / "dataset.toml").write_text('[labels]\n"#000000" = "a"\n"#ff0000" = "b"\n')
    if mode == "threshold":
        (root / "dataset.toml").write_text("threshold = 100")
    assert any("2 of 10 masks" in line and "may be inverted" in line for line in load(root).notes)


def test_objects_of_all_sizes_are_not_inverted(tmp_path):
    def draw(number):
        drawn = np.zeros(SIZE, np.uint8)
        drawn[max(9 - number, 0) : 11 + number, max(11 - number, 0) : 13 + number] = 1
        return drawn

    root = pairs(tmp_path, draw, count=12)
    assert not any("may be inverted" in line for line in load(root).notes)


# --- TIFF that is turned -------------------------------------------------------------------------


def channels_of_five(path, seed, size, orientation):
    """Write a TIFF of five channels, which Pillow does not read."""
    tifffile = pytest.importorskip("tifffile")
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size, 5), dtype=np.uint8)
    tag = (ORIENTATION, "H", 1, orientation, True)
    tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig", extratags=[tag])


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
@pytest.mark.parametrize("size", [(20, 24), (24, 24)])
@pytest.mark.parametrize("channels", [3, 5])
def test_a_turned_tiff_is_never_paired_silently(tmp_path, orientation, size, channels):
    tags = {ORIENTATION: orientation}
    for number in range(6):
        path = tmp_path / "images" / f"{number}.tif"
        if channels == 5:
            channels_of_five(path, number, size, orientation)
        else:
            image(path, number, size, tiffinfo=tags)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(blob(number, size=size)).save(tmp_path / "masks" / f"{number}.png")
    with pytest.raises(DatasetCorruptError, match=rf"EXIF orientation {orientation} turns this"):
        load(tmp_path)
    (tmp_path / "dataset.toml").write_text("turn_masks = true")
    data = load(tmp_path)
    assert "6 of 6 images are turned upright, as their EXIF data say" in data.notes
    files = data.split("train")
    picture, target = Decoder(files, None)[0]
    assert picture.shape[1:] == target.shape
    stored = torch.from_numpy((blob(int(files.targets[0].stem), size=size) > 0).astype("u1"))
    assert torch.equal(target, turned(stored, orientation))
    assert checked(tmp_path)[0] == []


def test_masks_that_are_turned_like_their_images_are_sound(tmp_path):
    tags = {ORIENTATION: 6}
    for number in range(6):
        image(tmp_path / "images" / f"{number}.tif", number, tiffinfo=tags)
        (tmp_path / "masks").mkdir(exist_ok=True)
        path = tmp_path / "masks" / f"{number}.tif"
        Image.fromarray(blob(number)).save(path, tiffinfo=tags)
    assert checked(tmp_path)[0] == []
    (tmp_path / "images" / "0.tif").unlink()
    image(tmp_path / "images" / "0.png", 0)
    with pytest.raises(DatasetCorruptError, match="its mask has 6"):
        load(tmp_path)
