"""STL-10: columns become rows, labels start from 0, folds are checked, the rest is only mapped."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import fuzzing
from cnn_core.data.readers import stl10
from cnn_core.errors import DatasetCorruptError, DatasetMissingError
from cnn_core.specs import DatasetSpec
from fuzzing import alone, check, fuzz, mutated

PIXELS = 3 * 96 * 96
SPEC = DatasetSpec(
    name="stl10",
    target="cnn_core.data.readers.stl10:load",
    summary="tiny",
    classes=tuple("0123456789"),
    image=(3, 96, 96),
    splits={"train": 1, "test": 1},
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    licence="none",
    citation="none",
    homepage="https://example.org",
)


def random_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)


def stored(images):
    """Images as the files have them: each channel column by column."""
    return b"".join(channel.tobytes("F") for image in images for channel in image)


def write(folder, **changed):
    """Write 3 images to train on and 2 to test with; `changed` ones get the bytes given."""
    folder.mkdir(parents=True, exist_ok=True)
    sound = {
        "train_X": stored(random_images(3)),
        "train_y": bytes([1, 10, 5]),
        "test_X": stored(random_images(2, seed=1)),
        "test_y": bytes([2, 9]),
    }
    for name, data in {**sound, **changed}.items():
        (folder / f"{name}.bin").write_bytes(data)


def test_both_splits_are_read(tmp_path):
    write(tmp_path)
    data = stl10.load(SPEC, tmp_path, False)
    train, test = data.split("train"), data.split("test")
    assert list(data.splits) == ["train", "test"]
    assert torch.equal(train.images, torch.from_numpy(random_images(3)))
    assert torch.equal(test.images, torch.from_numpy(random_images(2, seed=1)))
    assert train.images.is_contiguous()
    assert (train.targets.tolist(), test.targets.tolist()) == ([0, 9, 4], [1, 8])
    assert train.targets.dtype == torch.int64


def test_blocks_meet_where_more_images_than_one_block_are_read(tmp_path):
    images = random_images(203)
    write(tmp_path, train_X=stored(images), train_y=bytes([1]) * 203)
    assert torch.equal(
        stl10.load(SPEC, tmp_path, False).split("train").images, torch.from_numpy(images)
    )


def test_the_second_byte_is_below_the_first_one(tmp_path):
    image = bytearray(PIXELS)
    image[0] = 10  # red, row 0, column 0
    image[1] = 11  # red, row 1, column 0
    image[96] = 12  # red, row 0, column 1
    image[96 * 96] = 13  # green
    image[-1] = 14  # blue, the last
    write(tmp_path, train_X=bytes(image), train_y=b"\1")
    found = stl10.load(SPEC, tmp_path, False).split("train").images[0]
    corners = [found[0, 0, 0], found[0, 1, 0], found[0, 0, 1], found[1, 0, 0], found[2, 95, 95]]
    assert [int(value) for value in corners] == [10, 11, 12, 13, 14]
    assert int(found.sum()) == 60


@pytest.mark.parametrize("below", ["stl10_binary", "stl10_binary/stl10_binary"])
def test_the_folders_of_the_archive_are_looked_into(tmp_path, below):
    write(tmp_path / below)
    assert len(stl10.load(SPEC, tmp_path, False).split("test")) == 2


@pytest.mark.parametrize("name", ["train_X", "train_y", "test_X", "test_y"])
def test_a_file_that_is_not_there_is_named(tmp_path, name):
    write(tmp_path)
    (tmp_path / f"{name}.bin").unlink()
    with pytest.raises(DatasetMissingError, match=rf"no {name}\.bin in ") as caught:
        stl10.load(SPEC, tmp_path, False)
    assert str(tmp_path) in str(caught.value)
    assert "--download" in str(caught.value)


def test_the_archive_is_fetched_only_when_asked_for(tmp_path, monkeypatch):
    asked = []

    def fetch(remote, archive, root):
        asked.append((remote.mirrors[0] + archive, remote.md5[archive], remote.size[archive]))
        write(root / "stl10_binary" / "stl10_binary")
        return root / "stl10_binary"

    monkeypatch.setattr(stl10, "fetch_and_extract", fetch)
    with pytest.raises(DatasetMissingError):
        stl10.load(SPEC, tmp_path, False)
    assert not asked
    assert len(stl10.load(SPEC, tmp_path, True).split("train")) == 3
    address = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
    assert asked == [(address, "91f7769df0f17e558f3565bffb0c7dfb", 2640397119)]


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("train_X", b"", "0: expected an image of 27,648 bytes, found 0"),
        ("train_X", b"<!DOCTYPE html>", "0: expected an image of 27,648 bytes, found 15"),
        ("test_X", bytes(2 * PIXELS - 1), "27648: expected an image of 27,648 bytes, fo"),
        ("test_X", bytes(2 * PIXELS + 1), "55296: expected an image of 27,648 bytes, found 1"),
        ("test_X", bytes(3 * PIXELS), "0: expected 3 labels, one for each image, found 2"),
        ("train_y", b"\1\2", "0: expected 3 labels, one for each image, found 2"),
        ("train_y", b"", "0: expected 3 labels, one for each image, found 0"),
        ("train_y", b"\1\0\2", "1: expected a label from 1 to 10, found 0"),
        ("train_y", b"\1\2\x0b", "2: expected a label from 1 to 10, found 11"),
        ("test_y", b"\xff\1", "0: expected a label from 1 to 10, found 255"),
    ],
)
def test_a_file_of_another_size_or_with_other_labels_is_refused(tmp_path, name, data, found):
    write(tmp_path, **{name: data})
    with pytest.raises(DatasetCorruptError) as caught:
        stl10.load(SPEC, tmp_path, False)
    file = name.replace("X", "y") if "labels" in found else name
    assert caught.value.message.startswith(f"{tmp_path / file}.bin: at byte {found}")
    assert len(str(caught.value).splitlines()) == 2


def test_more_images_than_the_original_are_refused_before_they_are_read(tmp_path):
    write(tmp_path)
    os.truncate(tmp_path / "test_X.bin", 8001 * PIXELS)  # sparse: takes no disk
    with pytest.raises(DatasetCorruptError, match="at most 8,000 images, found 8,001"):
        stl10.load(SPEC, tmp_path, False)
    write(tmp_path, unlabeled_X=b"")
    os.truncate(tmp_path / "unlabeled_X.bin", 100_001 * PIXELS)
    with pytest.raises(DatasetCorruptError, match="at most 100,000 images, found 100,001"):
        stl10.load_unlabelled(tmp_path)


def test_images_without_labels_are_those_of_the_file_and_it_stays_as_it_is(tmp_path):
    images = random_images(4, seed=2)
    write(tmp_path / "stl10_binary", unlabeled_X=stored(images))
    found = stl10.load_unlabelled(tmp_path)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.from_numpy(images))
    found.zero_()
    assert (tmp_path / "stl10_binary" / "unlabeled_X.bin").read_bytes() == stored(images)
    assert list(stl10.load(SPEC, tmp_path, False).splits) == ["train", "test"]


@pytest.mark.parametrize("size", [0, 1, PIXELS - 1, PIXELS + 1])
def test_a_broken_file_without_labels_is_refused(tmp_path, size):
    (tmp_path / "unlabeled_X.bin").write_bytes(bytes(size))
    with pytest.raises(DatasetCorruptError, match=r"unlabeled_X\.bin: at byte "):
        stl10.load_unlabelled(tmp_path)


def test_missing_images_without_labels_and_folds_are_named(tmp_path):
    with pytest.raises(DatasetMissingError, match=r"no unlabeled_X\.bin"):
        stl10.load_unlabelled(tmp_path)
    with pytest.raises(DatasetMissingError, match=r"no fold_indices\.txt"):
        stl10.folds(tmp_path)


def test_of_100000_images_only_those_looked_at_take_memory(tmp_path):
    path = tmp_path / "unlabeled_X.bin"
    path.touch()
    os.truncate(path, 100_000 * PIXELS)  # sparse: takes no disk
    found = alone(__file__, "unlabelled", tmp_path, 0)
    assert found["read"] == 100_000
    assert found["grown"] < 64


def fold_lines(ending=b" \n"):
    rng = np.random.default_rng(0)
    lines = [rng.permutation(5000)[:1000].tolist() for _ in range(10)]
    return lines, b"".join(b" ".join(b"%d" % n for n in line) + ending for line in lines)


@pytest.mark.parametrize("ending", [b"\n", b" \n", b"\r\n"])
def test_folds_are_read(tmp_path, ending):
    lines, text = fold_lines(ending)
    (tmp_path / "fold_indices.txt").write_bytes(text)
    found = stl10.folds(tmp_path)
    assert [fold.tolist() for fold in found] == lines
    assert all(fold.dtype == torch.int64 for fold in found)


def bad_folds():
    _, text = fold_lines()
    first, second, rest = text.split(b"\n", 2)
    at = len(first) + 1
    words = second.split()
    with_words = {
        "999 indices": words[1:],
        "1,001 indices": [*words, b"4999" if b"4999" not in words else b"0"],
        "an index twice": [words[1], *words[1:]],
        "5000": [b"5000", *words[1:]],
        "-1": [b"-1", *words[1:]],
        "a word": [b"\x1b[31mred", *words[1:]],
        "another alphabet's digit": ["٣".encode(), *words[1:]],
        "a long number": [b"9" * 5000, *words[1:]],
        "a line of nothing": [],
    }
    found = {
        name: (b"\n".join([first, b" ".join(line), rest]), f"at byte {at}: ")
        for name, line in with_words.items()
    }
    nine = text[at:]
    return {
        **found,
        "nine lines": (nine, "10 lines, found 9"),
        "eleven lines": (text + b"1\n", "10 lines, found 11"),
        "nothing": (b"", "10 lines, found 0"),
        "html": (b"<!DOCTYPE html>", "10 lines, found 1"),
        "a large file": (text * 3, "at most 100,000 bytes, found"),
    }


@pytest.mark.parametrize("case", sorted(bad_folds()))
def test_other_folds_are_refused(tmp_path, case):
    text, found = bad_folds()[case]
    (tmp_path / "fold_indices.txt").write_bytes(text)
    with pytest.raises(DatasetCorruptError) as caught:
        stl10.folds(tmp_path)
    assert found in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "fold_indices.txt"))
    assert len(str(caught.value).splitlines()) == 2
    assert str(caught.value).replace("\n", "").isprintable()


# Fuzzing. This file run as a script does it in a process of its own.


def fuzz_one(folder, count):
    """Outcomes of reading with one file mutated, and the others sound."""
    write(folder)
    (folder / "fold_indices.txt").write_bytes(fold_lines()[1])
    sound = {path: path.read_bytes() for path in sorted(folder.iterdir())}

    def case(rng, number):
        path = list(sound)[number % len(sound)]
        return path, mutated(rng, sound[path])

    def read(path, number):
        try:
            return is_right(path)
        finally:
            path.write_bytes(sound[path])

    return fuzz(count, case, read)


def is_right(path):
    if path.name == "fold_indices.txt":
        return [len(fold.unique()) for fold in stl10.folds(path.parent)] == [1000] * 10
    return all(
        split.images.shape == (len(split.targets), 3, 96, 96)
        and (split.images.dtype, split.targets.dtype) == (torch.uint8, torch.int64)
        and 0 <= int(split.targets.min()) <= int(split.targets.max()) < 10
        for split in stl10.load(SPEC, path.parent, False).splits.values()
    )


def unlabelled(folder, _):
    images = stl10.load_unlabelled(folder)
    return {"read": len(images), "sum": int(images[::5000].sum())}


def test_300_mutated_files_raise_nothing_else(tmp_path):
    check(fuzz_one(tmp_path, 300), 300, read=1 / 10)


@pytest.mark.slow
def test_10000_mutated_files_raise_nothing_else(tmp_path):
    check(fuzz_one(tmp_path, 10_000), 10_000, read=1 / 10)


def test_without_assertions_it_is_the_same_and_takes_little_memory(tmp_path):
    found = alone(__file__, "fuzz", tmp_path, 300, "-O")
    check(found, 300, read=1 / 10)
    assert found["grown"] < 64


if __name__ == "__main__":
    fuzzing.main({"fuzz": fuzz_one, "unlabelled": unlabelled})
