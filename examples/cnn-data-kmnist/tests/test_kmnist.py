"""Files in the format of KMNIST are read; missing files raise an error."""

import struct

import pytest

from cnn_core import load_dataset
from cnn_core.errors import DatasetMissingError


def write(path, *sizes):
    count = 1
    for size in sizes:
        count *= size
    head = bytes((0, 0, 8, len(sizes))) + struct.pack(f">{len(sizes)}I", *sizes)
    path.write_bytes(head + bytes(i % 10 for i in range(count)))


def test_four_files_are_read(tmp_path):
    for name, count in (("train", 20), ("t10k", 10)):
        write(tmp_path / f"{name}-images-idx3-ubyte", count, 28, 28)
        write(tmp_path / f"{name}-labels-idx1-ubyte", count)
    test = load_dataset("kmnist", data_dir=tmp_path).split("test")
    assert (tuple(test.images.shape), test.targets.tolist()) == ((10, 1, 28, 28), [*range(10)])


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DatasetMissingError, match=r"no train-images-idx3-ubyte.*\n--data-dir"):
        load_dataset("kmnist", data_dir=tmp_path)
