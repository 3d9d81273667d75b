"""SIGTERM and SIGINT at any moment: all is saved, the reason is told, and going on is exact."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnn_core.errors import NumericalError, Terminated
from cnn_core.training import Run, loop, resumption, signals, train, trainer
from cnn_core.training.checkpoint import Checkpoints

app = importlib.import_module("cnn_core.cli.app")  # the module: the package has a group so named

SETTINGS = {
    "epochs": 2,
    "batch_size": 96,
    "shift": 1,
    "save_steps": 4,
    "ema": 0.9,
    "optimizer": "adamw",
    "lr": 0.003,
}
NOISE = {"seconds", "images_per_second"}  # differ from run to run
RAISED = {signal.SIGTERM: "Terminated", signal.SIGINT: "KeyboardInterrupt"}
SIGNALS = pytest.mark.parametrize("signum", [*RAISED], ids=["SIGTERM", "SIGINT"])


def lenet(run, **more):
    """Begin or go on with the run that all of this is about; as the command does."""
    more = {"auto_resume": True, "device": "cpu", "progress": False, **SETTINGS, **more}
    return train("lenet5_modern", more.pop("data", "digits"), out=run, **more)


def command(run):
    keys = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    where = ["--data", "digits", "--out", str(run), "--auto-resume"]
    return ["train", "lenet5_modern", *where, *keys]


def handlers():
    return [signal.getsignal(signum) for signum in RAISED]


# --- processes -----------------------------------------------------------------------------


def forked(work):
    """Run `work` in a process of its own, as a fresh one hears signals; return its id."""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            torch.set_num_threads(1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os._exit(work() or 0)
        except BaseException:
            os._exit(99)
    return child


def ended(child, limit=60.0):
    """Wait for a process; return its exit code, or minus the signal that killed it."""
    began = time.monotonic()
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() - began > limit:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"hung for {limit} seconds")
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(found[1])


def wait_until(true, limit=60.0):
    """Wait for something to happen; a test that waits for ever would not say why."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < limit, "waited in vain"
        time.sleep(0.002)


def wait_for(path):
    wait_until(path.exists)


class Counter:
    """Counts the steps that a process takes."""

    taken = 0

    def cnnzoo_step_end(self):
        self.taken += 1


@dataclass
class Whole:
    """A run that nobody interrupted: its steps, and the seconds that it took."""

    run: Run
    steps: int
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder, began = tmp_path_factory.mktemp("whole"), time.monotonic()

    def work():
        counter = Counter()
        lenet(folder / "run", observers=[counter])
        (folder / "steps").write_text(str(counter.taken))

    assert ended(forked(work)) == 0
    seconds, steps = time.monotonic() - began, int((folder / "steps").read_text())
    return Whole(Run.open(folder / "run"), steps, seconds)


def require_same(path, whole):
    """Hold a run to the one that nobody interrupted, bit for bit."""
    run = Run.open(path)
    assert run.weights.read_bytes() == whole.weights.read_bytes()
    found, expected = (Checkpoints(each.state).newest() for each in (run, whole))
    assert found.name == expected.name
    for part in ("model", "optimizer", "average"):
        mine, theirs = getattr(found, part), getattr(expected, part)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), part
    lines = [
        [{k: v for k, v in line.items() if k not in NOISE} for line in each.metrics()]
        for each in (run, whole)
    ]
    assert lines[0] == lines[1]
    assert [path for path in run.path.parent.rglob("*") if path.name.endswith(".tmp")] == []


# --- at every moment of a training ---------------------------------------------------------


@dataclass
class Moment:
    """Where a process sends itself a signal: at the n-th such place."""

    where: str
    nth: int
    signum: int

    def arm(self, note):
        """Patch this process; `note` is called with what to remember, just before the signal."""
        self.left, self.note = self.nth, note
        if self.where == "validation":
            loop.evaluate_split = self._before(loop.evaluate_split)
        elif self.where == "test":
            trainer.evaluate_split = self._before(trainer.evaluate_split)
        elif self.where == "start":
            loop.TrainState.train = self._before(loop.TrainState.train)
        elif self.where == "save":
            save = resumption.save

            def saving(*arguments):
                resumption.save = save
                os.fsync = self._before(os.fsync)
                return save(*arguments)

            resumption.save = saving

    def cnnzoo_step_end(self, epoch, step):
        if self.where == "step":
            self._count()

    def _before(self, function):
        def counted(*arguments, **more):
            self._count()
            return function(*arguments, **more)

        return counted

    def _count(self):
        self.left -= 1
        if self.left == 0:
            self.note()
            os.kill(os.getpid(), self.signum)


def moments(count, steps):
    """Return so many moments, alternately of both signals, at each kind of place."""
    draw, found = random.Random(count), []
    places = {"step": steps, "save": steps, "validation": 2, "start": 2, "test": 1}
    for number in range(count):
        where = [*places, "step", "save"][number % (len(places) + 2)]
        found.append(Moment(where, draw.randint(1, places[where]), [*RAISED][number % 2]))
    return found


def interrupt_itself(run, moment, result):
    """Train until the moment comes; write down how it ended."""
    facts, counter, before = {"raised": "", "notes": []}, Counter(), handlers()

    def note():
        facts["before"] = counter.taken

    moment.arm(note)
    try:
        lenet(run, observers=[counter, moment])
    except BaseException as error:
        facts |= {"raised": type(error).__name__, "notes": getattr(error, "__notes__", [])}
    facts |= {"restored": handlers() == before, "taken": counter.taken}
    result.write_text(json.dumps(facts))


def few_or_many(few, many):
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


@few_or_many(7, 35)
def test_a_signal_is_obeyed_and_going_on_is_exact(tmp_path, whole, count):
    for number, moment in enumerate(moments(count, whole.steps)):
        run, result = tmp_path / f"run{number}", tmp_path / f"{number}.json"
        code = ended(forked(functools.partial(interrupt_itself, run, moment, result)))
        assert code == 0, (moment, code)
        facts = json.loads(result.read_text())
        assert facts["raised"] == RAISED[moment.signum], (moment, facts)
        assert facts["notes"] == [f"resume with: cnnzoo train --resume {run}"], moment
        assert facts["restored"], moment
        state = Checkpoints(Run.open(run).state).newest()
        saved = state.epoch * whole.steps // SETTINGS["epochs"] + state.step
        assert saved == facts["taken"], moment  # nothing is lost
        if moment.where == "validation":
            assert state.step == whole.steps // SETTINGS["epochs"]  # it is done again
        assert facts["taken"] - facts["before"] <= 1, moment  # one more step at most
        again = functools.partial(train, resume=run, device="cpu", progress=False)
        assert ended(forked(lambda again=again: again() and None)) == 0
        require_same(run, whole.run)


def command_in(run, err):
    """Run the command line in this process, with stderr in a file; return its exit code.

    Files beside it say that signals are heard, and that there is something to go on with.
    """
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    ready, began = beside(err)
    invoke, fit, trained = app._invoke, trainer.fit, trainer.Session._train

    def heard(arguments):
        ready.touch()
        return invoke(arguments)

    def fitted(*arguments):
        began.touch()
        return fit(*arguments)

    def done(*arguments):
        run = trained(*arguments)
        began.unlink()
        return run

    app._invoke, trainer.fit, trainer.Session._train = heard, fitted, done
    try:
        return app.main(command(run))
    except (Terminated, KeyboardInterrupt):  # after the command
        return 0


def beside(err):
    return Path(f"{err}.ready"), Path(f"{err}.began")


@few_or_many(5, 15)
def test_the_command_tells_how_it_ended_and_how_to_go_on(tmp_path, whole, count):
    """At moments of the clock, from the start to the end; what was stopped is stopped again."""
    draw, stopped, started, number = random.Random(count), 0, 0, 0
    while stopped < count:
        run, code, number = tmp_path / f"run{number}", -1, number + 1
        while code:
            err, signum = tmp_path / f"err{started}", draw.choice([*RAISED])
            child, started = forked(functools.partial(command_in, run, err)), started + 1
            ready, began = beside(err)
            wait_for(ready)
            sent = time.monotonic() + draw.random() * whole.seconds
            if stopped < count:
                time.sleep(sent - time.monotonic())
                os.kill(child, signum)
            code = ended(child)
            if code == 0:
                continue
            stopped += 1
            said = err.read_text()
            assert code == 128 + signum, said
            assert ("terminated" if signum == signal.SIGTERM else "interrupted") in said
            assert "Traceback" not in said
            if began.exists():
                assert f"resume with: cnnzoo train --resume {run}" in said
        require_same(run, whole.run)


@SIGNALS
def test_a_real_command(tmp_path, whole, signum):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "cnn_core", *command(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(run / "state" / "e000000-s00000008")
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + signum, ""), err
    how = "terminated" if signum == signal.SIGTERM else "interrupted"
    assert err.splitlines()[-2:] == [how, f"resume with: cnnzoo train --resume {run}"]
    assert ended(forked(functools.partial(command_in, run, tmp_path / "err"))) == 0
    require_same(run, whole.run)


# --- a second one --------------------------------------------------------------------------


class Slow:
    """Sleep in the third step; files tell when it falls asleep and when it wakes."""

    def __init__(self, path):
        self.path = path

    def cnnzoo_step_end(self, epoch, step):
        if step == 2:
            self.path.touch()
            time.sleep(60)
            self.path.with_suffix(".awake").touch()


@pytest.mark.parametrize("first", [*RAISED], ids=["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("second", [*RAISED], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_at_once(tmp_path, first, second):
    run, asleep = tmp_path / "run", tmp_path / "asleep"
    child = forked(lambda: lenet(run, observers=[Slow(asleep)], save_steps=2) and None)
    wait_for(asleep)
    before = Checkpoints(run / "state").names()
    os.kill(child, first)
    time.sleep(0.1)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, second)
    assert ended(child, limit=120.0) == 128 + second
    assert not asleep.with_suffix(".awake").exists()  # it did not wait for the step to end
    assert Checkpoints(run / "state").names() == before == ["e000000-s00000002"]


def test_under_torchrun_the_echo_of_a_signal_is_no_second_one(monkeypatch):
    """Ctrl-C reaches every process at once, and again through torchrun."""

    class EndedError(Exception):
        pass

    def end(code):
        raise EndedError(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with signals.stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        stop.since -= signals.ECHO
        with pytest.raises(EndedError, match="143"):
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with signals.stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(EndedError, match="130"):
            os.kill(os.getpid(), signal.SIGINT)


# --- what belongs to the caller ------------------------------------------------------------


def mine(signum, frame):
    raise AssertionError("nobody sent a signal")


@contextlib.contextmanager
def my_handlers():
    before = [signal.signal(signum, mine) for signum in RAISED]
    try:
        yield
    finally:
        for signum, handler in zip(RAISED, before, strict=True):
            signal.signal(signum, handler)


def test_the_callers_handlers_are_back_afterwards(tmp_path):
    with my_handlers():
        lenet(tmp_path / "a", epochs=1)
        assert handlers() == [mine, mine]
        with pytest.raises(NumericalError):
            lenet(tmp_path / "b", lr=1e6, optimizer="sgd", schedule="constant")
        assert handlers() == [mine, mine]


def test_in_another_thread_training_works_and_signals_are_left_alone(tmp_path):
    heard, failed = [], []

    class Listener:
        def cnnzoo_step_end(self):
            heard.append(handlers())

    def work():
        try:
            torch.set_num_threads(1)
            lenet(tmp_path / "thread", epochs=1, observers=[Listener()])
        except BaseException as error:
            failed.append(error)

    with my_handlers():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(120)
        assert handlers() == [mine, mine]
    assert failed == []
    assert set(map(tuple, heard)) == {(mine, mine)}
    lenet(tmp_path / "main", epochs=1)
    weights = [Run.open(tmp_path / name).weights.read_bytes() for name in ("thread", "main")]
    assert weights[0] == weights[1]


# --- processes that decode -----------------------------------------------------------------

STREAMED = {
    "epochs": 2,
    "batch_size": 4,  # more batches than workers decode ahead
    "ema": 0.0,
    "save_steps": 0,
    "image_size": 32,
    "pipeline": "streaming",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of two classes of 60 images; the training on it that nobody interrupted."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(120):
        path = root / "abc"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    run = tmp_path_factory.mktemp("streamed") / "run"
    code = ended(forked(lambda: lenet(run, data=f"imagefolder:{root}", **STREAMED) and None))
    assert code == 0
    return f"imagefolder:{root}", Run.open(run)


class Leisurely:
    """Takes its time in the second epoch, and says so."""

    def __init__(self, path, seconds):
        self.path, self.seconds = path, seconds

    def cnnzoo_step_end(self, epoch, step):
        if (epoch, step) == (2, 1):
            self.path.touch()
            time.sleep(self.seconds)


def children(parent):
    """Return the processes that a process started, each with when it began."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            fields = about(folder.name)
            if fields and int(fields[1]) == parent:
                found.append((folder.name, fields[19]))
    return found


def about(process):
    """Return a process's state, parent, and so on; none if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return []


def alive(processes):
    found = [(process, about(process)) for process, _ in processes]
    begun = dict(processes)
    return [p for p, fields in found if fields and fields[0] != "Z" and fields[19] == begun[p]]


HOW = {
    "SIGTERM": ([signal.SIGTERM], os.kill),
    "SIGINT": ([signal.SIGINT], os.kill),
    "SIGTERM to the group": ([signal.SIGTERM], os.killpg),  # timeout, systemd, SLURM
    "SIGINT to the group": ([signal.SIGINT], os.killpg),  # a terminal
    "SIGTERM twice": ([signal.SIGTERM] * 2, os.kill),
    "SIGKILL": ([signal.SIGKILL], os.kill),
}


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", HOW)
def test_workers_are_gone_and_going_on_is_exact(tmp_path, pictures, how):
    data, whole = pictures
    sent, send = HOW[how]
    count = 1 if send is os.killpg else 2  # of one, the next batch is always still to be taken
    run, busy, raised = tmp_path / "run", tmp_path / "busy", tmp_path / "raised"

    def work():
        try:
            watching = [Leisurely(busy, 60 if len(sent) > 1 else 0.5)]
            lenet(run, data=data, workers=count, observers=watching, **STREAMED)
        except BaseException as error:
            raised.write_text(type(error).__name__)

    child = forked(work)
    wait_for(busy)
    workers = children(child)
    assert len(workers) == count
    for signum in sent:
        send(child, signum)
        time.sleep(0.1)
    code = ended(child)
    if sent in ([signal.SIGTERM], [signal.SIGINT]):
        assert (code, raised.read_text()) == (0, RAISED[sent[0]])
        state = Checkpoints(run / "state").newest()
        assert (state.epoch, state.step > 1) == (1, True)
    else:
        assert code in (128 + signal.SIGTERM, -signal.SIGKILL)
        assert not raised.exists()
    wait_until(lambda: not alive(workers))
    assert ended(forked(lambda: lenet(run, data=data, workers=1, **STREAMED) and None)) == 0
    require_same(run, whole)
