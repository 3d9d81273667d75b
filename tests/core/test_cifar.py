"""CIFAR: binary and pickled files are read pixel by pixel, and checked against their format."""

from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import pytest
import torch

import fuzzing
from cnn_core.data.readers import cifar
from cnn_core.errors import DatasetCorruptError, DatasetMissingError
from cnn_core.specs import DatasetSpec
from fuzzing import alone, check, fuzz, mutated

LABELS = {"cifar10": (10,), "cifar100": (20, 100)}
FOLDERS = {
    ("cifar10", "binary"): "cifar-10-binary/cifar-10-batches-bin",
    ("cifar10", "python"): "cifar-10-python/cifar-10-batches-py",
    ("cifar100", "binary"): "cifar-100-binary/cifar-100-binary",
    ("cifar100", "python"): "cifar-100-python/cifar-100-python",
}
TEN = [f"data_batch_{number}" for number in range(1, 6)]
NAMES = {"cifar10": [*TEN, "test_batch"], "cifar100": ["train", "test"]}
BOTH = pytest.mark.parametrize("name", ["cifar10", "cifar100"])


def spec(name):
    return DatasetSpec(
        name=name,
        target="cnn_core.data.readers.cifar:load",
        summary="tiny",
        classes=tuple(map(str, range(LABELS[name][-1]))),
        image=(3, 32, 32),
        splits={"train": 1, "test": 1},
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        licence="none",
        citation="none",
        homepage="https://example.org",
    )


def records(name, count, seed=0):
    """Labels, a column for each kind, and pixels of made-up images."""
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, classes, count) for classes in LABELS[name]], axis=1)
    return labels.astype(np.uint8), rng.integers(0, 256, (count, 3072), dtype=np.uint8)


def binary(name, count, seed=0):
    return np.concatenate(records(name, count, seed), axis=1).tobytes()


def batch(name, count, seed=0):
    """The dictionary that the pickled version holds, in the order of the original."""
    labels, pixels = records(name, count, seed)
    keys = {"cifar10": [b"labels"], "cifar100": [b"coarse_labels", b"fine_labels"]}[name]
    found = {b"batch_label": b"training batch 1 of 5"}
    for column, key in enumerate(keys):
        found[key] = labels[:, column].tolist()
    return {
        **found,
        b"data": pixels,
        b"filenames": [b"leopard_%06d.png" % n for n in range(count)],
    }


def short(text):
    return b"U" + bytes([len(text)]) + text + b"q\x01"


def items(values):
    return b"]q\x02(" + b"".join(values) + b"e"


def state(pixels, fortran):
    shape = b"".join(b"M" + struct.pack("<H", size) for size in pixels.shape) + b"\x86q\x09"
    dtype = b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b"
    dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    raw = pixels.tobytes("F" if fortran else "C")
    body = b"T" + struct.pack("<i", len(raw)) + raw + b"r\x00\x01\x00\x00"
    return b"(K\x01" + shape + dtype + (b"\x88" if fortran else b"\x89") + body + b"tb"


def python2(found, fortran=False):
    """Pickle as Python 2 did: strings are BINSTRING, numpy's pixels are one of them."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x06cnumpy\nndarray\nq\x07K\x00\x85U\x01b\x87R"
    )
    parts = []
    for key, value in found.items():
        parts.append(short(key))
        if isinstance(value, np.ndarray):
            parts.append(array + state(value, fortran))
        elif isinstance(value, bytes):
            parts.append(short(value))
        elif key == b"filenames":
            parts.append(items(short(name) for name in value))
        else:
            parts.append(items(b"K" + bytes([label]) for label in value))
    return b"\x80\x02}q\x00(" + b"".join(parts) + b"u."


WRITERS = {
    "python 2": python2,
    "python 2, by columns": lambda found: python2(found, fortran=True),
    "python 3, protocol 2": lambda found: pickle.dumps(found, 2),
    "python 3, protocol 3": lambda found: pickle.dumps(found, 3),
    "python 3, protocol 4": lambda found: pickle.dumps(found, 4),
    "python 3, by columns": lambda found: pickle.dumps(
        {k: np.asfortranarray(v) if k == b"data" else v for k, v in found.items()}, 2
    ),
    "python 3, numpy 1": lambda found: pickle.dumps(found, 2).replace(
        b"numpy._core", b"numpy.core"
    ),
    "python 3, keys of text": lambda found: pickle.dumps({k.decode(): found[k] for k in found}, 2),
}


def write(folder, name, version="binary", count=3, **changed):
    """Write all files of a dataset, `changed` ones with the bytes given; other seeds each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(NAMES[name]):
        data = binary(name, count, number)
        if version != "binary":
            data = python2(batch(name, count, number))
        suffix = ".bin" if version == "binary" else ""
        (folder / f"{file}{suffix}").write_bytes(changed.get(file, data))


def expected(name, count, seeds):
    parts = [records(name, count, seed) for seed in seeds]
    images = np.concatenate([pixels for _, pixels in parts]).reshape(-1, 3, 32, 32)
    targets = np.concatenate([labels[:, -1] for labels, _ in parts]).astype(np.int64)
    return torch.from_numpy(images), torch.from_numpy(targets)


@BOTH
@pytest.mark.parametrize("version", ["binary", "python"])
def test_every_file_is_read_in_order(tmp_path, name, version):
    write(tmp_path, name, version)
    data = cifar.load(spec(name), tmp_path, False)
    last = len(NAMES[name]) - 1
    for split, seeds in (("train", range(last)), ("test", [last])):
        images, targets = expected(name, 3, seeds)
        found = data.split(split)
        assert torch.equal(found.images, images)
        assert torch.equal(found.targets, targets)
        assert found.images.is_contiguous()
        assert (found.images.dtype, found.targets.dtype) == (torch.uint8, torch.int64)


def test_a_record_is_its_label_then_red_green_and_blue_row_by_row(tmp_path):
    record = bytearray(1 + 3072)
    record[0] = 7
    record[1] = 10  # red, row 0, column 0
    record[1 + 1] = 11  # red, row 0, column 1
    record[1 + 32] = 12  # red, row 1, column 0
    record[1 + 1024] = 13  # green
    record[1 + 2048 + 1023] = 14  # blue, the last
    write(tmp_path, "cifar10", data_batch_1=bytes(record))
    train = cifar.load(spec("cifar10"), tmp_path, False).split("train")
    image = train.images[0]
    found = [image[0, 0, 0], image[0, 0, 1], image[0, 1, 0], image[1, 0, 0], image[2, 31, 31]]
    assert [int(value) for value in found] == [10, 11, 12, 13, 14]
    assert int(image.sum()) == 10 + 11 + 12 + 13 + 14
    assert train.targets[0] == 7


def test_the_targets_of_cifar100_are_the_second_labels(tmp_path):
    record = bytes([19, 99]) + bytes(3072)
    write(tmp_path, "cifar100", train=record)
    assert cifar.load(spec("cifar100"), tmp_path, False).split("train").targets.tolist() == [99]


@BOTH
@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_the_folders_of_the_archives_are_looked_into(tmp_path, name, version, depth):
    parts = FOLDERS[name, version].split("/")
    write(tmp_path.joinpath(*parts[2 - depth :]), name, version)
    assert len(cifar.load(spec(name), tmp_path, False).split("test")) == 3


def test_the_binary_version_is_preferred_and_a_whole_version_to_half_a_one(tmp_path):
    write(tmp_path, "cifar100", "python", count=2)
    write(tmp_path, "cifar100", "binary", count=4)
    assert len(cifar.load(spec("cifar100"), tmp_path, False).split("train")) == 4
    (tmp_path / "test.bin").unlink()
    assert len(cifar.load(spec("cifar100"), tmp_path, False).split("train")) == 2


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DatasetMissingError, match=r"no data_batch_1\.bin in ") as caught:
        cifar.load(spec("cifar10"), tmp_path, False)
    assert "--download" in str(caught.value)
    write(tmp_path / "cifar-10-batches-py", "cifar10", "python")
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DatasetMissingError, match=r"no data_batch_4 in .*cifar-10-batches-py"):
        cifar.load(spec("cifar10"), tmp_path, False)


@BOTH
def test_the_archive_is_fetched_only_when_asked_for(tmp_path, monkeypatch, name):
    asked = []

    def fetch(remote, archive, root):
        asked.append((remote.mirrors[0] + archive, remote.md5[archive], remote.size[archive]))
        write(root / FOLDERS[name, "binary"], name)
        return root / archive.removesuffix(".tar.gz")

    monkeypatch.setattr(cifar, "fetch_and_extract", fetch)
    with pytest.raises(DatasetMissingError):
        cifar.load(spec(name), tmp_path, False)
    assert not asked
    assert len(cifar.load(spec(name), tmp_path, True).split("test")) == 3
    place = "https://www.cs.toronto.edu/~kriz/"
    assert asked == [
        (f"{place}cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170052171)
        if name == "cifar10"
        else (f"{place}cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", 168513733)
    ]


def refused(tmp_path, name, version, data):
    """The error for one broken file, after checking that it names it, briefly."""
    file = NAMES[name][0]
    write(tmp_path, name, version, **{file: data})
    with pytest.raises(DatasetCorruptError) as caught:
        cifar.load(spec(name), tmp_path, False)
    suffix = ".bin" if version == "binary" else ""
    assert caught.value.message.startswith(f"{tmp_path / file}{suffix}: ")
    assert caught.value.hint == "delete it and fetch it again"
    assert len(str(caught.value).splitlines()) == 2
    assert len(caught.value.message) < 600
    return caught.value.message.removeprefix(f"{tmp_path / file}{suffix}: ").removeprefix(
        "at byte "
    )


@BOTH
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda data: b"", "0: expected a record of {size:,} bytes, found 0"),
        (lambda data: b"<!DOCTYPE html>", "0: expected a record of {size:,} bytes, found 15"),
        (lambda data: data[:-1], "{two}: expected a record of {size:,} bytes, found {less:,}"),
        (lambda data: data + b"\0", "{three}: expected a record of {size:,} bytes, found 1"),
    ],
)
def test_a_file_of_another_size_is_refused(tmp_path, name, change, found):
    size = 3072 + len(LABELS[name])
    numbers = {"size": size, "two": 2 * size, "three": 3 * size, "less": size - 1}
    assert refused(tmp_path, name, "binary", change(binary(name, 3))) == found.format(**numbers)


@BOTH
def test_more_records_than_any_original_are_refused(tmp_path, name):
    write(tmp_path, name)
    size = 50_001 * (3072 + len(LABELS[name]))
    os.truncate(tmp_path / f"{NAMES[name][0]}.bin", size)  # sparse: takes no disk
    with pytest.raises(DatasetCorruptError, match="at most 50,000 records, found 50,001"):
        cifar.load(spec(name), tmp_path, False)


@pytest.mark.parametrize(
    ("name", "at", "label", "found"),
    [
        ("cifar10", 3073, 10, "3073: expected a label from 0 to 9, found 10"),
        ("cifar100", 3074, 20, "3074: expected a label from 0 to 19, found 20"),
        ("cifar100", 3075, 100, "3075: expected a label from 0 to 99, found 100"),
    ],
)
def test_a_label_out_of_range_is_refused_where_it_stands(tmp_path, name, at, label, found):
    data = bytearray(binary(name, 3))
    data[at] = label
    assert refused(tmp_path, name, "binary", bytes(data)) == found


def test_python_2_may_write_a_label_as_a_long_integer(tmp_path):
    data = python2(batch("cifar10", 3)).replace(b"]q\x02(K", b"]q\x02(\x8a\x01", 1)
    assert pickle.loads(data, encoding="bytes")[b"labels"] == batch("cifar10", 3)[b"labels"]
    write(tmp_path, "cifar10", "python", test_batch=data)
    test = cifar.load(spec("cifar10"), tmp_path, False).split("test")
    assert test.targets.tolist() == batch("cifar10", 3)[b"labels"]


@BOTH
@pytest.mark.parametrize("writer", sorted(WRITERS))
def test_pickles_of_every_kind_are_what_unpickling_would_give(tmp_path, name, writer):
    found = batch(name, 300)
    data = WRITERS[writer](found)
    trusted = pickle.loads(data, encoding="bytes")  # ours: proves that it is a pickle at all
    key = b"data" if b"data" in trusted else "data"
    assert np.array_equal(trusted[key], found[b"data"])
    write(tmp_path, name, "python", **dict.fromkeys(NAMES[name], data))
    images, targets = expected(name, 300, [0])
    test = cifar.load(spec(name), tmp_path, False).split("test")
    assert torch.equal(test.images, images)
    assert torch.equal(test.targets, targets)


def changed(**values):
    """A batch of three of CIFAR-100 with other values, large enough to be read at all."""
    found = {
        **batch("cifar100", 3),
        b"batch_label": b"x" * 4000,
        **{key.encode(): value for key, value in values.items()},
    }
    return {key: value for key, value in found.items() if value is not None}


class Bomb:
    """What a pickle can do when it is loaded."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


ZEROS = np.zeros((3, 3072), np.uint8)
BATCHES = {
    "labels out of range": (
        changed(fine_labels=[0, 100, 1]),
        "fine_labels from 0 to 99, found 100",
    ),
    "coarse labels out of range": (
        changed(coarse_labels=[0, 20, 1]),
        "coarse_labels from 0 to 19, found 20",
    ),
    "a negative label": (changed(fine_labels=[0, -1, 1]), "fine_labels from 0 to 99, found -1"),
    "labels that are no numbers": (changed(fine_labels=[0, None, 1]), "found NoneType"),
    "labels that are true": (changed(fine_labels=[0, True, 1]), "found bool"),
    "too few labels": (changed(fine_labels=[0, 1]), "fine_labels, a list of 3, found 2"),
    "too many coarse labels": (
        changed(coarse_labels=[0] * 4),
        "coarse_labels, a list of 3, found 4",
    ),
    "labels in a tuple": (changed(fine_labels=(0, 1, 2)), "fine_labels, a list of 3, found tuple"),
    "no labels": (changed(fine_labels=None), "a batch with fine_labels, found batch_label, coar"),
    "no data": (changed(data=None), "a batch with data"),
    "data in a list": (changed(data=[1, 2, 3]), "a numpy array of uint8, found list"),
    "an image too many": (
        changed(data=np.zeros((4, 3072), np.uint8)),
        "coarse_labels, a list of 4, found 3",
    ),
    "images of another size": (changed(data=ZEROS.reshape(9, 1024)), "found 9 x 1024"),
    "images in rows": (changed(data=ZEROS.reshape(3, 3, 1024)), "found 3 x 3 x 1024"),
    "floats": (changed(data=ZEROS.astype(np.float32)), "array of uint8, found another array"),
    "signed bytes": (changed(data=ZEROS.astype(np.int8)), "array of uint8, found another array"),
    "objects": (changed(data=np.array([[None]])), "array of uint8, found another array"),
    "too few names": (changed(filenames=[b"a", b"b"]), "3 file names, found 2"),
    "a set": (changed(extra={1, 2}), "its pickle names __builtin__.set"),
    "a large label": (changed(fine_labels=[0, 1 << 40, 1]), "0 to 99, found 1099511627776"),
    "a number of 300 bytes": (changed(extra=1 << 2400), "has the opcode LONG4"),
    "a dictionary in another": (changed(extra={"a": Bomb("no")}), "its pickle names posix.system"),
    "a list": ([b"x" * 4000], "a pickled list"),
}


@pytest.mark.parametrize("case", sorted(BATCHES))
def test_a_pickle_of_something_else_is_refused(tmp_path, case):
    found, message = BATCHES[case]
    assert message in refused(tmp_path, "cifar100", "python", pickle.dumps(found, 2))


SOUND = python2(batch("cifar100", 3))
RAW = {
    "one byte short": SOUND[:-1],
    "one byte more": SOUND + b"\0",
    "two pickles": SOUND + SOUND,
    "html": b"<!DOCTYPE html>" + b" " * 4000,
    "protocol 5": pickle.dumps(batch("cifar100", 3), 5),
    "protocol 0": pickle.dumps(batch("cifar100", 3), 0),
    "half of the pixels": SOUND[:6000],
    "no mark to collect": b"\x80\x02e" + b"." * 4000,
    "an empty stack": b"\x80\x02R" + b"." * 4000,
    "a memo that is empty": b"\x80\x02h\x05" + b"." * 4000,
    "claims 2 GB": b"\x80\x02T\xff\xff\xff\x7f" + b"." * 4000,
    "claims less than nothing": b"\x80\x02T\xff\xff\xff\xff" + b"." * 4000,
    "a long name": b"\x80\x02c" + b"o" * 4000,
    "an odd dictionary": b"\x80\x02}(K\x01u." + b"." * 4000,
    "a key that is a tuple": b"\x80\x02})K\x01s." + b"." * 4000,
    "a key that holds itself": b"\x80\x02}]q\x00h\x00aK\x01s." + b"." * 4000,
    "a pickle in text": pickle.dumps(batch("cifar100", 3), 2).replace(b"latin1", b"rot-13"),
    "opcodes without end": b"\x80\x02" + b"N" * 1_100_000,
    "a memo of 34 GB": b"\x80\x02Nr\xff\xff\xff\x7f" + b"." * 4000,
    "2^60 tuples as a key": b"\x80\x02})" + b"q\x01h\x01\x86" * 60 + b"Ns." + b"." * 4000,
    "deep tuples as a key": b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.",
    "numbers that collide": b"\x80\x02}("
    + b"".join(
        b"\x8a\x0a" + (k * ((1 << 61) - 1)).to_bytes(10, "little") + b"N" for k in range(50_000)
    )
    + b"u.",
    "a class with other attributes": b"\x80\x02cnumpy\ndtype\nN}U\x08__init__Ns\x86b."
    + b"." * 4000,
    "a call by INST": b"\x80\x02(U\x02u1inumpy\ndtype\n." + b"." * 4000,
    "pixels that are a number": SOUND.replace(
        b"T\x00\x24\x00\x00" + SOUND[SOUND.index(b"T\x00\x24\x00\x00") + 5 :][:9216],
        b"J\xff\xff\xff\x7f",
    )
    + b"." * 4000,
}


@pytest.mark.parametrize("case", sorted(RAW))
def test_bytes_that_are_no_such_pickle_are_refused(tmp_path, case):
    refused(tmp_path, "cifar100", "python", RAW[case])


def test_an_empty_or_endless_pickle_is_refused_before_it_is_read(tmp_path):
    refused(tmp_path, "cifar100", "python", b"")
    os.truncate(tmp_path / "train", 10 << 30)  # sparse: takes no disk
    with pytest.raises(DatasetCorruptError, match="found 10,737,418,240"):
        cifar.load(spec("cifar100"), tmp_path, False)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_would_run_a_command_runs_none(tmp_path, protocol):
    canary = tmp_path / "canary"
    bomb = pickle.dumps(changed(data=Bomb(canary)), protocol)
    refused(tmp_path, "cifar100", "python", bomb)
    assert not canary.exists()
    pickle.loads(bomb)
    assert canary.exists()  # the bomb was live


def test_five_files_take_the_memory_of_one_more_at_most(tmp_path):
    write(tmp_path, "cifar10", count=4000)  # 12 MB a file
    grown = alone(__file__, "memory", tmp_path, 0)["grown"]
    assert grown < 6 * 12.3 + 12.3 + 12


# Fuzzing. This file run as a script does it in a process of its own.


def fuzz_binary(folder, count):
    """Outcomes of reading mutated binary files, for the most part mutated where labels are."""
    sound, labels = binary("cifar100", 3), [0, 1, 3074, 3075, 6148, 6149]
    write(folder, "cifar100")

    def case(rng, number):
        return folder / "train.bin", mutated(rng, sound, mostly(labels))

    return fuzz(count, case, is_right)


def fuzz_pickled(folder, count):
    """Outcomes of reading mutated pickles, of Python 2 and 3."""
    write(folder, "cifar100", "python")
    kinds = []
    for writer in sorted(WRITERS):
        sound = WRITERS[writer](batch("cifar100", 2))
        pixels = 6144 if "python 2" in writer or "protocol 3" in writer else 9100
        start = sound.index(b"data")
        kinds.append((sound, [*range(2, start + 200), *range(start + pixels, len(sound))]))

    def case(rng, number):
        sound, structure = kinds[number % len(kinds)]
        return folder / "train", mutated(rng, sound, mostly(structure))

    return fuzz(count, case, is_right)


def mostly(places):
    return lambda rng, size: rng.choice(places) if rng.random() < 0.8 else rng.randrange(size)


def is_right(path, number):
    train = cifar.load(spec("cifar100"), path.parent, False).split("train")
    return (
        train.images.shape == (len(train.targets), 3, 32, 32)
        and (train.images.dtype, train.targets.dtype) == (torch.uint8, torch.int64)
        and 0 < len(train.targets) <= 4
        and 0 <= int(train.targets.min()) <= int(train.targets.max()) < 100
    )


def load_ten(folder, _):
    return {"read": len(cifar.load(spec("cifar10"), folder, False).split("train"))}


JOBS = {"binary": fuzz_binary, "pickled": fuzz_pickled, "memory": load_ten}
FUZZED = pytest.mark.parametrize("job", ["binary", "pickled"])


@FUZZED
def test_300_mutated_files_raise_nothing_else(tmp_path, job):
    check(JOBS[job](tmp_path, 300), 300)


@pytest.mark.slow
@FUZZED
def test_10000_mutated_files_raise_nothing_else(tmp_path, job):
    check(JOBS[job](tmp_path, 10_000), 10_000)


@FUZZED
def test_without_assertions_it_is_the_same_and_takes_little_memory(tmp_path, job):
    found = alone(__file__, job, tmp_path, 300, "-O")
    check(found, 300)
    assert found["grown"] < 64


if __name__ == "__main__":
    fuzzing.main(JOBS)
