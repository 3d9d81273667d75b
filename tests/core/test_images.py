"""Image files: decoded as Pillow does, upright, and every broken one the same single error."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import fuzzing
from cnn_core.data import images
from cnn_core.data.formats import FORMATS
from cnn_core.data.headers import image_facts, probe_image
from cnn_core.data.images import read_image
from cnn_core.data.mask_image import read_mask
from cnn_core.data.pixels import Reading
from cnn_core.errors import DatasetCorruptError, ResourceError, UsageError
from fuzzing import alone, check, fuzz, mutated

LOSSLESS = {"png": "PNG", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}


def pil_image(mode="RGB", height=5, width=7):
    """An image of random pixels; the palette of "P" is random too."""
    rng = np.random.default_rng(0)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if mode == "1":
        return (
            Image.fromarray(pixels[:, :, 0]).point(lambda value: 255 * (value > 99)).convert("1")
        )
    found = Image.frombytes(mode, (width, height), pixels.tobytes())
    if mode == "P":
        found.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return found


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def chunk(name, data):
    body = name + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png(height, width, bits, colour, pixels):
    """A PNG, for kinds that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("suffix", sorted(LOSSLESS))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_come_back_channel_by_channel_and_row_by_row(tmp_path, suffix, channels):
    image = pil_image("P" if suffix == "gif" else "RGB")
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    found = read_image(path, channels)
    assert found.shape == (channels, 5, 7)
    assert found.dtype == torch.uint8
    assert found.permute(1, 2, 0).is_contiguous()  # channels last, as decoded
    colours = image.convert("RGB")
    if channels == 1:
        expected = [[colours.convert("L").getpixel((x, y)) for x in range(7)] for y in range(5)]
        assert found[0].tolist() == expected
        return
    for number in range(3):
        expected = [[colours.getpixel((x, y))[number] for x in range(7)] for y in range(5)]
        assert found[number].tolist() == expected
    assert channels == 3 or bool((found[3] == 255).all())


def test_a_photograph_is_nearly_what_it_was(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (9, 4), (200, 100, 50)).save(path, quality=95)
    found = read_image(path, 3)
    assert found.shape == (3, 4, 9)
    assert (found.float().mean((1, 2)) - torch.tensor([200.0, 100, 50])).abs().max() < 3


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("CMYK", "TIFF"),
        ("YCbCr", "TIFF"),
    ],
)
def test_every_mode_is_converted_as_pillow_does(tmp_path, mode, kind, channels):
    image = pil_image(mode)
    path = tmp_path / "a"
    image.save(path, kind)
    wanted = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    expected = np.array(image.convert(wanted)).reshape(5, 7, channels).transpose(2, 0, 1)
    hidden = Reading(alpha_background="drop")
    assert torch.equal(read_image(path, channels, hidden), torch.from_numpy(expected))
    assert probe_image(path) == (5, 7, mode)
    assert image_facts(path).alpha == (mode in ("LA", "RGBA"))


def shown_on(background, rgba):
    """An image, H W 4, on a background, as W3C's compositing has it: the oracle."""
    alpha = rgba[..., 3:].astype(float) / 255
    return np.rint(rgba[..., :3] * alpha + background * (1 - alpha)).transpose(2, 0, 1)


@pytest.mark.parametrize("background", ["white", "black"])
@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "RGB", "L"])
def test_transparent_parts_show_the_background(tmp_path, mode, background):
    image, path = pil_image(mode), tmp_path / "a.png"
    transparency = {"P": bytes(range(256)), "RGB": image.convert("RGB").getpixel((2, 2)), "L": 97}
    image.save(path, **({"transparency": transparency[mode]} if mode in transparency else {}))
    rgba = np.array(Image.open(path).convert("RGBA"))
    expected = shown_on(255 if background == "white" else 0, rgba)
    found = read_image(path, 3, Reading(alpha_background=background))
    assert (found.double() - torch.from_numpy(expected)).abs().max() <= 1
    if background == "white":
        assert torch.equal(read_image(path, 3), found)
    assert image_facts(path).alpha


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palette_with_transparency_and_nothing_is_warned_of(tmp_path, transparency):
    image = pil_image("P")
    path = tmp_path / "a.png"
    image.save(path, transparency=transparency)
    expected = np.array(image.convert("RGB")).transpose(2, 0, 1)
    hidden = read_image(path, 3, Reading(alpha_background="drop"))
    assert torch.equal(hidden, torch.from_numpy(expected))
    alpha = read_image(path, 4)[3]
    index = torch.from_numpy(np.array(image))
    single = transparency == 3
    assert torch.equal(alpha, torch.where(index == 3, 0, 255) if single else index)


def test_the_colour_under_a_transparent_pixel_is_shown_only_if_asked_for(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (2, 3), (10, 20, 30, 0)).save(path)
    assert read_image(path, 3)[:, 0, 0].tolist() == [255, 255, 255]
    assert read_image(path, 1)[:, 0, 0].tolist() == [255]
    drop = Reading(alpha_background="drop")
    assert read_image(path, 3, drop)[:, 0, 0].tolist() == [10, 20, 30]
    assert read_image(path, 4)[:, 0, 0].tolist() == [10, 20, 30, 0]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, kind):
    frames = [Image.new("L", (6, 4), value) for value in (10, 200, 100)]
    path = tmp_path / "a"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    assert read_image(path, 1).unique().tolist() == [10]
    assert probe_image(path)[:2] == (4, 6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_masks_and_their_sizes_are_upright(tmp_path, kind, orientation):
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :8] = 255  # the corner on the left and at the top
    upright[:8, 8:16] = 120
    back = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, 3),
    }[orientation]
    path = tmp_path / "a"
    options = {"quality": 100} if kind == "JPEG" else {}
    image = Image.fromarray(np.ascontiguousarray(back))
    image.save(path, kind, exif=turned(orientation), **options)
    for found in (read_image(path, 1)[0], read_image(path, 3)[2], read_mask(path)):
        assert found.shape == (16, 32)
        assert (found.int() - torch.from_numpy(upright).int()).abs().max() <= 2
    assert probe_image(path) == (16, 32, "L")


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_orientation_that_is_none_changes_nothing(tmp_path, orientation):
    path = tmp_path / "a.png"
    pil_image("L").save(path, exif=turned(orientation))
    assert torch.equal(read_image(path, 1)[0], torch.from_numpy(np.array(pil_image("L"))))


def test_an_orientation_behind_the_pixels_counts_nowhere(tmp_path):
    data = encoded(pil_image("L"), "PNG", exif=turned(6))
    start = data.index(b"eXIf") - 4
    size = 12 + struct.unpack_from(">I", data, start)[0]
    late = data[:start] + data[start + size : -12] + data[start : start + size] + data[-12:]
    path = tmp_path / "a.png"
    path.write_bytes(late)
    assert probe_image(path) == (5, 7, "L")
    assert read_image(path, 1).shape == (1, 5, 7)
    assert read_mask(path).shape == (5, 7)


DEEP = {
    "I;16": (np.full((2, 3), 999, np.uint16), "PNG", "16-bit grey (I;16)"),
    "I;16 TIFF": (np.full((2, 3), 999, np.uint16), "TIFF", "16-bit grey (I;16)"),
    "I": (np.full((2, 3), 99999, np.int32), "TIFF", "32-bit integers (I)"),
    "F": (np.full((2, 3), 0.5, np.float32), "TIFF", "32-bit floats (F)"),
}


@pytest.mark.parametrize("case", sorted(DEEP))
def test_more_than_eight_bits_a_channel_need_a_range(tmp_path, case):
    array, kind, name = DEEP[case]
    path = tmp_path / "deep"
    Image.fromarray(array).save(path, kind)
    low, high = 0.0, 2.0 * float(array.max())
    declared = read_image(path, 1, Reading((low, high)))
    assert declared.unique().tolist() == [128]  # the middle of 0 to 255, rounded to even
    if case.startswith("I;16"):
        assert read_image(path, 1).unique().tolist() == [round(255 * 999 / 65535)]
        assert read_image(path, 3).shape == (3, 2, 3)
    else:
        with pytest.raises(
            DatasetCorruptError, match=r"undeclared range\n.*value_range"
        ) as caught:
            read_image(path, 1)
        assert caught.value.message.startswith(f"{path}: {name} from ")
    with pytest.raises(DatasetCorruptError, match=r"outside of the range 0 to 0\.1"):
        read_image(path, 1, Reading((0.0, 0.1)))
    if array.dtype != np.float32 and array.max() < 65536:
        assert torch.equal(read_mask(path), torch.from_numpy(array.astype(np.int32)))
    else:
        with pytest.raises(DatasetCorruptError, match=r"expected 0 to 65,535|32-bit floats \(F\)"):
            read_mask(path)
    assert probe_image(path) == (2, 3, case.split()[0])
    assert image_facts(path).deep


def test_a_range_is_kept_value_by_value_and_nan_is_refused(tmp_path):
    path = tmp_path / "a.tiff"
    values = np.array([[0, 1, 1000], [2047, 2048, 4095]], np.uint16)
    Image.fromarray(values).save(path)
    expected = np.rint(values.astype(float) * 255 / 4095)
    found = read_image(path, 1, Reading((0, 4095)))
    assert np.array_equal(found[0].numpy(), expected)
    Image.fromarray(np.array([[0.5, np.nan]], np.float32)).save(path)
    with pytest.raises(DatasetCorruptError, match="values from nan to nan, outside"):
        read_image(path, 1, Reading((0, 1)))


def test_sixteen_bits_a_colour_are_its_upper_eight_or_refused(tmp_path):
    path, values = tmp_path / "a.png", np.arange(0, 65536, 10923, dtype=">u2").reshape(1, 2, 3)
    path.write_bytes(png(1, 2, 16, 2, b"\0" + values.tobytes()))
    assert np.array_equal(read_image(path, 3).permute(1, 2, 0).numpy(), values >> 8)
    assert image_facts(path).deep
    with pytest.raises(DatasetCorruptError, match=r"16-bit colour .*\nsave it as an array"):
        read_image(path, 3, Reading((0, 4095)))


@pytest.mark.parametrize("bounds", [(1,), (0, 0), (2, 1), ("a", "b"), (0, 1, 2)])
def test_a_range_is_two_numbers(bounds):
    with pytest.raises(UsageError, match=r"value_range = .* expected two numbers"):
        Reading(bounds)


def test_arrays_have_any_number_of_channels(tmp_path):
    path, random = tmp_path / "a.npy", np.random.default_rng(0)
    values = random.integers(0, 256, (4, 6, 5), dtype=np.uint8)
    np.save(path, values)
    assert torch.equal(read_image(path, 5), torch.from_numpy(values).permute(2, 0, 1))
    assert image_facts(path).channels == 5
    with pytest.raises(DatasetCorruptError, match="5 channels, expected 3"):
        read_image(path, 3)
    np.save(path, values[..., 0] > 100)
    assert read_image(path, 1).unique().tolist() == [0, 255]
    assert read_image(path, 3).shape == (3, 4, 6)
    np.save(path, values.astype(np.uint16) * 257)
    assert torch.equal(read_image(path, 5), torch.from_numpy(values).permute(2, 0, 1))
    np.save(path, values.astype(np.float32) / 255)
    with pytest.raises(
        DatasetCorruptError, match=r"float32 from 0 to [01].*, of an undeclared range"
    ):
        read_image(path, 5)
    assert np.array_equal(read_image(path, 5, Reading((0, 1))).permute(1, 2, 0), values)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 8, 80)),
        np.zeros(5),
        np.zeros((0, 4)),
        np.zeros((2, 2), complex),
        np.array([[None]]),
    ],
    ids=["C H W", "flat", "empty", "complex", "objects"],
)
def test_other_arrays_are_refused(tmp_path, array):
    path = tmp_path / "a.npy"
    np.save(path, array, allow_pickle=True)
    for read in (image_facts, lambda file: read_image(file, 1)):
        with pytest.raises(DatasetCorruptError, match=r"a\.npy: "):
            read(path)


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt", b"tEXt"])
def test_large_metadata_do_not_stop_the_pixels(tmp_path, kind, where):
    large = zlib.compress(bytes(3_000_000))
    content = {
        b"iCCP": b"icc\0\0" + large,
        b"zTXt": b"note\0\0" + large,
        b"iTXt": b"note\0\1\0\0\0" + large,
        b"tEXt": b"note\0" + b"x" * 3_000_000,
    }[kind]
    sound, path = encoded(pil_image(), "PNG", exif=turned(6)), tmp_path / "a.png"
    cut = sound.index(b"IDAT") - 4 if where == "before" else len(sound) - 12
    path.write_bytes(sound[:cut] + chunk(kind, content) + sound[cut:])
    expected = np.rot90(np.array(pil_image()), 3).transpose(2, 0, 1)
    assert np.array_equal(read_image(path, 3), expected)
    assert probe_image(path) == (7, 5, "RGB")


@pytest.mark.parametrize("kind", FORMATS)
def test_the_bytes_decide_and_not_the_name(tmp_path, kind):
    for name in ("a", "a.jpg", "a.txt"):
        path = tmp_path / name
        path.write_bytes(encoded(pil_image("RGB"), kind))
        assert read_image(path, 3).shape == (3, 5, 7)
        assert probe_image(path)[:2] == (5, 7)


UNREAD = {
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(90), "HEIC, which is not read"),
    "jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(90), "JPEG 2000"),
    "jxl": (b"\xff\x0a" + bytes(90), "JPEG XL"),
    "svg": (b'<?xml version="1.0"?>\n<svg width="3">', "SVG"),
    "psd": (b"8BPS" + bytes(90), "Photoshop"),
    "dcm": (bytes(128) + b"DICM" + bytes(90), "DICOM"),
    "nef": (b"II*\0" + bytes(90), "camera raw"),
}


@pytest.mark.parametrize("name", sorted(UNREAD))
def test_an_image_of_another_format_is_named_with_the_way_to_convert_it(tmp_path, name):
    data, found = UNREAD[name]
    path = tmp_path / f"a.{name}"
    path.write_bytes(data)
    with pytest.raises(
        DatasetCorruptError, match=f"{found}.*; convert it: magick mogrify -format png .*{name}"
    ):
        read_image(path, 3)
    if name not in ("nef",):  # whatever it is called
        path = path.rename(tmp_path / "a.jpg")
        with pytest.raises(DatasetCorruptError, match=found):
            probe_image(path)


def test_other_modes_are_refused_by_name(tmp_path):
    path = tmp_path / "a.tiff"
    pil_image("LAB").save(path)
    with pytest.raises(DatasetCorruptError, match="mode LAB: expected one of 1, L, LA, La, P"):
        read_image(path, 3)


@pytest.mark.parametrize("channels", [0, 2, 5, 65, -1])
def test_other_numbers_of_channels_are_refused(tmp_path, channels):
    path = tmp_path / "a.png"
    pil_image().save(path)
    possible = 1 <= channels <= 64  # of arrays and TIFFs
    error = DatasetCorruptError if possible else UsageError
    message = rf"a\.png: an image of 1, 3 or 4 channels, expected {channels}\nimages of other"
    with pytest.raises(error, match=message if possible else f"channels = {channels}: expected 1"):
        read_image(path, channels)


@pytest.mark.parametrize("suffix", sorted(LOSSLESS))
def test_a_mask_with_a_palette_is_its_indices(tmp_path, suffix):
    index = np.arange(35, dtype=np.uint8).reshape(5, 7)
    image = Image.frombytes("P", (7, 5), index.tobytes())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    path = tmp_path / f"a.{suffix}"
    image.save(path, **({"optimize": False} if suffix == "gif" else {}))
    found = read_mask(path)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(index))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff"])
def test_a_grey_mask_is_its_values(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    pil_image("L").save(path)
    assert torch.equal(read_mask(path), torch.from_numpy(np.array(pil_image("L"))))


def test_a_mask_of_one_bit_is_black_and_white(tmp_path):
    path = tmp_path / "a.png"
    pil_image("1").save(path)
    expected = torch.from_numpy(np.array(pil_image("1")))
    assert torch.equal(read_mask(path), expected.to(torch.uint8) * 255)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_mask_of_colours_is_refused_by_name(tmp_path, mode):
    path = tmp_path / "a.png"
    pil_image(mode).save(path)
    wrong = "a mask in colour, such as #" if mode == "RGB" else f"mode {mode}: .* transparent"
    with pytest.raises(DatasetCorruptError, match=wrong):
        read_mask(path)


def test_a_grey_mask_of_few_bits_is_refused_because_pillow_scales_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(1, 4, 4, 0, b"\0\x12\x34"))
    assert read_image(path, 1).tolist() == [[[17, 34, 51, 68]]]
    with pytest.raises(DatasetCorruptError, match=r"4-bit grey \(L;4\): expected 1, 8 or 16 bits"):
        read_mask(path)
    few = pil_image("P").point(lambda value: value % 4)
    few.save(path, bits=2)
    assert torch.equal(read_mask(path), torch.from_numpy(np.array(few)))  # a palette may be


READERS = {
    "image": lambda path: read_image(path, 3),
    "mask": read_mask,
    "probe": probe_image,
}


def broken():
    """Files that are no image, by what is wrong; and what the error has to say."""
    sound = encoded(pil_image("L", 40, 40), "PNG")
    return {
        "empty": (b"", "an empty file, not an image"),
        "html": (b"\n<!DOCTYPE html><title>404</title>", "HTML, not an image"),
        "html in capitals": (b"\xef\xbb\xbf<HTML>", "HTML, not an image"),
        "text": (b"hello there", "it starts with the bytes 68 65 6c 6c 6f 20 74 68"),
        "zip": (b"PK\x03\x04" + bytes(90), "an archive, not an image"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        "half a header": (sound[:20], "not a readable image"),
        "a wrong checksum": (sound[:20] + b"\x99" + sound[21:], "not a readable image"),
        "nothing wide": (png(4, 0, 8, 0, b"\0" * 4), "not a readable image|0 x 4 pixels"),
        "a bomb": (png(20_000, 20_000, 1, 0, b""), "too many pixels: expected 1 to 100,000,000"),
        "a small bomb": (
            png(9_500, 11_000, 1, 0, b""),
            "11000 x 9500 pixels: expected 1 to 100,000,000",
        ),
    }


@pytest.mark.parametrize("reader", sorted(READERS))
@pytest.mark.parametrize("case", sorted(broken()))
def test_a_file_that_is_no_image_is_one_error_that_says_what_it_is(tmp_path, case, reader):
    data, found = broken()[case]
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(DatasetCorruptError, match=found) as caught:
        READERS[reader](path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.hint == "formats: JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM, AVIF, NPY"
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("reader", sorted(READERS))
def test_what_is_no_file_is_the_same_error(tmp_path, reader):
    os.mkfifo(tmp_path / "fifo")
    for name in ("none.png", "", "fifo", "\0", "n" * 300):
        with pytest.raises(DatasetCorruptError):
            READERS[reader](tmp_path / name)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_in_its_pixels_is_refused_but_its_header_is_read(tmp_path, kind):
    data = encoded(pil_image("L", 60, 70), kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) * 3 // 4])
    for read in (READERS["image"], read_mask):
        with pytest.raises(DatasetCorruptError, match="cut: not a readable image: "):
            read(path)
    # The header of a TIFF is at its end, and the others know their size beforehand.
    if kind not in ("TIFF", "WEBP", "AVIF"):
        assert probe_image(path)[:2] == (60, 70)


def test_a_header_is_read_without_the_pixels(tmp_path, monkeypatch):
    paths = [tmp_path / kind for kind in FORMATS]
    for path in paths:
        pil_image("L").save(path, path.name)

    def load(image):
        raise AssertionError("the pixels were read")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", load)
    assert [probe_image(path)[:2] for path in paths] == [(5, 7)] * len(FORMATS)
    with pytest.raises(DatasetCorruptError, match="the pixels were read"):
        read_image(paths[1], 1)


def test_out_of_memory_is_not_called_a_broken_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    pil_image().save(path)

    def load(image):
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(ResourceError, match="out of memory for 7 x 5 pixels"):
        read_image(path, 3)


def test_warnings_are_silent_in_every_thread_and_as_before_afterwards(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(png(9_000, 10_000, 1, 0, b""))  # Pillow warns from 89 million pixels on
    before = list(warnings.filters)
    failures = []

    def probe():
        try:
            for _ in range(50):
                probe_image(path)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=probe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert list(warnings.filters) == before
    with pytest.warns(Image.DecompressionBombWarning), Image.open(path):
        pass


def test_warnings_stay_silent_until_the_last_reader_is_done():
    with images._SUPPRESS_WARNINGS:
        with images._SUPPRESS_WARNINGS:
            pass
        warnings.warn("another thread still reads", stacklevel=1)  # an error, if not silent
    with pytest.warns(UserWarning, match="nobody reads"):
        warnings.warn("nobody reads", stacklevel=1)


def test_names_are_sorted_and_there():
    assert images.__all__ == sorted(images.__all__)
    assert all(hasattr(images, name) for name in images.__all__)


# Fuzzing. This file run as a script does it in a process of its own.


def array_file(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def sound_files():
    grey, colours = pil_image("L", 24, 31), pil_image("RGB", 24, 31)
    return {
        "png": [
            encoded(colours, "PNG", exif=turned(6)),
            encoded(pil_image("P", 24, 31), "PNG", transparency=bytes(range(256))),
            encoded(pil_image("LA", 24, 31), "PNG"),
        ],
        "jpeg": [
            encoded(colours, "JPEG", exif=turned(5)),
            encoded(grey, "JPEG", progressive=True),
            encoded(pil_image("CMYK", 24, 31), "JPEG"),
        ],
        "gif": [encoded(pil_image("P", 24, 31), "GIF"), encoded(grey, "GIF", interlace=0)],
        "bmp": [encoded(colours, "BMP"), encoded(pil_image("P", 24, 31), "BMP")],
        "tiff": [
            encoded(colours, "TIFF", exif=turned(8)),
            encoded(colours, "TIFF", compression="tiff_lzw"),
            encoded(colours, "TIFF", compression="jpeg"),
            encoded(pil_image("1", 24, 31), "TIFF", compression="group4"),
            encoded(pil_image("P", 24, 31), "TIFF", compression="tiff_adobe_deflate"),
            encoded(Image.fromarray(np.arange(744, dtype=np.uint16).reshape(24, 31)), "TIFF"),
        ],
        "webp": [
            encoded(colours, "WEBP", exif=turned(6)),
            encoded(pil_image("RGBA", 24, 31), "WEBP", lossless=True),
        ],
        "avif": [encoded(colours, "AVIF"), encoded(pil_image("RGBA", 24, 31), "AVIF")],
        "ppm": [encoded(colours, "PPM"), encoded(pil_image("1", 24, 31), "PPM")],
        "npy": [array_file(np.zeros((24, 31, 3), np.uint8)), array_file(np.zeros((24, 31), "u2"))],
    }


def resealed(data):
    """A PNG with right checksums, so that what is wrong with it gets further."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        if at + 12 + size > len(data):
            break
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return b"".join(parts) + data[at:]


def near_a_header(rng, size):
    at = rng.randrange(60 if rng.random() < 0.4 else size)
    if rng.random() < 0.3:
        at = max(0, size - 1 - rng.randrange(200))  # a TIFF's header is at its end
    return at


def fuzz_format(kind, folder, count):
    """Outcomes of reading mutated files of one format, each in all three ways."""
    sounds = sound_files()[kind]

    def case(rng, number):
        data = mutated(rng, sounds[number % len(sounds)], near_a_header)
        return folder / "fuzz", resealed(data) if kind == "png" and rng.random() < 0.8 else data

    return fuzz(count, case, is_right)


def is_right(path, number):
    channels, shape, mask = (1, 3, 4)[number % 3], None, None
    with suppress(DatasetCorruptError):
        shape = probe_image(path)
    with suppress(DatasetCorruptError):
        mask = read_mask(path)
    # 16-bit masks are int32.
    dtypes = (torch.uint8, torch.int32)
    if mask is not None and (mask.dtype not in dtypes or mask.shape != shape[:2]):
        return False
    pixels = read_image(path, channels)
    return pixels.dtype == torch.uint8 and pixels.shape == (channels, *shape[:2])


def fuzz_all(folder, count):
    return {kind: fuzz_format(kind, folder, count) for kind in sound_files()}


@pytest.mark.parametrize("kind", sorted(sound_files()))
def test_300_mutated_files_raise_nothing_else(tmp_path, kind):
    check(fuzz_format(kind, tmp_path, 300), 300, refused=1 / 10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(sound_files()))
def test_10000_mutated_files_raise_nothing_else(tmp_path, kind):
    check(fuzz_format(kind, tmp_path, 10_000), 10_000, refused=1 / 10)


def test_without_assertions_it_is_the_same_and_takes_little_memory(tmp_path):
    found = alone(__file__, "all", tmp_path, 300, "-O", "-W", "error")
    for kind in sound_files():
        check(found[kind], 300, refused=1 / 10)
    assert found["grown"] < 64


if __name__ == "__main__":
    fuzz_all(Path(sys.argv[2]), 3)  # loads Pillow's plugins
    fuzzing.main({"all": fuzz_all})
