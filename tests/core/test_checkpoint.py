"""Checkpoints: every changed byte is found, nothing sound is lost, and what is kept is right."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys

import pytest
import torch

from cnn_core.errors import CheckpointCorruptError, CorruptError, NumericalError
from cnn_core.training import Run, train
from cnn_core.training.checkpoint import Checkpoint, Checkpoints
from cnn_core.weights.native import read_weights

FILES = ("model.safetensors", "training.safetensors", "state.json", "MANIFEST.json")


def state(epoch=1, step=0, best=1, size=400, value=0.5):
    generator = torch.Generator().manual_seed(epoch * 1000 + step)
    return Checkpoint(
        model={"a.weight": torch.randn(size, generator=generator), "a.count": torch.tensor(3)},
        optimizer={"momentum.a.weight": torch.randn(size, generator=generator)},
        average={"a.weight": torch.randn(size, generator=generator), "a.count": torch.tensor(3)},
        epoch_metrics={"loss": torch.tensor([1.5, 8.0], dtype=torch.float64)} if step else {},
        scaler={"scale": 2.0},
        epoch=epoch,
        step=step,
        seconds=0.25,
        best=value,
        best_epoch=best,
        metrics=[{"epoch": e, "val/top1": 0.1 * e} for e in range(1, epoch + 1)],
        numerical_environment={"threads": 1},
    )


def same(one, other):
    """Whether two states are equal, tensors to the bit."""
    for part in ("model", "optimizer", "average", "epoch_metrics"):
        mine, theirs = getattr(one, part), getattr(other, part)
        if mine.keys() != theirs.keys():
            return False
        if not all(torch.equal(mine[k], theirs[k]) for k in mine):
            return False
    names = (
        "scaler",
        "epoch",
        "step",
        "seconds",
        "best",
        "best_epoch",
        "metrics",
        "numerical_environment",
    )
    return all(getattr(one, name) == getattr(other, name) for name in names)


@pytest.fixture
def two(tmp_path):
    """Two checkpoints, and the states in them."""
    checkpoints = Checkpoints(tmp_path / "state")
    first, second = state(1), state(2, 7)
    checkpoints.save(first)
    checkpoints.save(second)
    return checkpoints, first, second


def test_what_is_read_is_what_was_written(two):
    checkpoints, first, second = two
    assert same(checkpoints.newest(), second)
    assert same(checkpoints.read(first.name), first)


def test_two_processes_write_the_same_bytes(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[2])\n"
    code += "from test_checkpoint import state; from pathlib import Path\n"
    code += "from cnn_core.training.checkpoint import Checkpoints\n"
    code += "Checkpoints(Path(sys.argv[1])).save(state(2, 7))"
    written = []
    for name in ("a", "b"):
        folder = tmp_path / name
        command = [sys.executable, "-c", code, str(folder), os.path.dirname(__file__)]
        subprocess.run(command, check=True)
        written.append([(folder / state(2, 7).name / file).read_bytes() for file in FILES])
    assert written[0] == written[1]


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        Checkpoints(tmp_path / "state").save(state())
    finally:
        os.umask(before)
    folder = tmp_path / "state" / state().name
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {stat.S_IMODE((folder / file).stat().st_mode) for file in FILES} == {0o640}


def refused(checkpoints, name, harm):
    """Whether a harmed checkpoint is refused, by the path of something in it."""
    try:
        checkpoints.read(name)
    except CheckpointCorruptError as error:
        return name in error.message
    return False


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_at_any_64th_is_refused(two, file):
    checkpoints, _, second = two
    path = checkpoints.folder / second.name / file
    data = path.read_bytes()
    for part in range(64):
        path.write_bytes(data[: len(data) * part // 64])
        assert refused(checkpoints, second.name, part)
    path.write_bytes(data + b"\0")
    assert refused(checkpoints, second.name, "longer")
    path.write_bytes(data)
    assert same(checkpoints.newest(), second)


def flips(count, seed=0):
    draw = random.Random(seed)
    return [(draw.random(), draw.randrange(8)) for _ in range(count)]


def flipped(data, place, bit):
    changed = bytearray(data)
    changed[int(place * len(data))] ^= 1 << bit
    return bytes(changed)


def check_flips(checkpoints, second, count):
    for file in FILES:
        path = checkpoints.folder / second.name / file
        data = path.read_bytes()
        for place, bit in flips(count // len(FILES)):
            path.write_bytes(flipped(data, place, bit))
            assert refused(checkpoints, second.name, (file, place, bit))
        path.write_bytes(data)
    assert same(checkpoints.newest(), second)


def test_a_flipped_bit_is_refused(two):
    check_flips(two[0], two[2], 800)


@pytest.mark.slow
def test_ten_thousand_flipped_bits_are_refused(two):
    check_flips(two[0], two[2], 10_000)


def test_every_bit_of_a_manifest_counts(two):
    checkpoints, _, second = two
    path = checkpoints.folder / second.name / "MANIFEST.json"
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(bytes(changed))
        assert refused(checkpoints, second.name, place)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_missing_or_of_another_checkpoint_is_refused(two, file):
    checkpoints, first, second = two
    mine, theirs = (checkpoints.folder / s.name / file for s in (second, first))
    data = mine.read_bytes()
    mine.write_bytes(theirs.read_bytes())
    assert refused(checkpoints, second.name, "swapped")
    mine.unlink()
    assert refused(checkpoints, second.name, "missing")
    mine.mkdir()
    assert refused(checkpoints, second.name, "a folder")
    mine.rmdir()
    mine.write_bytes(data)
    assert same(checkpoints.newest(), second)


def test_two_files_of_a_checkpoint_in_each_others_place_are_refused(two):
    checkpoints, _, second = two
    folder = checkpoints.folder / second.name
    one, other = folder / FILES[0], folder / FILES[1]
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    assert refused(checkpoints, second.name, "exchanged")


def test_a_checkpoint_under_anothers_name_is_refused(two):
    checkpoints, first, second = two
    shutil.rmtree(checkpoints.folder / first.name)
    (checkpoints.folder / second.name).rename(checkpoints.folder / first.name)
    assert refused(checkpoints, first.name, "renamed")


def test_the_newest_sound_one_is_used_and_the_broken_one_is_named(two, caplog):
    checkpoints, first, second = two
    path = checkpoints.folder / second.name / "model.safetensors"
    path.write_bytes(flipped(path.read_bytes(), 0.7, 3))
    with caplog.at_level("WARNING", "cnn_core"):
        assert same(checkpoints.newest(), first)
    (line,) = caplog.messages
    assert str(path) in line
    assert "SHA-256" in line
    assert f"resuming from {first.name}" in line


def test_without_a_sound_one_the_newest_is_named(two):
    checkpoints, first, second = two
    for one in (first, second):
        (checkpoints.folder / one.name / "MANIFEST.json").write_text("{}")
    with pytest.raises(CheckpointCorruptError, match=second.name) as caught:
        checkpoints.newest()
    assert caught.value.exit_code == 3
    assert Checkpoints(checkpoints.folder / "none").newest() is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_and_the_best_are_kept(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path / "state")
    for epoch in range(1, 7):
        checkpoints.save(state(epoch, best=min(epoch, 2)), keep)
    expected = {state(epoch).name for epoch in (2, *range(7 - keep, 7))}
    assert set(checkpoints.names()) == expected


def test_weights_that_are_not_finite_take_no_sound_states_place(two):
    checkpoints, _, second = two
    third = state(3)
    third.model["a.weight"][5] = torch.inf
    with pytest.raises(NumericalError, match=r"a\.weight is not finite after 3 epochs"):
        checkpoints.save(third)
    assert same(checkpoints.newest(), second)


def test_leftovers_are_swept(two):
    checkpoints, first, _ = two
    rubbish = checkpoints.folder / ".e000009-s00000000.1.tmp"
    rubbish.mkdir()
    (rubbish / "model.safetensors").write_bytes(b"half")
    (checkpoints.folder / ".file.2.tmp").write_bytes(b"")
    checkpoints.sweep()
    assert {path.name for path in checkpoints.folder.iterdir()} == set(checkpoints.names())
    assert first.name in checkpoints.names()


def in_a_child(work):
    """Run `work` in a forked process and return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work() or 0)
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_file_that_may_not_grow_leaves_what_was_there(two):
    """A real kernel limit, at every 4 KiB of the largest file."""
    checkpoints, first, second = two
    third = state(3, size=8000)

    def limited(limit):
        def work():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                checkpoints.save(third)
            except OSError:
                return 5
            return 0

        return work

    largest = 2 * 8000 * 4 + 4096
    codes = [in_a_child(limited(limit)) for limit in range(0, largest + 8192, 4096)]
    assert codes[0] == 5
    assert codes[-1] == 0
    assert set(codes) == {0, 5}
    failed = codes.index(0)
    assert failed >= 16
    shutil.rmtree(checkpoints.folder / third.name)
    checkpoints.save(first)
    for limit in range(0, failed * 4096, 4096):
        checkpoints.save(second, keep=9)
        assert in_a_child(limited(limit)) == 5
        assert same(checkpoints.newest(), second)
        assert not list(checkpoints.folder.glob(".*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB, where mounting one is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.call(["mount", *options], stderr=subprocess.DEVNULL):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_what_was_there_and_says_so(small_disk):
    """The disk is filled so that each save ends at another 4 KiB of it."""
    checkpoints = Checkpoints(small_disk / "state")
    second = state(2, 7, size=2000)
    checkpoints.save(second)
    ballast = small_disk / "ballast"
    ended, codes = 0, set()
    for room in range(0, 40):
        ballast.unlink(missing_ok=True)
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
        size = ballast.stat().st_size - room * 4096
        with ballast.open("r+b") as file:
            file.truncate(max(size, 0))
        try:
            checkpoints.save(state(3, size=8000), keep=9)
            break
        except OSError as error:
            codes.add(error.errno)
        ended += 1
        assert same(checkpoints.newest(), second)
        assert not list(checkpoints.folder.glob(".*"))
    assert codes == {errno.ENOSPC}
    assert 20 <= ended < 39


def test_the_command_says_that_the_disk_is_full_and_goes_on_later(small_disk, cnnzoo, tmp_path):
    run = small_disk / "run"
    settings = ["--epochs", "3", "--set", "validation=0.0"]
    done = cnnzoo("train", "lenet5_modern", "--data", "digits", "--out", run, *settings)
    assert done.code == 5, done.err
    assert "No space left on device" in done.err
    assert f"--resume {run}" in done.err
    assert "Traceback" not in done.err
    moved = shutil.copytree(run, tmp_path / "moved")
    assert cnnzoo("train", "--resume", moved).code == 0
    whole = train(
        "lenet5_modern", "digits", out=tmp_path / "w", progress=False, epochs=3, validation=0.0
    )
    assert Run.open(moved).weights.read_bytes() == whole.weights.read_bytes()


def test_every_flipped_bit_of_kept_weights_is_found(tmp_path):
    run = train("lenet5_modern", "digits", out=tmp_path / "r", progress=False, epochs=1)
    data = run.weights.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    places = [*range(0, header, 3), *(int(p * len(data)) for p, _ in flips(200, 1))]
    for number, place in enumerate(places):
        run.weights.write_bytes(flipped(data, place / len(data) + 1e-12, number % 8))
        with pytest.raises(CorruptError, match=r"weights\.safetensors"):
            read_weights(run.path)
    run.weights.write_bytes(data)
    assert read_weights(run.path).epoch == 1


def test_resuming_elsewhere_says_what_differs(tmp_path, caplog):
    run = train("lenet5_modern", "digits", out=tmp_path / "r", progress=False, epochs=2)
    shutil.rmtree(run.state / state(2).name)
    run.write_metrics(run.history()[:1])
    (folder,) = run.state.iterdir()
    checkpoints = Checkpoints(run.state)
    saved = checkpoints.read(folder.name)
    changed = {**saved.numerical_environment, "threads": 64, "torch": "2.0.0"}
    checkpoints.save(dataclasses.replace(saved, numerical_environment=changed))
    with caplog.at_level("WARNING", "cnn_core"):
        train(resume=run.path, progress=False)
    (line,) = caplog.messages
    assert "threads was 64, now 1" in line
    assert f"torch was 2.0.0, now {torch.__version__}" in line
    assert json.loads((run.state / state(2).name / "state.json").read_text())["epoch"] == 2


def test_packed_files_are_the_librarys_to_the_byte():
    from safetensors.torch import save

    from cnn_core.weights.safetensors_parts import packed

    torch.manual_seed(0)
    kinds = [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int64,
        torch.uint8,
        torch.int32,
        torch.int8,
        torch.int16,
        torch.bool,
    ]
    tensors = {
        f"{k}.{i}": torch.randn(3, i).to(kind) for k, kind in enumerate(kinds) for i in (0, 1, 5)
    }
    tensors |= {"a.scalar": torch.tensor(2.5)}
    for text in (None, {"cnnzoo": '{"ü": "\\"…"}'}):
        assert b"".join(packed(tensors, text)) == save(tensors, text)
    assert b"".join(packed({})) == save({})


def test_what_does_not_read_back_is_an_error(two, monkeypatch):
    """A disk that takes every byte and keeps a wrong one."""
    checkpoints, _, second = two
    write = os.write

    def wrong(handle, data):
        changed = bytearray(data)
        changed[-1] ^= 1
        return write(handle, changed)

    monkeypatch.setattr(os, "write", wrong)
    with pytest.raises(OSError, match="reading the file back gives different bytes"):
        checkpoints.save(state(3))
    monkeypatch.undo()
    assert same(checkpoints.newest(), second)
    assert not list(checkpoints.folder.glob(".*"))
