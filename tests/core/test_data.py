"""Datasets: the IDX reader under fire, the embedded digits, preprocessing, augmentation."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cnn_core import load_dataset, registry
from cnn_core.data import Preprocessing
from cnn_core.data.readers.idx import read_idx
from cnn_core.errors import DatasetCorruptError, DatasetMissingError, UsageError
from fuzzing import check, fuzz, mutated


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(folder, images=10, labels=10, *, zipped=False, highest=10):
    """Write the four files of a tiny dataset in MNIST's format."""
    random_ = np.random.default_rng(0)
    for part, count in (("train", images), ("t10k", 4)):
        arrays = {
            f"{part}-images-idx3-ubyte": random_.integers(0, 256, (count, 28, 28)),
            f"{part}-labels-idx1-ubyte": random_.integers(
                0, highest, labels if part == "train" else count
            ),
        }
        for name, array in arrays.items():
            data = gzip.compress(idx(array)) if zipped else idx(array)
            (folder / (name + (".gz" if zipped else ""))).write_bytes(data)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (5, 4, 6), (0, 28, 28)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_back(tmp_path, shape, suffix):
    array = np.random.default_rng(0).integers(0, 256, shape)
    path = tmp_path / f"a-idx{suffix}"
    path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    assert torch.equal(read_idx(path, len(shape)), torch.from_numpy(array).to(torch.uint8))


def hostile():
    """Files that are not what they say, by what is wrong with them."""
    sound = idx(np.zeros((3, 4, 4)))
    claims = bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)
    return {
        "empty": b"",
        "half a magic number": b"\0\0",
        "half a header": sound[:9],
        "no elements": sound[:16],
        "one byte short": sound[:-1],
        "one byte more": sound + b"\0",
        "wrong number of dimensions": idx(np.zeros((3, 4))),
        "floats": bytes((0, 0, 0x0D, 3)) + sound[4:],
        "html": b"<!doctype html><title>404</title>",
        "claims 2**96 bytes": claims + b"\0" * 100,
        "claims 4 GB": bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**16, 2**8, 2**8) + b"\0" * 9,
    }


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("case", sorted(hostile()))
def test_a_bad_idx_file_is_one_error_that_names_it(tmp_path, case, suffix):
    path = tmp_path / f"bad-idx3-ubyte{suffix}"
    data = hostile()[case]
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(DatasetCorruptError, match="bad-idx3-ubyte") as caught:
        read_idx(path, 3)
    assert caught.value.exit_code == 3
    assert 1 <= str(caught.value).count("\n") + 1 <= 3


@pytest.mark.parametrize("cut", [0, 5, 20, -4])
def test_a_bad_gzip_file_is_the_same_error(tmp_path, cut):
    path = tmp_path / "bad-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx(np.ones((3, 4, 4))))[:cut])
    with pytest.raises(DatasetCorruptError, match="bad-idx3-ubyte"):
        read_idx(path, 3)


def fuzz_idx(folder, count):
    sound = idx(np.arange(48).reshape(3, 4, 4))

    def case(rng, number):
        if number % 2:
            return folder / "fuzz.gz", mutated(rng, gzip.compress(sound, mtime=0))
        return folder / "fuzz", mutated(rng, sound)

    def read(path, number):
        found = read_idx(path, 3)
        return found.dtype == torch.uint8 and found.ndim == 3 and found.numel() < 100

    check(fuzz(count, case, read), count, read=0, refused=1 / 2)


def test_500_mutated_idx_files_raise_nothing_else(tmp_path):
    fuzz_idx(tmp_path, 500)


@pytest.mark.slow
def test_10000_mutated_idx_files_raise_nothing_else(tmp_path):
    fuzz_idx(tmp_path, 10_000)


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    whole = datasets.load_digits()
    data = load_dataset("digits")
    images = torch.cat([data.split("train").images, data.split("test").images])
    expected = torch.from_numpy((whole.images * 255 / 16).round()).to(torch.uint8)
    assert sorted(images.flatten(1).tolist()) == sorted(expected.flatten(1).tolist())
    assert len(data.split("train")) == data.spec.splits["train"] == 1438
    assert len(data.split("test")) == data.spec.splits["test"] == 359


def test_digits_have_every_class_alike_in_both_splits_and_share_none():
    data = load_dataset("digits")
    counts = data.split("test").targets.bincount()
    assert counts.min() >= 34
    assert counts.max() <= 38
    train = {tuple(image.flatten().tolist()) for image in data.split("train").images}
    test = {tuple(image.flatten().tolist()) for image in data.split("test").images}
    assert len(train) + len(test) == 1797
    assert not train & test


@pytest.mark.parametrize("name", ["digits"])
def test_the_declared_statistics_are_those_of_the_images(name):
    spec = registry.datasets().get(name)
    pixels = load_dataset(name).split("train").images.double() / 255
    assert pixels.mean().item() == pytest.approx(spec.mean[0], abs=2e-3)
    assert pixels.std().item() == pytest.approx(spec.std[0], abs=2e-3)


@pytest.mark.data
def test_fashion_mnist_is_what_its_spec_says(fashion):
    data = load_dataset("fashion_mnist", data_dir=fashion)
    assert {name: len(split) for name, split in data.splits.items()} == data.spec.splits
    pixels = data.split("train").images.double() / 255
    assert pixels.mean().item() == pytest.approx(data.spec.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(data.spec.std[0], abs=1e-4)
    assert data.split("test").targets.bincount().tolist() == [1000] * 10


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_files_are_found_zipped_or_not_and_where_torchvision_puts_them(tmp_path, zipped):
    write_mnist(tmp_path, zipped=zipped)
    assert load_dataset("mnist", data_dir=tmp_path).split("train").images.shape == (10, 1, 28, 28)
    raw = tmp_path / "other" / "raw"
    raw.mkdir(parents=True)
    write_mnist(raw, zipped=zipped)
    assert len(load_dataset("mnist", data_dir=tmp_path / "other").split("test")) == 4


def test_images_and_labels_that_do_not_match_are_refused(tmp_path):
    write_mnist(tmp_path, images=10, labels=7)
    with pytest.raises(DatasetCorruptError, match=r"'mnist', split 'train': 10 images but 7"):
        load_dataset("mnist", data_dir=tmp_path)


def test_labels_beyond_the_classes_are_refused(tmp_path):
    write_mnist(tmp_path, highest=200)
    with pytest.raises(DatasetCorruptError, match=r"labels from .* expected 0 to 9"):
        load_dataset("mnist", data_dir=tmp_path)


def test_a_missing_data_set_says_where_it_looked_and_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNZOO_CACHE", str(tmp_path))
    with pytest.raises(DatasetMissingError) as caught:
        load_dataset("fashion_mnist")
    assert str(tmp_path / "fashion_mnist") in str(caught.value)
    assert "--download" in str(caught.value)
    assert "--data-dir" in str(caught.value)


def test_an_unknown_split_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match="'tests', did you mean 'test'"):
        load_dataset("digits").split("tests")


def test_validation_is_held_out_class_by_class_and_nothing_is_lost():
    data = load_dataset("digits")
    train, held = data.hold_out(0.1, seed=3)
    assert len(train) + len(held) == 1438
    assert held.targets.bincount().min() >= 14
    again, _ = data.hold_out(0.1, seed=3)
    other, _ = data.hold_out(0.1, seed=4)
    assert torch.equal(train.images, again.images)
    assert not torch.equal(train.images, other.images)
    everything, nothing = data.hold_out(0.0, seed=0)
    assert (len(everything), len(nothing)) == (1438, 0)


def preprocessing(fit="pad", size=(32, 32), image_size=(28, 28)):
    return Preprocessing(size=size, image_size=image_size, fit=fit, mean=(0.5,), std=(0.25,))


def test_mnist_digits_are_padded_not_scaled():
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    inputs = preprocessing()(images)
    assert inputs.shape == (2, 1, 32, 32)
    assert torch.allclose(inputs[:, :, 2:30, 2:30], (images / 255 - 0.5) / 0.25, atol=1e-6)
    inputs[:, :, 2:30, 2:30] = -2
    assert (inputs == -2).all()  # the frame is black, like the background


def test_small_images_are_enlarged_where_the_data_set_says_so():
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    found = preprocessing("resize", image_size=(8, 8)).resized(images)
    expected = F.interpolate(images / 255, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(found, expected.clamp(0, 1))


def test_a_large_image_gets_the_data_sets_size_before_its_frame():
    white = torch.full((1, 1, 100, 60), 255, dtype=torch.uint8)
    resized = preprocessing().resized(white)
    assert resized.shape == (1, 1, 32, 32)
    assert resized[0, 0, 2:30, 2:30].min() > 0.999
    assert resized.sum().item() == pytest.approx(28 * 28)


def test_images_can_be_had_back():
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    prepare = preprocessing()
    assert torch.allclose(prepare.denormalise(prepare(images)), prepare.resized(images), atol=1e-6)
