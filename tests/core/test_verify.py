"""`verify-data` on two hundred planted faults: each alone in a sound dataset, each found."""

from __future__ import annotations

import io
import shutil
import struct

import numpy as np
import pytest
from PIL import Image

from cnn_core.data.verify import verify

COUNT = 8  # images of each class, and of masks


def pil_image(seed, mode="RGB", size=(16, 16)):
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode, 1)
    shape = (*size, channels) if channels > 1 else size
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels, mode)


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A sound dataset of each kind, to be copied and harmed."""
    root = tmp_path_factory.mktemp("sound")
    seed = 0
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(COUNT):
                (folder / f"{number}.png").write_bytes(encoded(pil_image(seed)))
                seed += 1
    for part in ("images", "masks"):
        (root / "masked" / part).mkdir(parents=True)
    for number in range(COUNT):
        (root / "masked" / "images" / f"{number}.png").write_bytes(encoded(pil_image(seed)))
        values = np.random.default_rng(number).choice([0, 1, 2, 255], (16, 16)).astype(np.uint8)
        path = root / "masked" / "masks" / f"{number}.png"
        path.write_bytes(encoded(Image.fromarray(values, "L")))
        seed += 1
    idx(root / "mnist", "train", 60_000 // 100)
    idx(root / "mnist", "t10k", 10_000 // 100)
    return root


def idx(folder, name, count):
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    head = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
    (folder / f"{name}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    head = struct.pack(">4BI", 0, 0, 8, 1, count)
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def image_faults():
    """Yield (what, harm) for a file of images."""
    for at in (0, 1, 8, 20, 33, 50, 100, 200, 400, 700):
        yield f"cut at {at}", lambda data, at=at: data[:at]
    for at in range(1, 21):
        yield f"cut {at} from its end", lambda data, at=12 + 7 * at: data[:-at]
    yield "HTML", lambda data: b"<!DOCTYPE html><html><body>404</body></html>"
    yield "text", lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    yield "zeros", lambda data: bytes(len(data))
    for form in ("ICO", "EPS"):
        yield form, lambda data, form=form: encoded(pil_image(1), form)
    for mode in ("L", "RGBA", "LA"):
        yield mode, lambda data, mode=mode: encoded(pil_image(2, mode))
    yield "16 bit", lambda data: encoded(Image.fromarray(np.zeros((16, 16), np.uint16)))
    yield "CMYK", lambda data: encoded(pil_image(3, "CMYK"), "JPEG")
    for at in (30, 45, 60, 90, 150, 300, 500):
        yield f"a bit of {at}", lambda data, at=at: harmed(data, at)


def harmed(data, at):
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


IMAGE_FAULTS = list(image_faults())
PLACES = [("train", "cat", 0), ("train", "dog", 5), ("test", "cat", 7)]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize(("what", "harm"), IMAGE_FAULTS, ids=[what for what, _ in IMAGE_FAULTS])
def test_a_broken_image_is_found(folders, tmp_path, place, what, harm):
    root = shutil.copytree(folders / "images", tmp_path / "data")
    path = root / place[0] / place[1] / f"{place[2]}.png"
    path.write_bytes(harm(path.read_bytes()))
    faults = verify(f"imagefolder:{root}")
    assert any(str(path) in fault for fault in faults), faults
    assert len(faults) == 1


@pytest.mark.parametrize("number", range(COUNT))
def test_a_test_image_that_is_trained_on_is_found(folders, tmp_path, number):
    root = shutil.copytree(folders / "images", tmp_path / "data")
    shutil.copy(root / "train" / "dog" / f"{number}.png", root / "test" / "dog" / "copy.png")
    (fault,) = verify(f"imagefolder:{root}")
    assert "copy.png is also" in fault


def test_an_empty_class_is_found(folders, tmp_path):
    root = shutil.copytree(folders / "images", tmp_path / "data")
    shutil.rmtree(root / "test" / "cat")
    assert verify(f"imagefolder:{root}") == ["split 'test': no sample of class 'cat'"]


def paint(values):
    return encoded(Image.fromarray(np.array(values, dtype=np.uint8), "L"))


MASK_FAULTS = {
    "another height": paint(np.zeros((15, 16))),
    "another width": paint(np.zeros((16, 17))),
    "transposed": paint(np.zeros((20, 12))),
    "a colour": encoded(pil_image(0)),
    "16 bit": encoded(Image.fromarray(np.zeros((16, 16), np.uint16))),
    "empty": b"",
    "HTML": b"<html>no</html>",
    **{f"the value {v}": paint(np.full((16, 16), v)) for v in (4, 7, 100, 128, 200, 254)},
}


@pytest.mark.parametrize("number", [0, 6])
@pytest.mark.parametrize("what", MASK_FAULTS)
def test_a_broken_mask_is_found(folders, tmp_path, number, what):
    root = shutil.copytree(folders / "masked", tmp_path / "data")
    (root / "masks" / f"{number}.png").write_bytes(MASK_FAULTS[what])
    faults = verify(f"maskfolder:{root}")
    assert len(faults) == 1, faults
    assert "masks" in faults[0]


@pytest.mark.parametrize("part", ["images", "masks"])
def test_an_image_without_its_mask_is_found(folders, tmp_path, part):
    root = shutil.copytree(folders / "masked", tmp_path / "data")
    (root / part / "3.png").unlink()
    assert "3.png: has no" in verify(f"maskfolder:{root}")[0]


IDX_FILES = [
    f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]


def test_the_sound_ones_are_sound_but_for_what_is_small(folders):
    assert verify(f"imagefolder:{folders / 'images'}") == []
    assert verify(f"maskfolder:{folders / 'masked'}") == []
    assert verify("digits") == []
    assert verify("digit_scenes") == []
    assert verify("mnist", data_dir=folders / "mnist") == [
        "split 'train': 600 samples, expected 60,000",
        "split 'test': 100 samples, expected 10,000",
    ]


@pytest.mark.parametrize("file", IDX_FILES)
@pytest.mark.parametrize("at", [0, 2, 3, 4, 6, 7, "cut", "longer", "empty", "HTML"])
def test_a_broken_idx_file_is_found(folders, tmp_path, file, at):
    root = shutil.copytree(folders / "mnist", tmp_path / "data")
    path = root / f"{file}-ubyte"
    data = path.read_bytes()
    harm = {"cut": data[:-1], "longer": data + b"\0", "empty": b"", "HTML": b"<html></html>"}
    path.write_bytes(harm[at] if isinstance(at, str) else harmed(data, at))
    (fault,) = verify("mnist", data_dir=root)
    assert "samples, expected" not in fault
    assert str(path) in fault or "labels" in fault


@pytest.mark.parametrize("value", [10, 128, 255])
def test_labels_out_of_range_are_found(folders, tmp_path, value):
    root = shutil.copytree(folders / "mnist", tmp_path / "data")
    path = root / "train-labels-idx1-ubyte"
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([value]) + data[51:])
    (fault,) = verify("mnist", data_dir=root)
    assert f"labels from 0 to {value}, expected 0 to 9" in fault


def test_several_faults_are_all_listed_and_a_missing_file_hides_none(folders, tmp_path):
    root = shutil.copytree(folders / "images", tmp_path / "data")
    for number in range(3):
        (root / "train" / "cat" / f"{number}.png").write_bytes(b"")
    path = root / "test" / "dog" / "0.png"
    path.write_bytes(path.read_bytes()[:-10])
    assert len(verify(f"imagefolder:{root}")) == 4


def test_there_are_two_hundred_faults():
    planted = len(IMAGE_FAULTS) * len(PLACES) + COUNT + 1 + 2 * len(MASK_FAULTS) + 2
    assert planted + len(IDX_FILES) * 10 + 3 >= 200
