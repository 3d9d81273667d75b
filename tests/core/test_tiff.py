"""TIFF files of several channels: read as they were written, or refused with the one error."""

from __future__ import annotations

import struct
import sys
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from cnn_core import load_dataset
from cnn_core.data import images, tiff
from cnn_core.data.headers import image_facts
from cnn_core.data.images import read_image
from cnn_core.data.mask_image import exif_orientation, read_mask
from cnn_core.data.pixels import Reading
from cnn_core.data.readers.value_ranges import value_bounds
from cnn_core.errors import DatasetCorruptError, ResourceError, UsageError
from fuzzing import check, fuzz, mutated

tifffile = pytest.importorskip("tifffile")


def values(channels=5, dtype="uint8", size=(9, 14), seed=0):
    random = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return random.random((*size, channels)).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, (*size, channels), dtype, endpoint=True)


def write(path, array, planar=False, photometric="minisblack", **options):
    planes = np.moveaxis(array, -1, 0) if planar else array
    layout = "separate" if planar else "contig"
    tifffile.imwrite(
        path, planes, photometric=photometric, planarconfig=layout, metadata=None, **options
    )
    return path


def outcome(path, reading):
    """Return the pixels of a file of six channels, or the error without the file's name."""
    try:
        return read_image(path, 6, reading).tolist()
    except DatasetCorruptError as error:
        return str(error).replace(str(path), "")


def as_bytes(array, low, high):
    return np.rint((array.astype(np.float64) - low) / (high - low) * 255).astype(np.uint8)


# Read


@pytest.mark.parametrize("planar", [False, True], ids=["H W C", "C H W"])
@pytest.mark.parametrize("channels", [2, 3, 4, 5, 7, 12, 64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True, "rowsperstrip": 4},
        {"tile": (16, 16)},
        {"tile": (16, 16), "compression": "zlib", "byteorder": ">"},
        {"bigtiff": True},
    ],
    ids=str,
)
def test_all_channels_of_any_layout_are_read(tmp_path, planar, channels, options):
    array = values(channels)
    path = write(tmp_path / "a.tif", array, planar, **options)
    found = read_image(path, channels)
    assert np.array_equal(found.permute(1, 2, 0), array)
    facts = image_facts(path)
    assert (facts.size, facts.channels, facts.mode) == ((9, 14), channels, "uint8")
    assert not facts.deep
    assert facts.lost == ""


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32", "float64", "float16"])
@pytest.mark.parametrize("planar", [False, True])
def test_values_of_more_bits_are_those_of_arrays(tmp_path, dtype, planar):
    array = values(6, dtype)
    path = write(tmp_path / "a.tif", array, planar)
    low, high = float(array.min()), float(array.max())
    assert value_bounds(path) == (low, high)
    assert image_facts(path).deep
    np.save(tmp_path / "a.npy", array)
    for reading in (Reading(), Reading((low, high)), Reading((low, high - (high - low) / 9))):
        assert outcome(path, reading) == outcome(tmp_path / "a.npy", reading)
    whole = read_image(path, 6, Reading((low, high)))
    assert np.array_equal(whole.permute(1, 2, 0), as_bytes(array, low, high))


def test_colours_that_pillow_would_garble_or_drop_are_read(tmp_path):
    deep = values(3, "uint16")
    path = write(tmp_path / "a.tif", deep, planar=True, photometric="rgb")
    with Image.open(path) as image:  # if this fails, Pillow reads them, and we need not
        assert not np.array_equal(np.asarray(image), deep >> 8)
    assert np.array_equal(read_image(path, 3).permute(1, 2, 0), as_bytes(deep, 0, 65535))
    real = values(3, "float32")
    path = write(tmp_path / "b.tif", real, photometric="rgb")
    found = read_image(path, 3, Reading((0, 1)))
    assert np.array_equal(found.permute(1, 2, 0), as_bytes(real, 0, 1))
    infrared = values(4)
    path = write(tmp_path / "c.tif", infrared, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(read_image(path, 4).permute(1, 2, 0), infrared)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {}),
        ("LA", {}),
        ("RGB", {}),
        ("RGB", {"compression": "jpeg"}),
        ("RGBA", {}),
        ("CMYK", {}),
        ("P", {}),
        ("1", {}),
        ("I;16", {}),
        ("F", {}),
    ],
)
def test_images_of_grey_and_of_colours_stay_pillows(tmp_path, mode, options, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    path = tmp_path / "a.tif"
    Image.new(mode, (7, 5)).save(path, **options)
    read_image(path, 3, Reading((0, 65535)) if mode in ("F",) else Reading())
    planar = values(3)
    monkeypatch.undo()
    write(path, planar, planar=True, photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert np.array_equal(read_image(path, 3).permute(1, 2, 0), planar)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_they_are_turned_upright_as_pillow_turns_images(tmp_path, orientation):
    array = values(5)
    tag = (274, "H", 1, orientation, True)
    path = write(tmp_path / "a.tif", array, extratags=[tag])
    image = Image.fromarray(array[..., 0])
    image.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(read_image(path, 5)[0], expected)
    assert image_facts(path).size == expected.shape
    assert image_facts(path).turned == (orientation > 1)
    assert exif_orientation(path) == orientation  # a mask has to be turned likewise


def test_a_folder_of_them_is_a_dataset(tmp_path, cnnzoo):
    for number in range(8):
        path = tmp_path / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(exist_ok=True)
        write(path, values(5, "uint16", seed=number), planar=number % 3 == 0)
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert data.spec.image == (5, 9, 14)
    assert cnnzoo("verify-data", f"imagefolder:{tmp_path}").code == 0
    write(path, values(4, "uint16"))
    with pytest.raises(DatasetCorruptError, match=r"5 channels, but .*7\.tif has 4"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_pages_after_the_first_are_said_to_be_lost(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for number in range(2):
            page = values(5, seed=number)
            file.write(page, photometric="minisblack", planarconfig="contig", metadata=None)
    assert image_facts(path).lost == "frames or pages after the first"
    assert np.array_equal(read_image(path, 5).permute(1, 2, 0), values(5))


# Refused


def test_without_tifffile_it_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", values())
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for act in (lambda: read_image(path, 5), lambda: image_facts(path)):
        with pytest.raises(UsageError) as caught:
            act()
        assert str(caught.value) == (
            f"{path}: a TIFF of 5 channels, and tifffile is not installed\n"
            'pip install "cnn-core[tiff]"'
        )


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_another_number_of_channels_is_refused(tmp_path, channels):
    path = write(tmp_path / "a.tif", values(5))
    with pytest.raises(DatasetCorruptError, match=rf"a\.tif: 5 channels, expected {channels}"):
        read_image(path, channels)
    path = write(tmp_path / "b.tif", values(4))  # the fourth is no alpha
    with pytest.raises(DatasetCorruptError, match=r"b\.tif: 4 channels, expected 3"):
        read_image(path, 3)
    with pytest.raises(DatasetCorruptError, match="a TIFF of several channels, expected a mask"):
        read_mask(path)


def patched(path, tag, value):
    """Overwrite a tag with one 16-bit value; the file is little-endian."""
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].tags[tag].offset
    content = bytearray(path.read_bytes())
    struct.pack_into("<HIH", content, place + 2, 3, 1, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("tag", "value", "message"),
    [
        (277, 65, "65 channels, expected at most 64"),
        (256, 60_000, "failed to read"),
        (258, 7, r"channels of \[7\] bits in the sample formats \[1\]"),
        (262, 5, "photometric interpretation 5"),
        (259, 50001, "compressed with method 50001"),
        (259, 6, "compressed with method 6"),
    ],
)
def test_tags_of_another_kind_are_refused(tmp_path, tag, value, message):
    path = patched(write(tmp_path / "a.tif", values(6)), tag, value)
    with pytest.raises(DatasetCorruptError, match=rf"a\.tif: .*{message}"):
        read_image(path, 6)


def test_the_size_is_checked_before_pixels_are_read(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", values(6))
    monkeypatch.setattr(tiff, "MAX_PIXELS", 9 * 14 - 1)
    monkeypatch.setattr(tiff.Page, "pixels", None)
    with pytest.raises(DatasetCorruptError, match="14 x 9 pixels of 6 channels: expected 1 to"):
        read_image(path, 6)
    monkeypatch.undo()
    monkeypatch.setattr(tiff, "MAX_VALUES", 9 * 14 * 6 - 1)
    with pytest.raises(DatasetCorruptError, match="at most 755 values"):
        read_image(path, 6)


def test_what_is_missing_is_not_read_as_zeros(tmp_path):
    path = write(tmp_path / "a.tif", values(6), rowsperstrip=3, compression="zlib")
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[279]
        place = tag.valueoffset
    content = bytearray(path.read_bytes())
    struct.pack_into("<H" if tag.dtype == 3 else "<I", content, place, 0)
    path.write_bytes(content)
    with pytest.raises(DatasetCorruptError, match="cut off: a part of the pixels is missing"):
        read_image(path, 6)
    whole = write(tmp_path / "b.tif", values(6)).read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DatasetCorruptError, match=r"a\.tif: "):
        read_image(path, 6)


def test_a_strip_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", values(6), compression="zlib")
    bomb = zlib.compress(bytes(50_000_000), 9)
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        offset, count = tags[273], tags[279]
    content = bytearray(path.read_bytes())
    for tag, value in ((offset, len(content)), (count, len(bomb))):
        struct.pack_into("<H" if tag.dtype == 3 else "<I", content, tag.valueoffset, value)
    path.write_bytes(bytes(content) + bomb)
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("unpacked without a limit"))
    with pytest.raises(DatasetCorruptError, match="a strip or tile unpacks to too much"):
        read_image(path, 6)


def test_lack_of_memory_is_no_fault_of_the_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", values(6))

    def starved(*_, **__):
        raise MemoryError

    monkeypatch.setattr(tifffile.TiffPage, "asarray", starved)
    with pytest.raises(ResourceError, match="out of memory"):
        read_image(path, 6)


# Fuzzing


def sound_files(folder):
    path = folder / "sound.tif"
    options = [
        {},
        {"compression": "zlib", "rowsperstrip": 4},
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
    ]
    for planar in (False, True):
        for option in options:
            yield write(path, values(6, "uint16"), planar, **option).read_bytes()


def is_right(path, number):
    channels = 6
    with suppress(DatasetCorruptError):
        channels = image_facts(path).channels
    pixels = read_image(path, channels if channels <= 64 else 1)
    return pixels.dtype == torch.uint8 and pixels.shape[0] == channels


def fuzzed(folder, count):
    sounds = list(sound_files(folder))

    def near_the_tags(random, size):
        return (
            random.randrange(min(300, size)) if random.random() < 0.8 else random.randrange(size)
        )

    def case(random, number):
        return folder / "fuzz", mutated(random, sounds[number % len(sounds)], near_the_tags)

    return fuzz(count, case, is_right)


def test_300_mutated_files_raise_nothing_else(tmp_path):
    check(fuzzed(tmp_path, 300), 300, refused=1 / 10)


@pytest.mark.slow
def test_10000_mutated_files_raise_nothing_else(tmp_path):
    check(fuzzed(tmp_path, 10_000), 10_000, refused=1 / 10)


def test_the_limits_are_those_of_all_images():
    assert images.MAX_PIXELS == tiff.MAX_PIXELS == 100_000_000
