"""The plugins in examples/ work as their READMEs say, installed like anyone's."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_core.training import Run

ROOT = Path(__file__).parent.parent
TRACKER = ROOT / "examples" / "cnn-track-csv"
TRAIN = ("train", "lenet5_modern", "--data", "digits", "--epochs", "2", "--out")


def python(folder: Path, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder like site-packages, with the tracker's wheel in it."""
    folder = tmp_path_factory.mktemp("tracker")
    build = "import sys; from flit_core import buildapi; buildapi.build_wheel(sys.argv[1])"
    built = python(TRACKER, "-c", build, folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    assert python(folder, "-m", "zipfile", "-e", wheel, folder / "site").returncode == 0
    return folder / "site"


@pytest.fixture(scope="module")
def tracked(installed, tmp_path_factory) -> tuple[Run, subprocess.CompletedProcess[str], Path]:
    """A run that was tracked into a file which another tool had begun."""
    folder = tmp_path_factory.mktemp("tracked")
    path = folder / "all.csv"
    path.write_text('run,note\nbefore,"mine, and\nmy own"\n', encoding="utf-8")
    variables = {"PYTHONPATH": str(installed), "CNN_TRACK_CSV": str(path)}
    done = python(folder, "-m", "cnn_core", *TRAIN, "run", **variables)
    assert done.returncode == 0, done.stderr
    return Run.open(folder / "run"), done, path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_line_of_metrics_is_a_row(tracked):
    run, done, path = tracked
    assert "warning" not in done.stderr
    before, *rows = rows_of(path)
    lines = run.metrics()
    assert len(rows) == len(lines) == 3
    for row, line in zip(rows, lines, strict=True):
        assert {name: float(row[name]) for name in line} == line
        assert (row["run"], row["model"], row["data"]) == (
            str(run.path.absolute()),
            "lenet5_modern",
            "digits",
        )
        empty = set(row) - set(line) - {"run", "model", "data"}
        assert {row[name] for name in empty} == {""}
    assert {name: value for name, value in before.items() if value} == {
        "run": "before",
        "note": "mine, and\nmy own",
    }


def test_the_file_is_where_one_stands_if_nothing_is_said(installed, tmp_path):
    code = (
        "from types import SimpleNamespace as N; from pathlib import Path\n"
        "from cnn_track_csv.plugin import cnnzoo_epoch_end as end\n"
        "run = N(path=Path('r'), recipe=N(model='m', data='d'))\n"
        "end(run=run, epoch=1, metrics={'epoch': 1})"
    )
    done = python(tmp_path, "-c", code, PYTHONPATH=str(installed), CNN_TRACK_CSV="")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "experiments.csv").read_text() == (
        f"run,model,data,epoch\n{tmp_path / 'r'},m,d,1\n"
    )


def test_runs_side_by_side_lose_no_row(installed, tmp_path):
    """Four processes, each of which adds columns that the others do not know."""
    code = (
        "import sys; from types import SimpleNamespace as N; from pathlib import Path\n"
        "from cnn_track_csv.plugin import cnnzoo_epoch_end as end\n"
        "me = sys.argv[1]; run = N(path=Path(me), recipe=N(model='m', data='d'))\n"
        "for epoch in range(60):\n"
        "    end(run=run, epoch=epoch, metrics={f'{me}/{epoch // 6}': epoch})"
    )
    path = tmp_path / "all.csv"
    environment = {**os.environ, "PYTHONPATH": str(installed), "CNN_TRACK_CSV": str(path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=tmp_path, env=environment)
        for name in "abcd"
    ]
    assert [each.wait(timeout=120) for each in started] == [0] * 4
    rows = rows_of(path)
    assert len(rows) == 240
    assert len(rows[0]) == 4 + 40
    for row in rows:
        me, epoch = Path(row["run"]).name, int(row["epoch"])
        filled = {name for name, value in row.items() if value} - {"run", "model", "data", "epoch"}
        assert filled == {f"{me}/{epoch // 6}"}
        assert row[f"{me}/{epoch // 6}"] == str(epoch)


def test_a_row_after_half_a_row_is_whole(installed, tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("run,model,data,epoch\na,b", encoding="utf-8")
    code = (
        "from types import SimpleNamespace as N; from pathlib import Path\n"
        "from cnn_track_csv.plugin import cnnzoo_epoch_end as end\n"
        "end(run=N(path=Path('r'), recipe=N(model='m', data='d')), epoch=1, metrics={})"
    )
    variables = {"PYTHONPATH": str(installed), "CNN_TRACK_CSV": str(path)}
    assert python(tmp_path, "-c", code, **variables).returncode == 0
    assert rows_of(path)[-1] == {
        "run": str(tmp_path / "r"),
        "model": "m",
        "data": "d",
        "epoch": "1",
    }


def test_a_file_that_cannot_be_written_costs_one_line(installed, tmp_path):
    (tmp_path / "all.csv").mkdir()
    variables = {"PYTHONPATH": str(installed), "CNN_TRACK_CSV": str(tmp_path / "all.csv")}
    done = python(tmp_path, "-m", "cnn_core", *TRAIN, "run", **variables)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning")]
    assert "plugin 'track-csv' (cnn-track-csv 0.1.0): hook cnnzoo_epoch_end, now silenced" in line
    assert Run.open(tmp_path / "run").finished


def test_its_own_tests_pass(installed, tmp_path):
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", TRACKER / "tests")
    done = python(tmp_path, *command, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_it_is_light_to_import(installed, tmp_path):
    code = (
        "import sys; from cnn_core.plugins import HEAVY; import cnn_track_csv.plugin\n"
        "print([name for name in HEAVY if name in sys.modules])"
    )
    assert python(tmp_path, "-c", code, PYTHONPATH=str(installed)).stdout == "[]\n"


def test_its_licence_and_pin_are_ours():
    assert (TRACKER / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    readme = (TRACKER / "README.md").read_text(encoding="utf-8")
    for target in ("../../README.md", "pyproject.toml", "src/cnn_track_csv/plugin.py"):
        assert f"]({target})" in readme
        assert (TRACKER / target).exists()
