"""Folders of masks as people have them: layouts, names, values, colours, EXIF, dataset.toml."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from cnn_core import load_dataset
from cnn_core.cli.describe_data import command as describe_data
from cnn_core.cli.show_data import command as show_data
from cnn_core.cli.verify_data import command as verify_data
from cnn_core.data.augment import IGNORED
from cnn_core.data.contact_sheet import draw_sheet
from cnn_core.data.decoder import Decoder
from cnn_core.data.mask_image import mask_facts, read_mask, turned
from cnn_core.data.palette import background_class, class_colours
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.readers.description import read_description
from cnn_core.data.streaming import decode_to_memory
from cnn_core.data.verify import verify
from cnn_core.errors import CorruptError, DatasetCorruptError, UsageError
from cnn_core.tasks import metrics_of
from cnn_core.training import train
from cnn_core.training.evaluation import evaluate
from cnn_core.training.mask_files import write_masks
from cnn_core.training.prediction import Predictor, Segmentation
from cnn_core.weights.native import read_weights

SIZE = (16, 20)  # height, width


def image(path, seed=0, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def stripes(values, size=SIZE, dtype=np.uint8):
    """Vertical stripes of values, or of colours."""
    columns = np.array(values)[np.arange(size[1]) * len(values) // size[1]]
    return np.broadcast_to(columns, (size[0], *columns.shape)).astype(dtype)


def mask(path, values, mode=None, size=SIZE, dtype=np.uint8, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    found = Image.fromarray(np.ascontiguousarray(stripes(values, size, dtype)))
    (found.convert(mode) if mode else found).save(path, **options)


def pairs(root, values, count=6, mode=None, dtype=np.uint8):
    for number in range(count):
        image(root / "images" / f"{number}.png", number)
        mask(root / "masks" / f"{number}.png", values, mode, dtype=dtype)
    return root


def load(root):
    return load_dataset(f"maskfolder:{root}")


def first_target(data):
    return Decoder(data.split("train"), None)[0][1]


def said(root):
    """The lines on how a folder is understood, and on what is left out."""
    data = load(root)
    return "\n".join((*data.notes, *data.faults))


# --- layouts and names -----------------------------------------------------------------------

# A file of images and the file of its mask; {n} is a number.
NAMES = {
    "gif with a suffix": ("images/{n}.jpg", "masks/{n}_mask.gif"),
    "another suffix": ("images/{n}.png", "masks/{n}_seg.png"),
    "a suffix of one's own": ("images/{n}.png", "masks/{n}.lesion.png"),
    "two prefixes": ("images/img_{n}.png", "masks/mask_{n}.png"),
    "one prefix": ("imgs/{n}.png", "annotations/gt-{n}.png"),
    "prefix and suffix": ("Images/scan {n}.png", "Labels/label {n} v2.png"),
    "fine, with leading zeros": ("images/{n:03}.jpg", "masks/{n:03}_mask.png"),
    "a folder inside": ("images/a/{n}.png", "masks/b/{n}.png"),
    "side by side": ("{n}.tif", "{n}_mask.tif"),
    "Supervisely": ("img/{n}.jpg", "annotation/{n}.jpg___fuse.png"),
    "VOC": ("JPEGImages/2007_{n}.jpg", "SegmentationClass/2007_{n}.png"),
}


@pytest.mark.parametrize("layout", NAMES)
def test_one_rule_pairs_images_with_masks_and_is_said(tmp_path, layout):
    for number in range(1, 13):  # 1 must not go with 10
        image(tmp_path / NAMES[layout][0].format(n=number), number)
        # The mask's right part is as wide as its number, so that it tells which one it is.
        mask(tmp_path / NAMES[layout][1].format(n=number), [0] * (20 - number) + [255] * number)
    train = load(tmp_path).split("train")
    decoder = Decoder(train, None)
    for index, path in enumerate(train.images):
        wanted = int("".join(c for c in path.stem.removeprefix("2007_") if c.isdigit()))
        assert int((decoder[index][1] == 1).sum()) == wanted * SIZE[0]
    assert "NAME" in said(tmp_path)  # the rule, because it is not the plain one


def test_the_plain_layout_needs_no_line(tmp_path):
    data = load(pairs(tmp_path, [0, 1, 2]))
    held_out = "test: a fifth (1 image), since there is no folder test"
    assert (data.notes, data.faults) == ((held_out,), ())


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{s}", "masks/{s}"),
        ("{s}/images", "{s}/masks"),
        ("{s}", "{s}annot"),
        ("{s}_images", "{s}_labels"),
        ("{s}", "{s}_masks"),
        ("images/{S}ing", "annotations/{S}ing"),
    ],
)
def test_folders_of_splits_are_splits(tmp_path, images, masks):
    for split, count in (("train", 4), ("test", 2)):
        for number in range(count):
            names = {"s": split, "S": split.capitalize()}
            image(tmp_path / images.format(**names) / f"{number}.png", number)
            mask(tmp_path / masks.format(**names) / f"{number}.png", [0, 1])
    assert load(tmp_path).spec.splits == {"train": 4, "test": 2}


def test_a_split_without_masks_is_left_out_with_a_line(tmp_path):
    for number in range(6):
        image(tmp_path / "train" / f"{number}.jpg", number)
        mask(tmp_path / "train_masks" / f"{number}_mask.gif", [0, 255])
        image(tmp_path / "test" / f"{number}.jpg", 50 + number)
    assert load(tmp_path).spec.splits == {"train": 5, "test": 1}
    assert "test: 6 images without masks are left out" in said(tmp_path)
    assert f"cnnzoo predict RUN {tmp_path / 'test'}" in said(tmp_path)
    (fault,) = verify(f"maskfolder:{tmp_path}")
    assert fault.startswith("left out 6: images without masks, such as ")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("masks/{n}0.png", r"images/0\.png: has no mask .*masks/0\.\* \(.*\n.*masks has 00\.png"),
        ("masks/1{n}.png", r"has no mask"),  # a digit is no prefix: 0 would go with 10
        ("masks/{n}_a{n}.png", r"has no mask"),
        ("targets/{n}.png", r"masks: no such folder; .* has images, targets\n"),
    ],
)
def test_what_does_not_pair_is_shown_with_both_names(tmp_path, wrong, words):
    for number in range(6):
        image(tmp_path / "images" / f"{number}.png", number)
        mask(tmp_path / wrong.format(n=number), [0, 1])
    with pytest.raises((DatasetCorruptError, UsageError), match=words):
        load(tmp_path)


@pytest.mark.parametrize("missing", ["", "images", "masks"])
def test_a_folder_that_is_not_there_is_the_same_error_for_every_command(tmp_path, missing):
    root = tmp_path / "data"
    if missing:
        shutil.rmtree(pairs(root, [0, 1]) / missing)
    with pytest.raises(UsageError) as caught:
        load(root)
    for command in (show_data, verify_data, describe_data):
        found = CliRunner().invoke(command, [f"maskfolder:{root}"]).exception
        assert (type(found), str(found)) == (UsageError, str(caught.value))


def test_an_empty_folder_of_masks_is_named(tmp_path):
    root = pairs(tmp_path, [0, 1])
    for path in (root / "masks").iterdir():
        path.write_text("no image")
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(DatasetCorruptError, match="6 files, but the folder of masks has no image"):
        load(root)


def test_a_mask_without_its_image_names_the_rule(tmp_path):
    pairs(tmp_path, [0, 1])
    mask(tmp_path / "masks" / "77.png", [0, 1])
    with pytest.raises(DatasetCorruptError, match=r"masks/77\.png: has no image .*images/77\.\*"):
        load(tmp_path)


def test_two_folders_that_could_be_the_masks_are_asked_about(tmp_path):
    pairs(tmp_path, [0, 1])
    mask(tmp_path / "labels" / "0.png", [0, 1])
    with pytest.raises(
        DatasetCorruptError, match=r'labels and masks could .*\n.*masks = "labels"'
    ):
        load(tmp_path)
    (tmp_path / "dataset.toml").write_text('masks = "masks"')
    assert len(load(tmp_path).split("train")) == 5


def test_lists_of_names_are_splits_and_the_rest_is_counted(tmp_path):
    pairs(tmp_path, [0, 1], count=8)
    (tmp_path / "train.txt").write_text("0\n1.png\n2 masks/2.png\n")
    (tmp_path / "val.txt").write_text("5\n")
    (tmp_path / "dataset.toml").write_text('splits = {train = "train.txt", test = "val.txt"}')
    assert load(tmp_path).spec.splits == {"train": 3, "test": 1}
    data = load(tmp_path)
    (line,) = (note for note in data.notes if "left out" in note and "/images: " in note)
    assert line.endswith("images: 4 images are in no split and left out")
    # What is read for something else is not left out.
    assert not any(".txt" in line or ".toml" in line for line in (*data.notes, *data.faults))
    (tmp_path / "val.txt").write_text("99\n")
    with pytest.raises(DatasetCorruptError, match=r"val\.txt: line 1: '99' has no image"):
        load(tmp_path)


DOCS = (Path(__file__).parents[2] / "docs" / "masks.md").read_text(encoding="utf-8")
TREES = re.findall(r"^```text\n(\w+/\n.*?)^```", DOCS, re.M | re.S)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.split("/")[0])
def test_the_layouts_of_the_documentation_are_read(tmp_path, tree):
    images = set()
    for line in tree.splitlines()[1:]:
        folder, *names = line.split()
        names = [folder, *names] if not folder.endswith("/") else names
        inside = folder if folder.endswith("/") else ""
        for name in names:
            path = tmp_path / inside / name
            if path.suffix == ".jpg":
                images.add(path)
                image(path, len(images))
            else:
                mask(path, [0, 1])
    data = load(tmp_path)
    assert {path for split in data.splits.values() for path in split.images} == images
    if "test" in tree:
        assert set(data.splits) >= {"train", "test"}
        tested = [path.relative_to(tmp_path) for path in data.split("test").images]
        assert all("test" in path.parts for path in tested)


OWN_IMAGES = (Path(__file__).parents[2] / "docs" / "own-images.md").read_text(encoding="utf-8")
DESCRIPTIONS = re.findall(r"^```toml\n(.*?)^```", DOCS + OWN_IMAGES, re.M | re.S)


@pytest.mark.parametrize("text", DESCRIPTIONS)
def test_the_descriptions_of_the_documentation_are_valid(tmp_path, text):
    (tmp_path / "dataset.toml").write_text(text)
    read_description(tmp_path, "classification" if "tench" in text else "segmentation")


# --- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "1", "P"])
def test_grey_masks_are_read_from_every_mode(tmp_path, mode):
    data = load(pairs(tmp_path, [0, 255], mode=mode))
    assert data.spec.mask_values == (0, 255)
    assert first_target(data).unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([0, 1], ("0", "1")),
        ([0, 255], ("0", "255")),
        ([1, 2], ("1", "2")),
        ([0, 2], ("0", "2")),
        ([5, 200], ("5", "200")),
        ([1, 2, 3, 4], ("1", "2", "3", "4")),
        ([0, 1, 2, 255], ("0", "1", "2")),
        ([1, 2, 255], ("1", "2")),
        ([0, 65535], ("0", "65535")),
        ([0, 1, 256], None),
        ([0, 1, 3], None),
        ([0, 15, 255], None),
        ([2, 3, 4], None),
        ([1, 3, 255], None),
        ([255], None),
        ([0], None),
        ([0, 255, 128, 7], None),
    ],
)
def test_values_are_classes_under_their_own_names_or_refused(tmp_path, values, classes):
    deep = np.uint16 if max(values) > 255 else np.uint8
    root = pairs(tmp_path, values, dtype=deep)
    if classes is None:
        way_out = r"describe-data maskfolder:" if len(values) > 1 else "pixels of two classes"
        with pytest.raises(DatasetCorruptError, match=way_out):
            load(root)
        assert verify(f"maskfolder:{root}") != []
        return
    data = load(root)
    assert data.spec.classes == classes
    assert data.spec.mask_values == tuple(map(int, classes))
    renumbered = classes != tuple(map(str, range(len(classes))))
    assert ("predicted masks have these values" in said(root)) == renumbered
    assert ("ignored: 255" in said(root)) == (255 in values and len(values) > 2)


def test_masks_of_sixteen_bits_are_read(tmp_path):
    data = load(pairs(tmp_path, [0, 1, 2], dtype=np.uint16))
    assert data.spec.classes == ("0", "1", "2")
    assert torch.equal(first_target(data), torch.from_numpy(stripes([0, 1, 2]).copy()))


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        ([0, 1, 3, 255], "road car cyclist tree", [0, 1, 3, IGNORED]),
        ([0, 1], "road car tree", [0, 1]),  # the last one is absent
        ([0, 15, 255], " ".join(f"c{n}" for n in range(21)), [0, 15, IGNORED]),
        ([1, 2, 3], "a b c", [0, 1, 2]),
        ([1, 3], "a b c", [0, 2]),
        ([0, 255], "ground cell", [0, 1]),
        ([0, 1, 2], "a b", None),
        ([0, 1, 2, 3], "a b c", None),
        ([0, 255], "a b c", None),
    ],
)
def test_declared_names_decide_what_values_are(tmp_path, values, names, numbers):
    root = pairs(tmp_path, values)
    (root / "classes.txt").write_text(names.replace(" ", "\n"))
    if numbers is None:
        with pytest.raises(UsageError, match=r"classes\.txt: \d names, but the masks have \d"):
            load(root)
        return
    data = load(root)
    assert data.spec.classes == tuple(names.split())
    assert first_target(data).unique().tolist() == numbers
    absent = len(data.spec.classes) - len(set(numbers) - {IGNORED})
    assert (f"no mask has {absent} of the classes" in said(root)) == (absent > 0)


def test_binary_masks_of_two_kinds_are_refused_until_someone_says_what_255_is(tmp_path):
    root = pairs(tmp_path, [0, 1])
    for number in range(3):
        mask(root / "masks" / f"{number}.png", [0, 255])
    with pytest.raises(DatasetCorruptError, match="holds 255 and no class but 0"):
        load(root)
    assert "two kinds of masks" in verify(f"maskfolder:{root}")[0]
    described = CliRunner().invoke(describe_data, [f"maskfolder:{root}"])
    assert isinstance(described.exception, DatasetCorruptError)  # it does not decide, either
    (root / "dataset.toml").write_text('labels = {0 = "ground", 1 = "cell", 255 = "cell"}')
    data = load(root)
    assert data.spec.classes == ("ground", "cell")
    assert data.spec.mask_values == (0, 1)
    targets = decode_to_memory(data.split("train"), None).targets
    assert targets.unique().tolist() == [0, 1]
    (root / "dataset.toml").write_text("ignore = [255]")
    assert decode_to_memory(load(root).split("train"), None).targets.unique().tolist()[-1] == 255


def test_any_value_can_be_ignored(tmp_path):
    root = pairs(tmp_path, list(range(12)))
    (root / "dataset.toml").write_text("ignore = [11, 0]")
    data = load(root)
    assert data.spec.classes == tuple(map(str, range(1, 11)))
    target, stored = first_target(data), torch.from_numpy(stripes(list(range(12))).copy())
    assert torch.equal(target == IGNORED, (stored == 11) | (stored == 0))
    assert "ignored: 11" in said(root)
    assert "ignored: 0" in said(root)


def test_values_that_mean_something_else_change_the_fingerprint(tmp_path):
    root = pairs(tmp_path, [0, 1, 2, 3])
    before = load(root).fingerprint()
    assert load(root).fingerprint() == before
    found = {before}
    for text in ("ignore = [3]", 'labels = {0="3", 1="1", 2="2", 3="0"}', "turn_masks = true"):
        (root / "dataset.toml").write_text(text)
        found.add(load(root).fingerprint())
    assert len(found) == 4


# --- blurred masks -----------------------------------------------------------------------------


def disc(low, high, size=61):
    y, x = np.mgrid[:size, :size]
    inside = (y - size // 2) ** 2 + (x - size // 2) ** 2 < (size // 3) ** 2
    return np.where(inside, high, low).astype(np.uint8)


def blurred(root, array, kind="jpg", **options):
    (root / "masks").mkdir(parents=True)
    for number in range(6):
        image(root / "images" / f"{number}.png", number, array.shape[:2])
        path = root / "masks" / f"{number}.{kind}"
        Image.fromarray(array).save(path, **options)
    return root


@pytest.mark.parametrize(
    "array",
    [disc(0, 255), disc(0, 1), np.arange(61, dtype=np.uint8)[None].repeat(61, 0) // 16],
    ids=["black and white", "two numbers", "four numbers"],
)
def test_jpeg_masks_are_refused_even_without_a_gap(tmp_path, array):
    root = blurred(tmp_path, array, quality=90)
    (root / "classes.txt").write_text("\n".join(map(str, range(int(array.max()) + 1)))[:7])
    (fault,) = verify(f"maskfolder:{root}")
    assert "masks/0.jpg: JPEG is lossy" in fault
    with pytest.raises(DatasetCorruptError, match="export the masks as PNG from their source"):
        load(root)


def test_black_and_white_jpegs_without_any_other_value_are_sound(tmp_path):
    array = np.zeros((64, 64), np.uint8)
    array[16:48, 16:48] = 255  # on the borders of JPEG's blocks
    root = blurred(tmp_path, array, quality=100)
    assert load(root).spec.mask_values == (0, 255)


def test_anti_aliased_masks_are_named_so_and_a_threshold_reads_them(tmp_path):
    root = blurred(tmp_path / "a", disc(0, 255, 183), "png")
    for path in (root / "masks").iterdir():
        Image.open(path).resize((61, 61)).save(path)
    for path in (root / "images").iterdir():
        image(path, 1, (61, 61))
    with pytest.raises(DatasetCorruptError, match=r"blurred, as by resizing.*\n.*\n.*threshold ="):
        load(root)
    (root / "dataset.toml").write_text("threshold = 128")
    data = load(root)
    assert data.spec.mask_values == (0, 255)
    assert torch.equal(first_target(data), (read_mask(root / "masks" / "0.png") >= 128).byte())
    assert "threshold 128 decides on the" in said(root)
    (root / "dataset.toml").write_text("threshold = 128\nignore = [255]")
    with pytest.raises(UsageError, match="threshold makes two classes"):
        load(root)


def test_blurred_colours_are_no_classes(tmp_path):
    array = np.stack([disc(0, 255, 183), disc(0, 100, 183), disc(40, 0, 183)], -1)
    root = blurred(tmp_path, np.array(Image.fromarray(array).resize((61, 61))), "png")
    with pytest.raises(DatasetCorruptError, match=r"colours, #000028 .*look blurred"):
        load(root)


def test_a_jpeg_of_two_classes_stays_blurred_as_png(tmp_path):
    array = np.zeros((64, 64), np.uint8)
    array[9:41, 13:50] = 1
    array = through_jpeg(array)
    assert len(np.unique(array)) == 3
    with pytest.raises(DatasetCorruptError, match="nowhere two pixels wide"):
        load(blurred(tmp_path, array, "png"))


def patches(classes, seed, size=128):
    """A map of classes: each pixel has the class of the nearest of 14 random points."""
    random = np.random.default_rng(seed)
    points, numbers = random.uniform(0, size, (14, 2)), random.integers(0, classes, 14)
    numbers[:classes] = np.arange(classes)
    y, x = np.mgrid[:size, :size]
    distances = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    return numbers[distances.argmin(-1)].astype(np.uint8)


def through_jpeg(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=90)
    return np.array(Image.open(file))


HARMS = {
    "none": lambda array: array,
    "nearest": lambda array: np.array(Image.fromarray(array).resize((90, 90), 0)),
    "enlarged": lambda array: np.array(Image.fromarray(array).resize((200, 200), 2)),
    "reduced": lambda array: np.array(Image.fromarray(array).resize((90, 90), 2)),
    "JPEG": through_jpeg,
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("classes", [3, 4, 10])
def test_blurred_masks_are_refused_though_their_values_have_no_gap(tmp_path, harm, classes):
    for number in range(4):
        array = HARMS[harm](patches(classes, number))
        image(tmp_path / "images" / f"{number}.png", number, array.shape)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / "masks" / f"{number}.png")
    faults = verify(f"maskfolder:{tmp_path}")
    assert bool(faults) == (harm not in ("none", "nearest")), faults
    if faults:
        assert "resized, anti-aliased" in faults[0]
        done = CliRunner().invoke(describe_data, [f"maskfolder:{tmp_path}"])
        assert isinstance(done.exception, DatasetCorruptError)


def test_classes_that_are_nowhere_two_pixels_wide_need_names(tmp_path):
    array = np.zeros((24, 24), np.uint8)
    array[8:16, 8:16] = 2
    array[8, 8:16] = 1
    root = blurred(tmp_path, array, "png")
    with pytest.raises(DatasetCorruptError, match=r"1 \(1\.39 %\) of the pixels: nowhere two"):
        load(root)
    (root / "classes.txt").write_text("ground\nborder\ncell\n")
    load(root)
    assert "1 (1.39 %) of the pixels: nowhere two pixels wide" in said(root)


# --- colours -----------------------------------------------------------------------------------

BLACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 255, 0)


def test_colours_are_listed_and_described_and_read(tmp_path):
    root = pairs(tmp_path, [BLACK, BLACK, RED, GREEN])
    with pytest.raises(DatasetCorruptError) as caught:
        load(root)
    assert "3 colours: #000000 (50 %), #00ff00 (25 %), #ff0000 (25 %)" in caught.value.message
    assert "cnnzoo describe-data maskfolder:" in caught.value.hint
    assert CliRunner().invoke(describe_data, [f"maskfolder:{root}"]).exit_code == 0
    assert load(root).spec.classes == ("#000000", "#00ff00", "#ff0000")
    text = (root / "dataset.toml").read_text().replace('= "#000000"', '= "road"')
    (root / "dataset.toml").write_text(text)
    data = load(root)
    assert data.spec.classes == ("road", "#00ff00", "#ff0000")
    assert data.spec.colours == data.spec.mask_values == ("#000000", "#00ff00", "#ff0000")
    expected = torch.from_numpy(stripes([0, 0, 2, 1]).copy())
    assert torch.equal(first_target(data), expected)
    # A mask with one colour only is grey for itself, but not among these.
    mask(root / "masks" / "0.png", [BLACK], mode="L")
    assert first_target(load(root)).unique().tolist() == [0]
    mask(root / "masks" / "0.png", [BLACK, (255, 1, 0)])
    with pytest.raises(DatasetCorruptError, match=r"0\.png: masks hold #ff0100 .* not declare"):
        load(root)


def test_one_mask_in_colour_among_others_is_named(tmp_path):
    root = pairs(tmp_path, [0, 1])
    mask(root / "masks" / "3.png", [BLACK, RED])
    with pytest.raises(DatasetCorruptError, match=r"masks/3\.png: a mask in colour.*1 of 6"):
        load(root)
    mask(root / "masks" / "3.png", [0, 1], mode="RGB")
    assert len(load(root).spec.classes) == 2


def test_a_transparent_mask_is_refused(tmp_path):
    root = pairs(tmp_path, [0, 1])
    for path in (root / "masks").iterdir():
        Image.new("RGBA", SIZE[::-1], (255, 0, 0, 90)).save(path)
    with pytest.raises(DatasetCorruptError, match="partly transparent"):
        load(root)


def palette_mask(path, entries, indices):
    path.parent.mkdir(parents=True, exist_ok=True)
    found = Image.fromarray(stripes(indices).copy())
    found.putpalette([value for entry in entries for value in entry])
    found.save(path)


def test_palettes_that_differ_are_refused_until_numbers_or_colours_are_chosen(tmp_path):
    root = pairs(tmp_path, [0, 1])
    for number in range(6):
        entries = [BLACK, RED, GREEN] if number else [BLACK, GREEN, RED]
        palette_mask(root / "masks" / f"{number}.png", entries, [0, 1, 2])
    with pytest.raises(DatasetCorruptError, match="palette entry 1 is #ff0000, but #00ff00 in"):
        load(root)
    assert CliRunner().invoke(describe_data, [f"maskfolder:{root}", "--colours"]).exit_code == 0
    data = load(root)
    assert "#000000" in data.spec.mask_values
    reds = data.spec.mask_values.index("#ff0000")
    files, decoded = data.split("train"), decode_to_memory(data.split("train"), None)
    for path, target in zip(files.targets, decoded.targets, strict=True):
        wanted = 1 if path.stem != "0" else 2
        assert torch.equal(target == reds, read_mask(path) == wanted)


def test_gifs_of_black_and_white_do_not_depend_on_their_palettes(tmp_path):
    for name, values in (("a", [0, 255]), ("b", [255]), ("c", [0])):
        mask(tmp_path / f"{name}.gif", values)
        assert read_mask(tmp_path / f"{name}.gif").unique().tolist() == values
        assert mask_facts(tmp_path / f"{name}.gif").kind == "grey"


# --- EXIF --------------------------------------------------------------------------------------


def photos(root, size, orientation, masks_too=False):
    exif = Image.Exif()
    exif[274] = orientation
    for number in range(6):
        image(root / "images" / f"{number}.jpg", number, size, exif=exif)
        options = {"exif": exif} if masks_too else {}
        mask(root / "masks" / f"{number}.png", [1, 0], size=size, **options)
    return root


@pytest.mark.parametrize(
    ("size", "orientation"), [((20, 40), 6), ((32, 32), 6), ((20, 40), 3), ((32, 32), 2)]
)
def test_images_that_exif_turns_away_from_their_masks_are_never_silent(
    tmp_path, size, orientation
):
    root = photos(tmp_path, size, orientation)
    with pytest.raises(DatasetCorruptError, match=rf"EXIF orientation {orientation} turns this"):
        load(root)
    assert "turns this image, but its mask" in verify(f"maskfolder:{root}")[0]
    (root / "dataset.toml").write_text("turn_masks = true")
    picture, target = Decoder(load(root).split("train"), None)[0]
    assert target.shape == picture.shape[1:]
    expected = turned(torch.from_numpy(stripes([1, 0], size).copy()), orientation)
    assert torch.equal(target, expected)
    if orientation == 6 and size[0] != size[1]:
        (root / "dataset.toml").write_text("turn_masks = false")
        with pytest.raises(DatasetCorruptError, match="after EXIF turned it; see turn_masks"):
            Decoder(load(root).split("train"), None)[0]
    else:
        (root / "dataset.toml").write_text("turn_masks = false")
        target = Decoder(load(root).split("train"), None)[0][1]
        assert torch.equal(target, torch.from_numpy(stripes([1, 0], size).copy()))


def test_masks_with_the_orientation_of_their_images_are_sound(tmp_path):
    assert first_target(load(photos(tmp_path, (20, 40), 6, masks_too=True))).shape == (40, 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_as_pillow_turns_images(orientation):
    from PIL import ImageOps

    values = np.arange(15, dtype=np.uint8).reshape(3, 5)
    stored = Image.fromarray(values)
    stored.getexif()[274] = orientation
    expected = np.array(ImageOps.exif_transpose(stored))
    assert np.array_equal(turned(torch.from_numpy(values), orientation).numpy(), expected)


# --- every file is read or accounted for -------------------------------------------------------


def test_what_may_be_meant_and_is_not_read_is_a_fault(tmp_path):
    root = pairs(tmp_path, [0, 1])
    (root / "masks" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (root / "images" / "b").write_bytes(b"")
    (root / "images" / ".hidden").mkdir()
    (root / "more.csv").write_text("a,b")
    image(root / "extra" / "1.png", 99)
    data = load(root)
    assert verify(f"maskfolder:{root}") == list(data.faults)
    for words in (
        "empty files",
        "images that belong to no pair",
        r"images of a format .*\(\.heic\)",
    ):
        assert [line for line in data.faults if re.match(rf"left out 1: {words}", line)]
    for words in ("hidden files and folders", "other files"):
        assert [line for line in data.notes if line.startswith(f"left out 1: {words}")]
    done = CliRunner().invoke(show_data, [f"maskfolder:{root}"])
    assert all(line in done.output for line in (*data.faults, *data.notes))
    done = CliRunner().invoke(verify_data, [f"maskfolder:{root}"])
    assert done.exception.exit_code == 3
    done = CliRunner().invoke(describe_data, [f"maskfolder:{root}", "--out", f"{tmp_path}.toml"])
    assert done.stderr.splitlines() == list(data.faults)


def test_folders_outside_are_accounted_for_too(tmp_path):
    root = pairs(tmp_path / "data", [0, 1])
    (root / "images").rename(tmp_path / "photos")
    (tmp_path / "photos" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (root / "dataset.toml").write_text('images = "../photos"')
    (fault,) = load(root).faults
    assert str(Path("photos") / "a.heic") in fault


@pytest.mark.parametrize("kind", ["webp", "ppm", "jfif", "avif"])
def test_images_are_read_in_every_format(tmp_path, kind):
    root = pairs(tmp_path, [0, 1])
    for number in range(6):
        found = Image.open(root / "images" / f"{number}.png")
        (root / "images" / f"{number}.png").unlink()
        found.save(root / "images" / f"{number}.{kind}", "JPEG" if kind == "jfif" else None)
    assert verify(f"maskfolder:{root}") == []


def test_images_of_sixteen_bits_and_transparent_ones_are_read_as_declared(tmp_path):
    root = pairs(tmp_path / "deep", [0, 1])
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 4096, SIZE, dtype=np.uint16)
        Image.fromarray(values).save(root / "images" / f"{number}.png")
    assert "value_range = [0, 4095] may be meant" in load(root).faults[0]
    (root / "dataset.toml").write_text("value_range = [0, 4095]")
    data = load(root)
    assert (data.spec.image, data.faults) == ((1, *SIZE), ())
    assert any("0 to 4095 becomes 0 to 255" in note for note in data.notes)
    path = data.split("train").images[0]
    expected = np.rint(np.asarray(Image.open(path)).astype(float) * 255 / 4095)
    found, _ = Decoder(data.split("train"), None)[0]
    assert np.array_equal(found[0].numpy(), expected)
    root = pairs(tmp_path / "clear", [0, 1])
    for number in range(6):
        Image.new("RGBA", SIZE[::-1], (9, number, 9, 0)).save(root / "images" / f"{number}.png")
    assert any("transparent parts, which are shown on white" in line for line in load(root).notes)
    assert Decoder(load(root).split("train"), None)[0][0].unique().tolist() == [255]
    (root / "dataset.toml").write_text('alpha_background = "black"')
    assert Decoder(load(root).split("train"), None)[0][0].unique().tolist() == [0]


def test_pages_of_masks_are_a_fault(tmp_path):
    root = pairs(tmp_path, [0, 1])
    pages = [Image.fromarray(stripes(values).copy()) for values in ([0, 1], [1, 0])]
    (root / "masks" / "0.png").unlink()
    pages[0].save(root / "masks" / "0.tif", save_all=True, append_images=pages[1:])
    (fault,) = verify(f"maskfolder:{root}")
    assert fault.startswith("left out: frames or pages after the first, in 1 image,")


@pytest.mark.parametrize(("maximum", "fine"), [(255, True), (65535, True), (3, False)])
@pytest.mark.parametrize("plain", [True, False])
def test_masks_in_pgm_are_refused_where_pillow_scales_them(tmp_path, maximum, fine, plain):
    size, path = 2 if maximum > 255 else 1, tmp_path / "a.pgm"
    values = b" ".join(b"%d" % n for n in (0, 1, 2, 3)) if plain else b""
    values = values or b"".join(n.to_bytes(size, "big") for n in (0, 1, 2, 3))
    path.write_bytes(b"%s\n2 2\n%d\n%s" % (b"P2" if plain else b"P5", maximum, values))
    if fine:
        assert read_mask(path).tolist() == [[0, 1], [2, 3]]
    else:
        with pytest.raises(DatasetCorruptError, match="grey from 0 to 3: expected 0 to 255"):
            read_mask(path)


def test_an_array_is_no_mask(tmp_path):
    root = pairs(tmp_path, [0, 1])
    for path in (root / "masks").iterdir():
        np.save(path.with_suffix(".npy"), stripes([0, 1]))
        path.unlink()
    with pytest.raises(DatasetCorruptError, match=r"\.npy: an array, expected a mask\nsave it as"):
        load(root)


# --- dataset.toml ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ingore = [1]", "unknown key 'ingore', did you mean 'ignore'"),
        ("ignore = 1", "ignore: expected a list"),
        ("ignore = ['blue']", "'blue': expected a number from 0 to 65,535, or a colour"),
        ("labels = {x = 'a'}", "labels: 'x': expected a number"),
        ("[labels]\n0 = 'a'\n'#ff0000' = 'b'", "some values are numbers and some are colours"),
        ("labels = {0 = 'a', 1 = 'b'}\nignore = [1]", "1 is in labels and in ignore"),
        ("labels = {0 = 'a', 1 = 'b'}\nbackground = 'c'", "background: no label is called 'c'"),
        ("splits = {tain = 'x'}", "'tain': one of train, val, test, did you mean 'train'"),
        ("splits = {train = 'x'}", "train = 'x': expected a list of names, or a folder"),
        ("masks = 'nowhere'", "nowhere: no such folder"),
        ("turn_masks = 'yes'", "expected true or false"),
        ("threshold = -1", "expected a grey level"),
        ("mean = [0.5]", "mean and std go together"),
        ("mean = [0.5]\nstd = [0.5]", "1 number, but images have 3 channels"),
        ("colours = {a = 'red'}", "'red': expected '#rrggbb'"),
        ("licence = 3", "licence: 3: expected text"),
        ("value_range = [1, 0]", "dataset.toml: value_range = .*: expected two numbers"),
        ("value_range = 1", "value_range: 1: expected two numbers"),
        ("alpha_background = 'pink'", "alpha_background = 'pink'\none of white, black, drop"),
        ("= 3", "not TOML"),
    ],
)
def test_a_description_is_read_strictly(tmp_path, text, words):
    root = pairs(tmp_path, [0, 1])
    (root / "dataset.toml").write_text(text)
    with pytest.raises(UsageError, match=words):
        load(root)


def test_a_description_says_what_the_data_is(tmp_path):
    root = pairs(tmp_path, [0, 1])
    (root / "dataset.toml").write_text(
        'licence = "CC0"\nmean = [0.1, 0.2, 0.3]\nstd = [1, 1, 1]\nbackground = "ground"\n'
        'labels = {0 = "ground", 1 = "cell"}\ncolours = {cell = "#FF00FF"}\n'
    )
    spec = load(root).spec
    assert (spec.licence, spec.mean, spec.background) == ("CC0", (0.1, 0.2, 0.3), "ground")
    assert spec.colours == ("", "#ff00ff")


def test_folders_of_classes_are_described_too(tmp_path):
    for folder in ("n01", "n02"):
        for number in range(4):
            image(tmp_path / folder / f"{number}.png", number)
    runner = CliRunner()
    assert runner.invoke(describe_data, [f"imagefolder:{tmp_path}"]).exit_code == 0
    text = (tmp_path / "dataset.toml").read_text()
    assert '"n01" = "n01"  # 4 images' in text
    (tmp_path / "dataset.toml").write_text(text.replace('= "n01"', '= "tench"'))
    assert load_dataset(f"imagefolder:{tmp_path}").spec.classes == ("tench", "n02")
    for text, words in (
        ("labels = {n03 = 'x'}", "no folder 'n03', did you mean"),
        ("labels = {n01 = 'n02'}", "'n02' is the name of two folders"),
        ("ignore = [1]", "'ignore' is for masks"),
    ):
        (tmp_path / "dataset.toml").write_text(text)
        with pytest.raises(UsageError, match=words):
            load_dataset(f"imagefolder:{tmp_path}")
    again = runner.invoke(describe_data, [f"imagefolder:{tmp_path}"])
    assert "already exists" in str(again.exception)


CAMVID = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
]


@pytest.fixture
def camvid(tmp_path):
    """CamVid as its authors publish it, but tiny: 12 values, of which 11 is unlabelled."""
    root = tmp_path / "CamVid"
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for number in range(count):
            image(root / split / f"0001TP_{number}.png", number)
            mask(root / f"{split}annot" / f"0001TP_{number}.png", list(range(12)), size=SIZE)
    return root


def test_camvid_is_described_in_one_command(camvid, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CAMVID))
    arguments = [f"maskfolder:{camvid}", "--classes", str(names), "--ignore", "11"]
    done = CliRunner().invoke(describe_data, arguments)
    assert done.output.strip() == str(camvid / "dataset.toml")
    data = load(camvid)
    assert data.spec.classes == tuple(CAMVID)
    assert data.spec.splits == {"train": 6, "val": 3, "test": 3}
    assert first_target(data).unique().tolist() == [*range(11), IGNORED]


def test_camvid_from_its_folder_to_masks_with_its_values(camvid, tmp_path):
    (camvid / "dataset.toml").write_text(
        "ignore = [0]\n[labels]\n"
        + "\n".join(f'{value} = "{name}"' for value, name in enumerate(CAMVID, 1))
    )
    settings = {"image_size": 16, "options": {"width": 4, "depth": 2}, "epochs": 1}
    out, data = tmp_path / "run", f"maskfolder:{camvid}"
    run = train("unet_same", data, out=out, progress=False, device="cpu", **settings)
    recorded = run.test_metrics()
    assert {key for key in recorded if "/iou" in key} <= {f"test/iou/{name}" for name in CAMVID}
    assert "test/iou/sky" in recorded
    weights = read_weights(out)
    assert weights.mask_values == tuple(range(1, 12))
    assert weights.classes == tuple(CAMVID)
    meaning = run.environment()["mask_values"]
    assert meaning == {"0": None, **{str(n): name for n, name in enumerate(CAMVID, 1)}}
    assert evaluate(out)["iou/sky"] == pytest.approx(recorded["test/iou/sky"])
    (found,) = Predictor(out, device="cpu").segment([camvid / "test" / "0001TP_0.png"])
    path = write_masks(found, tmp_path / "masks", camvid.with_name("0"))[0]
    assert torch.equal(read_mask(path), found.mask + 1)
    # A folder whose values mean something else is another dataset.
    text = (camvid / "dataset.toml").read_text().replace("ignore = [0]", "ignore = [0, 12]")
    (camvid / "dataset.toml").write_text(text)
    with pytest.raises(CorruptError, match="have changed since the run began"):
        evaluate(out)


# --- colours, names and values in what is written ----------------------------------------------


def lab(colour):
    """Return CIE L*a*b* of an RGB colour, 0 to 255 (CIE 15:2004)."""
    rgb = np.array(colour) / 255
    rgb = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ rgb / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_palette_tells_classes_apart():
    colours = class_colours([str(n) for n in range(24)], (), 3)
    assert colours[3] == (0, 0, 0)
    spots = [lab(colour) for colour in [*colours, (128, 128, 128)]]
    far = [np.linalg.norm(a - b) for n, a in enumerate(spots) for b in spots[:n]]
    assert min(far) > 20
    assert len(set(class_colours([str(n) for n in range(100)]))) == 100
    assert class_colours(["a", "b"], ("", "#010203"))[1] == (1, 2, 3)


@pytest.mark.parametrize(
    ("classes", "declared", "expected"),
    [
        (("sky", "road", "car"), "", None),
        (("sky", "road", "car"), "car", 2),
        (("road", "_background_", "car"), "", 1),
        (("pet", "Background"), "", 1),
        (("0", "255"), "", 0),
        (("membrane", "cell"), "", 0),
        (("membrane", "cell"), "cell", 1),
    ],
)
def test_background_is_what_is_called_so_or_the_first_of_two(classes, declared, expected):
    assert background_class(classes, declared) == expected


def test_metrics_get_the_names_of_classes_and_leave_out_only_a_background():
    logits = torch.zeros(1, 3, 8, 8)
    logits[0, 0, :, :4] = logits[0, 1, :4, 4:] = logits[0, 2, 4:, 4:] = 9
    target = logits.argmax(1).to(torch.uint8)
    target[0, :2, :4] = 1  # wrong only between sky and road
    found = {}
    for background in (None, 0, 2):
        names = ("sky", "road", "car")
        metrics = metrics_of(
            "segmentation", 3, evaluated="x", classes=names, background=background
        )
        for metric in metrics.values():
            metric.update(logits, target)
        found[background] = metrics["boundaries"].compute()["boundary_iou"]
        assert metrics["regions"].compute().keys() >= {"iou/sky", "iou/road", "iou/car"}
    assert len(set(found.values())) == 3


@pytest.mark.parametrize(
    ("values", "mode", "stored"),
    [
        ((), "P", [0, 1, 2]),
        ((1, 2, 3), "P", [1, 2, 3]),
        ((0, 255, 7), "P", [0, 255, 7]),
        ((0, 1000, 65535), "I;16", [0, 1000, 65535]),
        (("#000000", "#ff0000", "#00ff00"), "RGB", [BLACK, RED, GREEN]),
    ],
)
def test_predicted_masks_have_the_values_and_colours_of_the_masks(tmp_path, values, mode, stored):
    probabilities = torch.zeros(3, 2, 3)
    probabilities[torch.arange(3), :, torch.arange(3)] = 1
    colours = tuple(str(value) for value in values if isinstance(value, str))
    segmentation = Segmentation(
        path=None,
        image=torch.full((3, 2, 3), 100, dtype=torch.uint8),
        probabilities=probabilities,
        classes=("sky", "road", "car"),
        mask_values=values,
        colours=colours,
    )
    mask_path, overlay, _ = write_masks(segmentation, tmp_path, tmp_path / "a")
    with Image.open(mask_path) as found:
        assert found.mode == mode
        assert np.array(found)[0].tolist() == [list(v) if mode == "RGB" else v for v in stored]
        shown = np.array(found.convert("RGB"))[0].tolist()
    if mode != "I;16":
        expected = class_colours(segmentation.classes, colours)
        assert [tuple(colour) for colour in shown] == expected
    with Image.open(overlay) as found:
        assert (np.array(found) != 100).any(2).all()  # without a background, all is tinted


def test_the_sheet_draws_each_class_in_its_colour_with_its_name(camvid):
    (camvid / "dataset.toml").write_text(
        "ignore = [11]\n[labels]\n"
        + "\n".join(f'{value} = "{name}"' for value, name in enumerate(CAMVID))
    )
    data = load(camvid)
    sheet = np.array(draw_sheet(data, "test"))
    legend = sheet[-2 * 18 - 8 :]
    for colour in class_colours(data.spec.classes):
        assert (legend == colour).all(2).sum() > 100


@pytest.mark.parametrize(
    ("fit", "size", "own", "words"),
    [
        ("resize", (128, 128), (360, 480), "their shape changes"),
        ("resize", (128, 128), (256, 256), "are in pixels of that size$"),
        ("resize", (128, 128), (0, 0), "images of various sizes are resized to 128x128"),
        ("resize", (128, 128), (128, 128), "^$"),
        ("tile", (128, 128), (360, 480), "^$"),
    ],
)
def test_resizing_and_what_it_does_to_distances_is_said(fit, size, own, words):
    note = Preprocessing(size=size, image_size=own, fit=fit, mean=(0.0,), std=(1.0,)).scale_note
    assert re.search(words, note)


def test_evaluate_says_in_which_pixels_distances_are(scenes_run, cnnzoo):
    note = "resized to 32x32: distances, such as hd95, are in pixels of that size"
    assert note in cnnzoo("evaluate", scenes_run.path).err
    assert note in json.loads(cnnzoo("evaluate", scenes_run.path, "--json").out)["scale_note"]


def test_names_with_colours_describe_masks_in_colour(tmp_path):
    root = pairs(tmp_path, [BLACK, RED, GREEN])
    lines = {"a": "0 0 0\troad\n255 0 0\tcar\n0 255 0\ttree", "b": "road,0,0,0\ncar,255,0,0"}
    for name, text in lines.items():
        (tmp_path / name).write_text(text)
    options = ["--classes", str(tmp_path / "b"), "--ignore", "#00ff00"]
    done = CliRunner().invoke(describe_data, [f"maskfolder:{root}", *options])
    assert done.exit_code == 0, done.exception
    assert load(root).spec.classes == ("road", "car")
    assert first_target(load(root)).unique().tolist() == [0, 1, IGNORED]
    (root / "dataset.toml").unlink()
    CliRunner().invoke(describe_data, [f"maskfolder:{root}", "--classes", str(tmp_path / "a")])
    assert load(root).spec.classes == ("road", "car", "tree")


# --- what people also have -------------------------------------------------------------------


def numbered(root, counts):
    """Masks of objects 1 to n, each a square of its own, on 0."""
    for number, count in enumerate(counts):
        image(root / "images" / f"{number}.png", number, (32, 32))
        drawn = np.zeros((32, 32), np.uint8)
        for value in range(count):
            y, x = 10 * (value // 3), 10 * (value % 3)
            drawn[y + 1 : y + 8, x + 1 : x + 8] = value + 1
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(drawn).save(root / "masks" / f"{number}.png")
    return root


def test_numbers_of_objects_are_not_classes(tmp_path):
    root = numbered(tmp_path / "cells", (4, 5, 7, 8, 6, 4))
    with pytest.raises(DatasetCorruptError, match="1 to 4 up to 1 to 8") as caught:
        load(root)
    assert "threshold = 1" in str(caught.value.hint)
    drafted = CliRunner().invoke(describe_data, [f"maskfolder:{root}"])
    assert "numbers of objects" in str(drafted.exception)
    (root / "dataset.toml").write_text("threshold = 1\n")
    data = load(root)
    assert data.spec.mask_values == (0, 1)
    assert {*first_target(data).unique().tolist()} == {0, 1}


def test_classes_that_are_blobs_stay_classes(tmp_path):
    load(numbered(tmp_path / "same", (4, 4, 4, 4, 4, 4)))  # all images have all classes
    load(numbered(tmp_path / "organs", (1, 2, 2, 1, 2, 1)))  # a tumour is not in each


def test_one_blob_has_no_hole_and_no_second_part(tmp_path):
    drawn = np.zeros((12, 12), np.uint8)
    drawn[1:4, 1:4], drawn[5:9, 5:9], drawn[6, 6], drawn[0, 8], drawn[10, 0] = 1, 2, 0, 3, 3
    Image.fromarray(drawn).save(tmp_path / "one.png")
    assert mask_facts(tmp_path / "one.png").whole & {1, 2, 3} == {1}


def test_a_class_that_training_lacks_is_a_fault(tmp_path):
    for split, values in (("train", (0, 1, 2)), ("test", (0, 1, 2, 3))):
        for number in range(4):
            image(tmp_path / split / "images" / f"{number}.png", number)
            mask(tmp_path / split / "masks" / f"{number}.png", values)
    (fault,) = load(tmp_path).faults
    assert "value 3, class '3', is in masks of test" in fault
    (tmp_path / "dataset.toml").write_text("ignore = [3]\n")
    assert load(tmp_path).faults == ()


def folder_per_class(root):
    for name, (path, drawn) in {
        f"{kind}{n}": (f"masks/{kind}/{n}.png", (0, 255))
        for kind in ("road", "car")
        for n in "123"
    }.items():
        image(root / "images" / f"{name[-1]}.png")
        mask(root / path, drawn)


def polygons(root):
    for number in range(3):
        image(root / "images" / "train" / f"{number}.png")
        (root / "labels" / "train").mkdir(parents=True, exist_ok=True)
        (root / "labels" / "train" / f"{number}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")


def polygons_beside(root):
    image(root / "images" / "1.png")
    (root / "images" / "1.txt").write_text("0 0.5 0.5 0.1 0.1\n")


def mask_per_object(root):
    for name in ("a1", "b2"):
        image(root / name / "images" / f"{name}.png")
        for number in range(2):
            mask(root / name / "masks" / f"{name}{number}c.png", (0, 255))


def stack(root):
    for name in ("images/volume.tif", "labels/labels.tif"):
        pages = [Image.fromarray(stripes((0, 255))) for _ in range(3)]
        (root / name).parent.mkdir(parents=True)
        pages[0].save(root / name, save_all=True, append_images=pages[1:])


def alpha(root):
    pairs(root, (0, 1))
    for path in (root / "masks").iterdir():
        drawn = np.zeros((*SIZE, 4), np.uint8)
        drawn[..., 3] = stripes((0, 255))
        Image.fromarray(drawn).save(path)


def two_suffixes(root):
    pairs(root, (0, 1))
    image(root / "images" / "3.jpg")


@pytest.mark.parametrize(
    ("build", "problem", "way_out"),
    [
        (folder_per_class, "folders car, road", "merge them into one mask per image"),
        (polygons, "train: holds .txt files, such as 0.txt", "draw the polygons"),
        (polygons_beside, "images: holds .txt files, such as 1.txt", "draw the polygons"),
        (mask_per_object, "2 folders, such as a1", "pixelwise maximum of all files in a1/masks"),
        (stack, "volume.tif: a stack", "save each page"),
        (alpha, "the classes seem to be in the alpha channel", "save it as grey"),
        (two_suffixes, "3.png: same name as 3.jpg", "a name of its own"),
    ],
)
def test_what_people_have_instead_is_named(tmp_path, build, problem, way_out):
    build(tmp_path)
    with pytest.raises(DatasetCorruptError) as caught:
        load(tmp_path)
    assert problem in caught.value.message
    assert way_out in caught.value.hint
    assert caught.value.exit_code == 3
