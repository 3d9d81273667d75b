"""Names that were made to do harm: refused or made safe, in files, on the terminal, in HTML."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest

from cnn_core import ModelSpec, Paper, create_model, load_dataset, train
from cnn_core.cli import main
from cnn_core.errors import SpecError, UnknownNameError, UsageError
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run

HOSTILE = (
    # Elsewhere
    *(
        "../x",
        "../../x",
        "..",
        ".",
        "/no/such/folder/x",
        "/no-such-file-or-folder",
        "~/x",
        "~root/x",
        "./x",
        "x/",
        "a/b",
        "//x",
    ),
    *("a/../../x", "..\\x", "C:\\x", "C:x", "\\\\host\\share\\x", "file:" + "///x", "x:stream"),
    # Nothing, blanks, control and format characters
    *(
        "",
        " ",
        " x",
        "x ",
        "\t",
        "\n",
        "a\nb",
        "a\r\nb",
        "\0",
        "a\0b",
        "\x07",
        "\x7f",
        "\x9b31mred",
    ),
    *("\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x1b]8;;http://x\x1b\\y", "a\bb"),
    *("\u202eevil", "\u2066x\u2069", "\u200bx", "\ufeffx", "a\u2028b", "a\u2029b", "\u00adx"),
    # Letters that look like others, or are none
    *("é", "x\u0301", "\uff46oo", "cnn-\u0430rch-x", "日本語", "\ud800", "\udcff", "ﬁ"),
    # Too long
    *("x" * 300, "é" * 150, "cnn-arch-" + "x" * 300, "cnn-arch-" + "-".join("x" * 150)),
    # Options, devices, shells, formats, markup
    *("-x", "-", "--", "--no-such", "-rf", "con", "nul", "PRN", "aux.txt", "com1", "lpt9", "x."),
    *(
        "$(touch x)",
        "`touch x`",
        "; touch x",
        "| sh",
        "*",
        "?",
        "%s%n",
        "{0}",
        "${HOME}",
        "'\"",
        "#",
    ),
    *("<script>alert(1)</script>", "&amp;", "$x_1$", "cnn--arch", "cnn-arch-", "cnn_arch_x"),
)
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")


def test_there_are_at_least_60():
    assert len(set(HOSTILE)) == len(HOSTILE) >= 60


def shown(name: str) -> str:
    return f"{ascii(name)[:24]}"


def assert_safe(text: str) -> None:
    odd = {c for c in text if c != "\n" and unicodedata.category(c) in UNSAFE}
    assert not odd, ascii(text)


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


@pytest.fixture
def cage(tmp_path, tmp_path_factory, monkeypatch):
    """A folder in a folder, so that what gets out of the inner one is seen, as in ~ or /tmp."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for variable in ("HOME", "TMPDIR"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    matplotlib = tmp_path_factory.mktemp("matplotlib")  # it writes there when it is imported
    monkeypatch.setenv("MPLCONFIGDIR", str(matplotlib))
    monkeypatch.setattr("tempfile.tempdir", None)  # or it would stay where it was
    monkeypatch.chdir(inner)
    return tmp_path


def refused(capsys, cage, *arguments: str) -> None:
    """Run a command that is to be refused, in a few safe lines, with nothing written."""
    before = files(cage)
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert code in (1, 2, 3), (code, out, err)
    assert out == ""
    assert_safe(err)
    assert 1 <= err.count("\n") <= 4
    assert len(err) < 1000
    assert "unexpected" not in err
    assert files(cage) == before


@pytest.mark.parametrize("name", HOSTILE, ids=shown)
def test_plugins(capsys, cage, name):
    refused(capsys, cage, "new", "--", name)
    refused(capsys, cage, "new", "--kind", "arch", "--", name)


@pytest.mark.parametrize("name", HOSTILE, ids=shown)
def test_models(capsys, cage, name):
    refused(capsys, cage, "show", "--", name)
    refused(capsys, cage, "train", "--data", "digits", "--out", "run", "--", name)
    refused(capsys, cage, "train", "lenet5", "--out", "run", "--data", name)
    with pytest.raises(UnknownNameError):
        create_model(name)
    with pytest.raises(UnknownNameError):
        load_dataset(name)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", name):
        with pytest.raises(SpecError) as caught:  # not even a plugin can call a model that
            ModelSpec(
                **{"name": name, "target": "a:b", "family": "f", "variant": "v", "summary": "s"},
                paper=Paper(title="t", authors="a", year=2020, url="https://example.org"),
                **{"input": (1, 8, 8), "min_size": 8, "num_classes": 10, "params": 1, "macs": 1},
                stages=("head",),
                cam_stage="head",
            )
        assert_safe(str(caught.value))


@pytest.mark.parametrize("name", HOSTILE, ids=shown)
def test_runs(capsys, cage, name):
    """What is no run is refused by every command that takes one; a new run's name is plain."""
    if not re.search("[\0\ud800]", name):  # which no shell can hand over
        for command in (["evaluate"], ["compare", "run"], ["report"], ["predict"]):
            refused(capsys, cage, *command, "--", name, *["x.png"] * (command == ["predict"]))
        refused(capsys, cage, "train", "--resume", name)
    for data in (name, f"imagefolder:{name}"):
        try:
            recipe = Recipe(model="cnn-arch-lenet/lenet5", data=data)
        except UsageError:
            assert re.search("[\ud800-\udfff]", name)
            continue
        path = Run.create(recipe, {}, None).path
        assert path.parent == Path("runs")
        assert re.fullmatch(r"lenet5-[\w-]{0,60}-\d{8}-\d{6}(-\d+)?", path.name, re.ASCII)
        assert path.is_dir()
    assert {Path(path).name for path in files(cage / "outer") if "inner" not in path} == set()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Images in folders with all of these names that the file system takes."""
    folder = tmp_path_factory.mktemp("hostile") / "pictures"
    digits = load_dataset("digits").split("train")
    from PIL import Image

    made = 0
    for number, name in enumerate(HOSTILE):
        try:
            place = folder / f"{name}"
            if place.parent != folder or name in ("", ".", ".."):
                continue
            place.mkdir(parents=True)
        except (OSError, ValueError):  # NUL, too long, no UTF-8
            continue
        for sample in range(4):
            image = digits.images[(4 * number + sample) % len(digits), 0].numpy()
            Image.fromarray(image).save(place / f"{sample}.png")
        made += 1
    assert made >= 60
    return folder


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "a\x1b[31mrun\u202e"
    data = f"imagefolder:{pictures}"
    return train("lenet5_modern", data, epochs=1, batch_size=32, out=out, progress=False)


@pytest.mark.parametrize("command", ["show-data", "verify-data", "evaluate", "predict", "viz"])
def test_classes_and_runs_on_the_terminal(run, pictures, tmp_path, on_terminal, command):
    arguments = {
        "show-data": [run.recipe.data, "--out", tmp_path / "\x1b[31m.png"],
        "verify-data": [run.recipe.data],
        "evaluate": [run.path],
        "predict": [run.path, pictures / "\x1b[31mred" / "0.png", "--top-k", "60"],
        "viz": ["confusion", run.path],
    }
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    # Some of the names differ only in characters that are not seen, which is a fault.
    code = 3 if command == "verify-data" else 0
    written = on_terminal(command, *arguments[command], code=code, **plain)
    # What rich and click themselves write is bold, or moves nothing: colours are off.
    assert_safe(re.sub(r"\x1b\[\??[0-9;]*[mlhKA]|\r", "", written))
    assert "\x1b[31m" not in written
    assert len(written) > 20


def test_classes_and_runs_in_html(capsys, run):
    """What a browser would show the other way round is escaped; the numbers are as they are."""
    assert main(["report", str(run.path)]) == 0
    capsys.readouterr()
    page = (run.path / "report.html").read_text("utf-8")
    assert_safe(page)
    assert "<script>alert" not in page
    found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S).group(1)
    names = [row["name"] for row in json.loads(found)["classes"]]
    assert {"\x1b[31mred", "\u202eevil", "<script>alert(1)<"} & set(names)
    assert len(names) == len(load_dataset(run.recipe.data).spec.classes)
