"""kill -9 at any moment, then the same call again: the run ends as if nothing had happened.

Processes are forks of this one, with torch imported, and some real ones. Beside killing there is a
power cut: the process dies, and what it did not sync, bytes and names, is taken back.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cnn_core.training import Run, resumption, train
from cnn_core.training.checkpoint import Checkpoints

LENET = {
    "model": "lenet5_modern",
    "epochs": 3,
    "batch_size": 64,
    "shift": 1,
    "save_steps": 5,
    "ema": 0.9,
    "optimizer": "adamw",
    "lr": 0.003,
}
RESNET = {  # running statistics of batch normalisation
    "model": "resnet20_cifar",
    "epochs": 2,
    "batch_size": 256,
    "validation": 0.4,
    "image_size": 16,
    "shift": 1,
    "save_steps": 2,
}
NOISE = {"seconds", "images_per_second"}  # differ from run to run
PARTS = ("model", "optimizer", "average")
GOLDEN = (5**0.5 - 1) / 2
REAL = {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}


def scaled(few, many):
    """Both scales of a test: that of every run, and that of `make test-slow`."""
    return pytest.mark.parametrize("kills", [few, pytest.param(many, marks=pytest.mark.slow)])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


# --- one attempt, in a process of its own --------------------------------------------------


class Witness:
    """Notes each step that a process took, and what it found lying about; may kill it."""

    def __init__(self, log, steps=0):
        self.file = REAL["open"](log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self.left = steps

    def note(self, *words):
        REAL["write"](self.file, (" ".join(map(str, words)) + "\n").encode())

    def cnnzoo_fit_start(self, run):
        for path in leftovers(run.path):
            self.note("left", path)

    def cnnzoo_step_end(self, epoch, step):
        self.note("step", epoch, step)
        self.left -= 1
        if self.left == 0:
            die()


def leftovers(run):
    """Return temporary files and folders in a run, and beside it."""
    return [path for path in run.parent.rglob("*") if path.name.endswith(".tmp")]


def start(settings, run, log, steps=0, fault=None):
    """Begin, or go on with, a run in a forked process; return its id."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            witness = Witness(log, steps)
            if fault is not None:
                fault.arm(witness)
            train(
                data="digits",
                out=run,
                auto_resume=True,
                device="cpu",
                progress=False,
                observers=[witness],
                **settings,
            )
            REAL["_exit"](0)
        except BaseException:
            log.with_suffix(".error").write_text(traceback.format_exc())
            REAL["_exit"](99)
    return child


def ended(child, after=None, limit=120.0):
    """Wait for a process, or kill it `after` seconds; return whether it was killed."""
    began = time.monotonic()
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - began > (limit if after is None else after):
            os.kill(child, signal.SIGKILL)
            found = os.waitpid(child, 0)
            assert after is not None, f"hung for {limit} seconds"
            break
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(found[1])
    assert code in (0, -signal.SIGKILL), code
    return code != 0


@dataclass
class Reference:
    """A run that nobody disturbed."""

    run: Run
    settings: dict
    seconds: float
    epoch: int  # steps in one
    calls: dict  # by system call: how often, while saving

    @property
    def total(self):
        return self.epoch * self.settings["epochs"]

    def saved(self, steps):
        """Return after how many steps, at most so many, the state was saved last."""
        within = steps % self.epoch
        return max(steps - within % self.settings["save_steps"], 0)


def reference(folder, settings):
    run, log = folder / "runs" / "whole", folder / "log"
    run.parent.mkdir()
    began, counter = time.monotonic(), Fault()
    assert not ended(start(settings, run, log, fault=counter)), log
    seconds = time.monotonic() - began
    steps = steps_in(log)
    epoch = len(steps) // settings["epochs"]
    assert steps == [(e, s) for e in range(1, settings["epochs"] + 1) for s in range(epoch)]
    calls = collections.Counter(line[1] for line in lines_of(log) if line[0] == "call")
    return Reference(Run.open(run), settings, seconds, epoch, calls)


@pytest.fixture(scope="module")
def lenet(tmp_path_factory):
    return reference(tmp_path_factory.mktemp("lenet"), LENET)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return reference(tmp_path_factory.mktemp("resnet"), RESNET)


def lines_of(log):
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def steps_in(log):
    return [(int(line[1]), int(line[2])) for line in lines_of(log) if line[0] == "step"]


# --- what has to be true at the end --------------------------------------------------------


def require_same(path, whole):
    """Hold a run to the one that nobody disturbed, bit for bit."""
    run = Run.open(path)
    assert run.weights.read_bytes() == whole.weights.read_bytes()
    found, expected = (Checkpoints(each.state).newest() for each in (run, whole))
    assert found.name == expected.name
    for part in PARTS:
        mine, theirs = getattr(found, part), getattr(expected, part)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), part
    assert quiet(found.metrics) == quiet(expected.metrics)
    assert quiet(run.metrics()) == quiet(whole.metrics())
    assert [line["epoch"] for line in run.history()] == [*range(1, run.recipe.epochs + 1)]
    rows = csv.DictReader((path / "metrics.csv").read_text().splitlines())
    assert [{k: float(v) for k, v in row.items() if v} for row in rows] == run.metrics()
    assert leftovers(path) == []


def quiet(lines):
    return [{k: v for k, v in line.items() if k not in NOISE} for line in lines]


def require_no_gap(logs, whole):
    """Each attempt began where the one before had saved last, and was clean by then."""
    done = 0
    for log in logs:
        assert [line for line in lines_of(log) if line[0] == "left"] == [], log
        numbers = [(epoch - 1) * whole.epoch + step for epoch, step in steps_in(log)]
        if not numbers:
            continue
        # A step is noted before its state is saved: one that is due may not be.
        assert numbers[0] in {whole.saved(done), whole.saved(max(done - 1, 0))}, (log, done)
        assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
        done = numbers[-1] + 1
    assert done == whole.total


def kill_until_done(folder, whole, kills, attempt):
    """Kill run after run, until `kills` attempts ended that way; hold every run to the whole one.

    `attempt` starts one, given the run, a log, how many were killed and how many were started
    before it; it returns whether it was killed.
    """
    count = started = number = 0
    while count < kills:
        base = folder / str(number)
        run, logs, alive = base / "runs" / "run", [], True
        run.parent.mkdir(parents=True)
        while alive:
            logs.append(base / f"log{len(logs)}")
            if count < kills:
                alive = attempt(run, logs[-1], count, started)
                started += 1
            else:
                alive = ended(start(whole.settings, run, logs[-1]))
            count += alive
        require_same(run, whole.run)
        require_no_gap(logs, whole)
        shutil.rmtree(base)
        number += 1
    return number


# --- killed at a step, and at any time -----------------------------------------------------


@scaled(4, 40)
def test_killed_after_any_step(tmp_path, lenet, kills):
    draw = random.Random(kills)

    def attempt(run, log, killed, started):
        return ended(start(lenet.settings, run, log, steps=draw.randint(1, lenet.total // 3)))

    kill_until_done(tmp_path, lenet, kills, attempt)


@scaled(5, 40)
def test_killed_at_any_time(tmp_path, lenet, kills):
    """From before there is a run directory until after the test split is measured."""
    first = random.Random(kills).random()

    def attempt(run, log, killed, started):
        part = (first + started * GOLDEN) % 1  # evenly spread, however many there will be
        return ended(start(lenet.settings, run, log), after=part * lenet.seconds)

    kill_until_done(tmp_path, lenet, kills, attempt)


# --- killed inside a save ------------------------------------------------------------------

CALLS = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
MOMENTS = ("before", "halfway", "after")


class Disk:
    """What a disk may lose when the power fails: bytes and names that nobody synced."""

    def __init__(self):
        self.torn = {}  # files by inode, with bytes that are not synced
        self.names = []  # folders by inode, with how to undo what was done to a name in them

    def wrote(self, handle):
        self.torn.setdefault(inode(handle), REAL["dup"](handle))

    def synced(self, handle):
        if (key := inode(handle)) in self.torn:
            REAL["close"](self.torn.pop(key))
        self.names = [(folder, undo) for folder, undo in self.names if folder != key]

    def made(self, path, undo):
        self.names.append((inode(Path(path).parent), undo))

    def moved(self, source, target):
        old = None
        if Path(target).is_file():
            old = Path(target).read_bytes()

        def undo():
            REAL["rename"](target, source)
            if old is not None:
                handle = REAL["open"](target, os.O_WRONLY | os.O_CREAT)
                REAL["write"](handle, old)

        self.made(target, undo)

    def fail(self):
        """Take everything back that is not synced; half of a file that is torn."""
        for _, undo in reversed(self.names):
            with contextlib.suppress(FileNotFoundError):
                undo()
        for handle in self.torn.values():
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
        die()


def inode(place):
    found = os.stat(place)
    return found.st_dev, found.st_ino


class Fault:
    """Notes the system calls that a run saves with; and at the n-th of a name, is fatal.

    `moment` is "before" it, "after" it, or "halfway", where half the bytes are written. With
    `power` the disk forgets what was not synced.
    """

    def __init__(self, name="", nth=0, moment="", power=False):
        self.name, self.nth, self.moment, self.power = name, nth, moment, power
        self.inside = []
        self.disk = Disk()

    def arm(self, witness):
        """Patch this process for good."""
        self.witness = witness
        for owner, name in (
            (Run, "create"),
            (resumption, "repair"),
            (resumption, "save"),
            (Run, "write_metrics"),
        ):
            setattr(owner, name, self._watched(name, getattr(owner, name)))
        for name in CALLS:
            setattr(os, name, self._patched(name))
        opened = Path.open
        Path.open = lambda path, mode="r", **more: self._opened(opened, path, mode, more)

    def _watched(self, name, function):
        def inside(*arguments, **more):
            self.inside.append(name)
            try:
                return function(*arguments, **more)
            finally:
                self.inside.pop()

        return inside

    def _patched(self, name):
        real = REAL[name]

        def call(*arguments, **more):
            if not self.inside:
                return real(*arguments, **more)
            half = None
            if name == "write":
                handle, data = arguments
                self.disk.wrote(handle)
                half = lambda: real(handle, data[: len(data) // 2])  # noqa: E731
            with self._point(name, half):
                there = name == "open" and not more and os.path.exists(arguments[0])
                if name in ("rename", "replace"):
                    self.disk.moved(*arguments)
                result = real(*arguments, **more)
                if name == "fsync":
                    self.disk.synced(arguments[0])
                elif name == "mkdir":
                    path = arguments[0]
                    self.disk.made(path, lambda: shutil.rmtree(path))
                elif name == "open" and not more and not there:
                    self.disk.made(arguments[0], lambda: REAL["unlink"](arguments[0]))
            return result

        return call

    def _opened(self, opened, path, mode, more):
        if not self.inside or "w" not in mode:
            return opened(path, mode, **more)
        with self._point("Path.open"):
            there = path.exists()
            file = Written(opened(path, mode, **more), self)
            if not there:
                self.disk.made(path, lambda: REAL["unlink"](path))
        return file

    @contextlib.contextmanager
    def _point(self, name, half=None):
        """Let a call happen; or be fatal around it, if it is the one."""
        self.witness.note("call", name)
        self.nth -= name == self.name
        fatal = name == self.name and self.nth == 0
        if fatal and self.moment == "before":
            self._strike()
        if fatal and self.moment == "halfway" and half is not None:
            half()
            self._strike()
        yield
        if fatal:
            self._strike()

    def _strike(self):
        self.witness.note("struck", self.moment, self.name, self.inside[0])
        for name in CALLS:
            setattr(os, name, REAL[name])
        if self.power:
            self.disk.fail()
        die()


class Written:
    """A file that `Path.open` returned, each write of which is a fault point."""

    def __init__(self, file, fault):
        self.file, self.fault = file, fault

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        def half():
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.fault.disk.wrote(self.file.fileno())
        with self.fault._point("file.write", half):
            return self.file.write(data)


def faults(calls, count, seed, power=False):
    """Return so many faults, evenly over the names and moments, at seeded calls of a third run."""
    draw = random.Random(seed)
    places = [(name, moment) for name in sorted(calls) for moment in MOMENTS]
    places = [(n, m) for n, m in places if m != "halfway" or n in ("write", "file.write")]
    draw.shuffle(places)
    chosen = [places[number % len(places)] for number in range(count)]
    return [
        Fault(name, draw.randint(1, -(-calls[name] // 3)), moment, power)
        for name, moment in chosen
    ]


def strike_until_done(folder, whole, planned):
    """Kill runs inside of saves: of states, mostly, but also where a run begins and ends."""
    struck = collections.Counter()

    def attempt(run, log, killed, started):
        fatal = ended(start(whole.settings, run, log, fault=planned[killed]))
        struck.update(line[-1] for line in lines_of(log) if line[0] == "struck")
        return fatal

    kill_until_done(folder, whole, len(planned), attempt)
    assert struck.total() == len(planned)
    assert struck["save"] >= len(planned) // 2


def test_saving_makes_the_calls_that_are_struck(lenet):
    """Otherwise a fault point would be one no more, and nothing would say so."""
    assert set(lenet.calls) >= {*CALLS, "Path.open", "file.write"} - {"unlink", "rmdir"}
    assert lenet.calls["fsync"] >= 4 * 15
    assert lenet.calls["unlink"] + lenet.calls["rmdir"] >= 4 * 10


@scaled(6, 60)
def test_killed_inside_a_save(tmp_path, lenet, kills):
    strike_until_done(tmp_path, lenet, faults(lenet.calls, kills, seed=kills))


@scaled(4, 40)
def test_a_power_cut_inside_a_save(tmp_path, lenet, kills):
    strike_until_done(tmp_path, lenet, faults(lenet.calls, kills, seed=kills, power=True))


@pytest.mark.parametrize(
    ("name", "nth", "moment"),
    [
        ("rename", 1, "after"),  # the run directory has just got its name
        ("replace", -4, "before"),  # the last state is there: not yet the weights,
        ("replace", -3, "before"),  # not yet the metrics
        ("replace", -1, "after"),  # of the test split, one of the two files of metrics is there
        ("file.write", 0, "halfway"),  # and half of the other
        ("replace", 0, "after"),
    ],
)
def test_killed_where_a_run_begins_and_ends(tmp_path, lenet, name, nth, moment):
    nth = nth if nth > 0 else lenet.calls[name] + nth

    def attempt(run, log, killed, started):
        return ended(start(lenet.settings, run, log, fault=Fault(name, nth, moment)))

    kill_until_done(tmp_path, lenet, 1, attempt)


@scaled(2, 10)
def test_killed_with_batch_normalisation(tmp_path, resnet, kills):
    draw = random.Random(kills)
    planned = faults(resnet.calls, kills, seed=kills)

    def attempt(run, log, killed, started):
        if killed % 2:
            return ended(start(resnet.settings, run, log, fault=planned[killed]))
        return ended(start(resnet.settings, run, log, steps=draw.randint(1, resnet.total - 1)))

    kill_until_done(tmp_path, resnet, kills, attempt)


# --- real processes ------------------------------------------------------------------------


def begin_command(run, settings):
    keys = {key: value for key, value in settings.items() if key != "model"}
    command = [sys.executable, "-m", "cnn_core", "train", settings["model"], "--data", "digits"]
    command += ["--out", str(run), "--auto-resume", "--device", "cpu"]
    for key, value in keys.items():
        command += ["--set", f"{key}={value}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def killed_command(process, moment):
    """Kill a command at a moment, unless it ends before; return whether it was killed."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        moment(process)
    process.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode != 0


@scaled(2, 50)
def test_real_processes_killed(tmp_path, lenet, kills):
    draw, count, number = random.Random(kills), 0, 0
    while count < kills:
        run, alive = tmp_path / str(number) / "run", True
        run.parent.mkdir()

        def soon(process):
            """Somewhere in the start: importing, reading, making the run directory."""
            process.wait(draw.uniform(0, 4))

        def later(process, run=run):
            """Somewhere in the training, so many states later."""
            seen, wanted = set(), draw.randint(1, 5)
            while len(seen) < wanted and process.poll() is None:
                seen |= {path.name for path in run.glob("state/e*")}
                time.sleep(0.001)
            process.wait(draw.uniform(0, 0.1))

        while alive:
            process = begin_command(run, lenet.settings)
            if count < kills:
                alive = killed_command(process, draw.choice((soon, later, later)))
            else:
                _, said = process.communicate(timeout=120)
                assert process.returncode == 0, said
                alive = False
            count += alive
        require_same(run, lenet.run)
        number += 1


def test_what_a_run_is_held_to(lenet, tmp_path):
    """The checks above find what they are for."""
    copy = tmp_path / "runs" / "copy"
    shutil.copytree(lenet.run.path, copy)
    require_same(copy, lenet.run)
    (copy.parent / ".copy.1.tmp").mkdir()
    with pytest.raises(AssertionError):
        require_same(copy, lenet.run)
    (copy.parent / ".copy.1.tmp").rmdir()
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join([lines[0], *lines]))
    with pytest.raises(AssertionError):
        require_same(copy, lenet.run)
    log = tmp_path / "log"
    log.write_text("".join(f"step 1 {step}\n" for step in (0, 1, 3)))
    with pytest.raises(AssertionError):
        require_no_gap([log], lenet)
    assert json.loads(lines[0])["epoch"] == 1
