"""Runs side by side: what `cnnzoo compare` says is what their files say."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cnn_core
from cnn_core.cli.compare import differences, open_runs
from cnn_core.errors import UsageError
from cnn_core.plugins import HEAVY
from cnn_core.training import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Two short runs, "a" and "b", which differ in three keys."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"progress": False, "epochs": 2, "device": "cpu"}
    return {
        "a": cnn_core.train("lenet5_modern", "digits", out=folder / "a", **settings),
        "b": cnn_core.train(
            "lenet5_modern",
            "digits",
            out=folder / "b",
            **{**settings, "epochs": 1, "seed": 1, "flip": True},
        ),
    }


@pytest.fixture
def copied(runs, tmp_path) -> tuple[Run, Run]:
    """The two runs, to be changed; in folders of one name."""
    for name, run in runs.items():
        shutil.copytree(run.path, tmp_path / name / "run")
    return Run.open(tmp_path / "a" / "run"), Run.open(tmp_path / "b" / "run")


def rows(text: str) -> dict[str, list[str]]:
    """Return the cells of each row of the second table, by its first; two spaces are between."""
    heading, _, *lines = text.split("\n\n")[1].splitlines()
    assert heading == "Results"
    cells = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    return {row[0]: row[1:] for row in cells}


def lines_of(run: Run, lines: list[dict]) -> None:
    """Let a run have said this."""
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def epoch(number: int, **numbers: float) -> dict[str, float]:
    found = {"epoch": number, "train/loss": 1.0, "lr": 0.1, "seconds": 2.5}
    return found | {name.replace("_", "/"): value for name, value in numbers.items()}


def test_the_recipe_keys_that_differ_are_those_and_no_others(cnnzoo, runs):
    done = cnnzoo("compare", runs["a"].path, runs["b"].path)
    assert (done.code, done.err) == (0, "")
    first, second = done.out.split("\n\n")
    heading, titles, *found = first.splitlines()
    assert heading == "Differences between the recipes"
    assert titles.split() == ["key", "a", "b"]
    assert [line.split() for line in found] == [
        ["epochs", "2", "1"],
        ["seed", "0", "1"],
        ["flip", "false", "true"],
    ]
    assert second.startswith("Results\n")


def test_the_results_are_those_of_the_runs(cnnzoo, runs):
    a, b = runs.values()
    found = rows(cnnzoo("compare", a.path, b.path).out)
    kept = [int(run.metrics()[-1]["epoch"]) for run in (a, b)]
    assert found["epochs"] == ["2", "1"]
    assert found["best epoch"] == list(map(str, kept))
    assert found["val/top1"] == [
        f"{run.history()[epoch - 1]['val/top1']:.4f}"
        for run, epoch in zip((a, b), kept, strict=True)
    ]
    for name in a.test_metrics():
        assert found[name] == [f"{run.test_metrics()[name]:.4f}" for run in (a, b)]
    assert found["seconds"] == [
        f"{round(sum(line['seconds'] for line in run.history()), 3):.1f}" for run in (a, b)
    ]
    assert list(found) == ["epochs", "best epoch", "val/top1", *a.test_metrics(), "seconds"]


def test_json_is_one_object_of_runs(cnnzoo, runs):
    a, b = runs.values()
    done = cnnzoo("compare", a.path, b.path, "--json")
    assert (done.code, done.err) == (0, "")
    content = json.loads(done.out)
    assert set(content) == {"schema", "runs", "differ"}
    assert content["differ"] == ["epochs", "seed", "flip"]
    first, second = content["runs"]
    assert (first["name"], first["path"]) == ("a", str(a.path))
    assert first["recipe"]["optimizer"] == a.recipe.optimizer
    assert (first["epochs"], second["epochs"]) == (2, 1)
    assert first["score"] == "val/top1"
    assert first["validation"] == a.history()[first["best_epoch"] - 1]["val/top1"]
    assert second["test"] == b.test_metrics()
    assert first["finished"] is True
    assert first["machine"] == second["machine"] == {}


def test_the_machine_is_there_where_it_differs(cnnzoo, copied):
    a, b = copied
    environment = b.environment() | {"device_name": "Other \x1b[31mchip", "data_fingerprint": "0"}
    (b.path / "environment.json").write_text(json.dumps(environment))
    found = rows(cnnzoo("compare", a.path, b.path).out)
    assert found["device_name"] == [a.environment()["device_name"], r"Other \x1b[31mchip"]
    assert found["data_fingerprint"] == [a.environment()["data_fingerprint"], "0"]
    assert "torch" not in found
    machines = [
        each["machine"]
        for each in json.loads(cnnzoo("compare", a.path, b.path, "--json").out)["runs"]
    ]
    assert [set(machine) for machine in machines] == [{"device_name", "data_fingerprint"}] * 2


def test_runs_of_one_recipe_say_so(cnnzoo, runs, tmp_path):
    again = shutil.copytree(runs["a"].path, tmp_path / "again")
    done = cnnzoo("compare", runs["a"].path, again)
    assert done.out.startswith("The recipes are identical\n\nResults\n")


def test_options_are_compared_one_by_one(copied):
    text = (copied[0].path / "recipe.toml").read_text()
    options = ("width = 0.5\ndepth = 3", "width = 0.5\nsmall = true")
    for run, lines in zip(copied, options, strict=True):
        assert "[recipe.options]" in text
        (run.path / "recipe.toml").write_text(
            text.replace("[recipe.options]", f"[recipe.options]\n{lines}")
        )
    found = differences([Run.open(run.path) for run in copied])
    assert found == {"options.depth": ["3", None], "options.small": [None, "true"]}


def test_names_are_as_long_as_they_must_be(copied, runs):
    assert list(open_runs([run.path for run in runs.values()])) == ["a", "b"]
    assert list(open_runs([run.path for run in copied])) == ["a/run", "b/run"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("", 2, "Missing argument"),
        ("a", 2, "only one run is given"),
        ("a a/../a", 2, "a/../a: given twice"),
        ("a nowhere", 2, "nowhere: no such run directory"),
        ("a .", 2, "not a run: recipe.toml is missing"),
        (
            "a b --plot curves.jpg",
            2,
            "curves.jpg: expected a file name that ends in .png, ",
        ),
    ],
)
def test_misuse_is_one_error_and_prints_nothing(cnnzoo, runs, arguments, code, message):
    done = cnnzoo("compare", *arguments.split(), cwd=runs["a"].path.parent)
    assert done.code == code, done.err
    assert message in done.err
    assert 1 <= done.err.count("\n") <= 3
    assert done.out == ""


def test_names_of_folders_harm_no_terminal(cnnzoo, runs, tmp_path):
    odd = tmp_path / "\x1b[31m\u202e$5 [bold]"
    shutil.copytree(runs["a"].path, odd)
    done = cnnzoo("compare", odd, runs["b"].path)
    assert done.code == 0
    assert r"\x1b[31m\u202e$5 [bold]" in done.out
    assert not {"\x1b", "\u202e"} & set(done.out)


def test_a_title_is_no_markup_on_a_terminal(monkeypatch, capsys):
    from cnn_core.cli import output

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    output.table(("key", "run [bold]", "[/x]"), [("seed", "0", "1")], right=("[/x]",))
    written = capsys.readouterr().out
    assert "run [bold]" in written
    assert "[/x]" in written


# What was kept, where no line says it yet


def test_of_equal_scores_the_later_epoch_is_kept_as_in_training(cnnzoo, copied):
    for run in copied:
        scores = (float("nan"), 0.9, 0.5, 0.9, 0.8)
        lines_of(run, [epoch(n, val_top1=score) for n, score in enumerate(scores, 1)])
    text = (copied[1].path / "recipe.toml").read_text()
    (copied[1].path / "recipe.toml").write_text(text.replace("epochs = 1", "epochs = 8"))
    found = rows(cnnzoo("compare", *(run.path for run in copied)).out)
    assert found == {
        "epochs": ["5", "5 of 8"],
        "best epoch": ["4", "4"],
        "val/top1": ["0.9000", "0.9000"],
        "seconds": ["12.5", "12.5"],
    }


def test_the_score_is_the_recipes_and_less_loss_is_better(cnnzoo, copied):
    a, b = copied
    text = (a.path / "recipe.toml").read_text()
    (a.path / "recipe.toml").write_text(text.replace('monitor = ""', 'monitor = "val/loss"'))
    for run in copied:
        numbers = ((0.3, 0.5), (0.2, 0.6), (0.4, 0.7))
        lines_of(run, [epoch(n, val_loss=x, val_top1=y) for n, (x, y) in enumerate(numbers, 1)])
    found = rows(cnnzoo("compare", a.path, b.path).out)
    assert found["best epoch"] == ["2", "3"]
    assert found["val/loss"] == ["0.2000", "–"]  # noqa: RUF001
    assert found["val/top1"] == ["–", "0.7000"]  # noqa: RUF001


def test_segmentation_and_runs_without_validation_or_epochs(cnnzoo, copied):
    a, b = copied
    lines_of(a, [epoch(1, val_miou=0.25), {"epoch": 1, "test/loss": 1.0, "test/miou": 0.75}])
    lines_of(b, [epoch(1), epoch(2)])
    found = rows(cnnzoo("compare", a.path, b.path).out)
    assert found["val/miou"] == ["0.2500", "–"]  # noqa: RUF001
    assert found["test/miou"] == ["0.7500", "–"]  # noqa: RUF001
    assert found["best epoch"] == ["1", "2"]  # without validation the last one
    lines_of(b, [])
    found = rows(cnnzoo("compare", a.path, b.path).out)
    assert (found["epochs"], found["best epoch"]) == (["1 of 2", "0 of 1"], ["1", "–"])  # noqa: RUF001


# What it needs


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_reading_runs_imports_nothing_heavy(runs):
    code = (
        "import sys; from cnn_core.cli import main\n"
        "code = main(['compare', *sys.argv[1:]])\n"
        f"sys.exit(code or [name for name in {HEAVY!r} if name in sys.modules] or 0)"
    )
    done = python(code, *(run.path for run in runs.values()))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_of_a_model_that_is_not_installed_can_be_read(cnnzoo, runs):
    paths = [run.path for run in runs.values()]
    assert cnnzoo("compare", *paths, CNNZOO_PLUGINS="").out == cnnzoo("compare", *paths).out


def test_a_plot_without_cnn_viz_says_what_to_install(runs, tmp_path):
    code = (
        "import sys; from cnn_core.plugins import loader; loader.discover = lambda: []\n"
        "from cnn_core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    paths = [run.path for run in runs.values()]
    done = python(code, "compare", *paths, "--plot", tmp_path / "curves.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "pip install cnn-viz"
    assert "overlay" in done.stderr


@pytest.mark.parametrize("json_too", [False, True])
def test_a_plot_is_drawn_beside_the_tables(cnnzoo, runs, tmp_path, json_too):
    paths, out = [run.path for run in runs.values()], tmp_path / "new" / "curves.png"
    options = ["--json"] if json_too else []
    done = cnnzoo("compare", *paths, "--plot", out, *options)
    assert (done.code, done.err) == (0, f"{out}\n")
    assert done.out == cnnzoo("compare", *paths, *options).out
    assert out.read_bytes().startswith(b"\x89PNG")


def test_fewer_than_two_is_refused_from_python_too(runs):
    with pytest.raises(UsageError, match="give two runs or more"):
        open_runs([Path(runs["a"].path)])
