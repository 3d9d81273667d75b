"""The plugins in examples/ work as their READMEs say, installed like anyone's."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cnn_core.training import Run

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))
TRACKER = ROOT / "examples" / "cnn-track-csv"
TRAIN = ("train", "lenet5_modern", "--data", "digits", "--epochs", "2", "--out")


def python(
    folder: Path, *command: object, site: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    before = [str(site)] if site is not None else []
    path = os.pathsep.join(filter(None, [*before, os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, **variables, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory, install) -> Path:
    """A folder like site-packages, with every example's wheel in it."""
    site = tmp_path_factory.mktemp("examples") / "site"
    for example in EXAMPLES:
        install(example, site)
    return site


@pytest.fixture(scope="module")
def tracked(installed, module, tmp_path_factory) -> tuple[Run, Any, Path]:
    """A run that was tracked into a file which another tool had begun."""
    folder = tmp_path_factory.mktemp("tracked")
    path = folder / "all.csv"
    path.write_text('run,note\nbefore,"mine, and\nmy own"\n', encoding="utf-8")
    done = module("cnn_core", *TRAIN, "run", site=installed, cwd=folder, CNN_TRACK_CSV=path)
    assert done.code == 0, done.err
    return Run.open(folder / "run"), done, path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_line_of_metrics_is_a_row(tracked):
    run, done, path = tracked
    assert "warning" not in done.err
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
    done = python(tmp_path, "-c", code, site=installed, CNN_TRACK_CSV="")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "experiments.csv").read_text() == (
        f"run,model,data,epoch\n{tmp_path / 'r'},m,d,1\n"
    )


def test_runs_side_by_side_lose_no_row(installed, pythonpath, tmp_path):
    """Four processes, each of which adds columns that the others do not know."""
    code = (
        "import sys; from types import SimpleNamespace as N; from pathlib import Path\n"
        "from cnn_track_csv.plugin import cnnzoo_epoch_end as end\n"
        "me = sys.argv[1]; run = N(path=Path(me), recipe=N(model='m', data='d'))\n"
        "for epoch in range(60):\n"
        "    end(run=run, epoch=epoch, metrics={f'{me}/{epoch // 6}': epoch})"
    )
    path = tmp_path / "all.csv"
    variables = {"PYTHONPATH": pythonpath(installed), "CNN_TRACK_CSV": str(path)}
    environment = {**os.environ, **variables}
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
    assert python(tmp_path, "-c", code, site=installed, CNN_TRACK_CSV=str(path)).returncode == 0
    assert rows_of(path)[-1] == {
        "run": str(tmp_path / "r"),
        "model": "m",
        "data": "d",
        "epoch": "1",
    }


def test_a_file_that_cannot_be_written_costs_one_line(installed, module, tmp_path):
    path = tmp_path / "all.csv"
    path.mkdir()
    done = module("cnn_core", *TRAIN, "run", site=installed, cwd=tmp_path, CNN_TRACK_CSV=path)
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("warning")]
    assert "plugin 'track-csv' (cnn-track-csv 0.1.0): hook cnnzoo_epoch_end, disabled" in line
    assert Run.open(tmp_path / "run").finished


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_their_own_tests_pass(installed, module, tmp_path, example):
    command = ("pytest", "-q", "-W", "error", "-p", "no:cacheprovider", example / "tests")
    done = module(*command, site=installed, cwd=tmp_path)
    assert done.code == 0, done.out
    assert int(re.search(r"(\d+) passed", done.out).group(1)) >= 2


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_they_are_light_to_import_and_sound(installed, tmp_path, example):
    code = (
        "import sys; from cnn_core import registry; from cnn_core.plugins import HEAVY, plugins\n"
        "registry.catalogues()\n"
        f"(found,) = [p for p in plugins().all if p.distribution == {example.name!r}]\n"
        "print(found.status, [name for name in HEAVY if name in sys.modules])"
    )
    assert python(tmp_path, "-c", code, site=installed).stdout == "ok []\n"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_licence_pin_and_links(example):
    assert (example / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    version = tomllib.loads((ROOT / "packages/cnn-core/pyproject.toml").read_text())["project"]
    project = tomllib.loads((example / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [f"cnn-core~={version['version']}"]
    readme = (example / "README.md").read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", readme) if not t.startswith("http")]
    assert "../../README.md" in targets
    assert all((example / target).exists() for target in targets)


def test_kmnist_is_fetched_by_the_cores_own_means(installed, script, tmp_path):
    """Without a network: it asks for what torchvision asks for, with the same checksums."""
    code = (
        "from torchvision.datasets import KMNIST; from cnn_data_kmnist.kmnist import REMOTE\n"
        "print(dict(KMNIST.resources) == dict(REMOTE.md5), [*REMOTE.mirrors] == KMNIST.mirrors)\n"
        "from cnn_core import registry\n"
        "print(registry.datasets().get('kmnist').classes == tuple(KMNIST.classes))"
    )
    assert script(code, tmp_path, site=installed).out == "True True\nTrue\n"


def test_kmnist_is_not_downloaded_unasked(installed, module, tmp_path):
    train = ("cnn_core", "train", "lenet5_modern", "--data", "kmnist", "--data-dir", "here")
    done = module(*train, site=installed, cwd=tmp_path)
    assert done.code == 1
    assert "--download fetches it" in done.err
    assert not list(tmp_path.iterdir())
