"""`cnnzoo new`: what it writes works as it is, and it writes nothing that it should not."""

from __future__ import annotations

import ast
import json
import os
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from cnn_core import files
from cnn_core.cli import main
from cnn_core.errors import UsageError, ZooError
from cnn_core.plugins.discovery import Plugin
from cnn_core.scaffold import writer as scaffold
from cnn_core.scaffold.writer import KINDS, RESERVED, next_steps, write_plugin

NAMES = {"arch": "cnn-arch-foo", "data": "cnn-data-foo", "view": "cnn-viz-foo"}
NAMES["command"] = "cnn-cmd-foo-bar"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_from_nothing_to_a_trained_network_that_conforms_in_a_minute(cnnzoo, install, tmp_path):
    """No line is edited; the minute is of CPU time, after the installation."""
    written = cnnzoo("new", "cnn-arch-foo", cwd=tmp_path)
    assert (written.code, written.out) == (0, "cnn-arch-foo\n")
    site = install(tmp_path / "cnn-arch-foo", tmp_path / "site")
    steps = [step.split() for step in written.err.splitlines()]
    assert [step[:2] for step in steps] == [
        ["pip", "install"],
        ["cnnzoo", "show"],
        ["cnnzoo", "train"],
        ["cnnzoo", "check"],
    ]
    before = children_seconds()
    assert cnnzoo("list-models", "foo", "--json", site=site).out.count('"cnn-arch-foo"') == 1
    for _, *step in steps[1:]:
        done = cnnzoo(
            *step, *["--out", "run"] * (step[0] == "train"), site=site, cwd=tmp_path, warm=True
        )
        assert done.code == 0, done.err + done.out
        assert "warning" not in done.err
    assert children_seconds() - before < 60
    assert re.match(r"(\d+) of \1 checks of 1 model, 1 plugin passed", done.out)
    last = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]
    claim = tomllib.loads(
        (tmp_path / "cnn-arch-foo/src/cnn_arch_foo/recipes/foo-digits.toml").read_text()
    )["claim"]
    assert json.loads(last)["test/top1"] == pytest.approx(claim["mean"], abs=0.015)


@pytest.mark.parametrize("kind", NAMES)
def test_what_it_writes_passes_its_own_tests(cnnzoo, install, module, tmp_path, kind):
    name = NAMES[kind]
    folder = write_plugin(name, out=tmp_path / name)
    site = install(folder, tmp_path / "site")
    command = ("pytest", "-q", "-p", "no:cacheprovider", "-W", "error")
    done = module(*command, site=site, cwd=folder, CNNZOO_STRICT=1)
    assert done.code == 0, done.out
    rows = {
        row["name"]: row
        for row in json.loads(cnnzoo("plugins", "--json", site=site).out)["plugins"]
    }
    plugin = name.removeprefix("cnn-arch-").removeprefix("cnn-")
    assert (rows[plugin]["status"], rows[plugin]["distribution"]) == ("ok", name)
    if kind != "arch":  # whose own test is this
        checked = cnnzoo("check", name, site=site, warm=True)
        assert checked.code == 0, checked.out
        whole = (
            r"(\d+) of \1 checks of 1 \w+( set)?, 1 plugin|(\d+) of \3 checks of 1 plugin, 1 view"
        )
        assert re.match(whole, checked.out)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("short", ["foo", "a-rather-long-name-with-many-words-2"])
def test_what_it_writes_is_whole_and_clean(tmp_path, kind, short):
    name = KINDS[kind].prefix + short
    folder = write_plugin(name, out=tmp_path / name)
    package, word = name.replace("-", "_"), short.replace("-", "_")
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert {"pyproject.toml", "README.md", "LICENSE", f"tests/test_{word}.py"} < found
    source = f"src/{package}"
    assert {
        f"{source}/{f}" for f in ("__init__.py", "plugin.py", f"{word}.py", "py.typed")
    } < found
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == name
    assert list(project["entry-points"]["cnnzoo"].values()) == [f"{package}.plugin"]
    assert all(re.fullmatch(r"cnn-[a-z]+~=\d+\.\d+\.0", need) for need in project["dependencies"])
    for path in folder.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not re.search(r"\$\w|PACKAGE|WORD", text), path
            if path.suffix == ".py" and short == "foo":
                assert max(map(len, text.splitlines() or [""])) <= 99
    for target in re.findall(r"\]\(([^):]+)\)", (folder / "README.md").read_text()):
        assert (folder / target).exists(), target
    if short == "foo":
        for check in (["check", "--ignore", "I"], ["format", "--check"]):
            config = Path(__file__).parents[2] / "pyproject.toml"
            command = [sys.executable, "-m", "ruff", *check, "--config", config, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout


def test_the_tests_it_writes_are_of_three_lines(tmp_path):
    for kind, name in NAMES.items():
        folder = write_plugin(name, out=tmp_path / kind)
        (test,) = (folder / "tests").iterdir()
        (function,) = [
            node for node in ast.parse(test.read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert function.end_lineno - function.lineno + 1 + len(function.decorator_list) <= 3


def test_names_that_the_files_use_are_not_given_away(tmp_path):
    """A network called `nn` would hide torch's."""
    for kind in ("arch", "view"):  # these have a function of their own name
        folder = write_plugin(f"{KINDS[kind].prefix}foo", out=tmp_path / kind)
        (file,) = folder.glob("src/*/foo.py")
        used = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                used |= {alias.name.lower() for alias in node.names}
            elif isinstance(node, ast.FunctionDef):
                used |= {node.name, *(argument.arg for argument in node.args.args)}
        assert {"tensor", "figure"} & used
        words = {word for word in used if re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", word)}
        methods = {"forward_features", "forward_head", "self", "x", "cin", "cout", "stride"}
        assert words - methods - {"foo", "num_classes", "in_channels"} <= RESERVED


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("cnn-arch-lenet", "", "'cnn-arch-lenet' is already installed, version 0.1.0"),
        ("cnn-arch-lenet5", "", "model 'lenet5' already belongs to cnn-arch-lenet"),
        ("cnn-arch-viz", "", "plugin 'viz' already belongs to cnn-viz"),
        ("cnn-data-digits", "", "dataset 'digits' already belongs to cnn-core"),
        ("cnn-viz-gradcam", "", "view 'gradcam' already belongs to cnn-viz"),
        ("cnn-cmd-train", "", "command 'train' already belongs to cnn-core"),
        ("cnn-cmd-list-models", "", "command 'list-models' already belongs to cnn-core"),
        ("click", "arch", "'click' is already installed"),
        ("json", "arch", "the module 'json' already exists"),
        ("mynet", "", "'mynet' does not start with the prefix of a kind: cnn-arch-…"),
        ("cnn-track-mine", "", "to observe training, copy examples/cnn-track-csv"),
        ("cnn-arch-class", "", "'class' is not a valid Python name"),
        ("cnn-arch-none", "", "'none' is not a valid Python name"),
        ("cnn-arch-2x", "", "'2x' is not a valid Python name"),
        ("cnn-viz-len", "", "the name 'len' is reserved"),
        ("cnn-arch-nn", "", "the name 'nn' is reserved"),
        ("cnn-arch-plugin", "", "the name 'plugin' is reserved"),
        ("cnn-arch-con", "", "the name 'con' is reserved"),
        ("cnn-data-lpt1", "", "the name 'lpt1' is reserved"),
        ("CNN_Arch.Foo", "", "for example: cnnzoo new cnn-arch-foo"),
    ],
)
def test_a_name_that_cannot_be_says_why_and_writes_nothing(here, capsys, name, kind, message):
    assert main(["new", name, *(["--kind", kind] if kind else [])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert 2 <= err.count("\n") <= 3
    assert not list(here.iterdir())


def test_a_known_model_that_is_not_installed_is_taken_too(here, monkeypatch):
    known = {"model": {"squeezenet": "cnn-arch-squeezenet"}}
    monkeypatch.setattr(scaffold, "directory", lambda: known)
    with pytest.raises(UsageError, match="already belongs to cnn-arch-squeezenet, which"):
        write_plugin("cnn-arch-squeezenet", out=here / "x")


@pytest.mark.parametrize(
    ("status", "fault", "how"),
    [
        ("disabled", "", "blocked: disabled"),
        ("", "no libfoo", "broken: no libfoo"),
        ("", "", "installed in another version"),
    ],
)
def test_a_known_model_whose_plugin_does_not_work_is_no_missing_one(
    here, monkeypatch, status, fault, how
):
    there = Plugin("bar", "cnn-arch-bar", "1.2.3", "bar", blocked=status)
    if fault:
        there.add_fault("import", fault, fatal=True)
    monkeypatch.setattr(scaffold, "directory", lambda: {"model": {"foo": "cnn-arch-bar"}})
    monkeypatch.setattr(scaffold, "plugins", lambda: SimpleNamespace(all=[there]))
    with pytest.raises(UsageError, match=f"'foo' already belongs to cnn-arch-bar, which is {how}"):
        write_plugin("cnn-arch-foo", out=here / "x")


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file", "dangling link"])
def test_what_is_there_stays_as_it_is(here, capsys, kind):
    path = here / "cnn-arch-foo"
    if kind == "file":
        path.write_text("mine")
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
        if kind == "folder":
            (path / "mine").write_text("mine")
    before = sorted((p, p.lstat().st_mtime_ns) for p in here.rglob("*"))
    assert main(["new", "cnn-arch-foo"]) == 2
    assert "cnn-arch-foo already exists" in capsys.readouterr().err
    assert sorted((p, p.lstat().st_mtime_ns) for p in here.rglob("*")) == before


def test_of_two_at_a_time_one_wins_and_nothing_is_mixed(here, monkeypatch):
    """The other's folder comes between the look and the rename."""
    real = os.rename

    def rename(source, target):
        Path(target).mkdir()
        (Path(target) / "theirs").write_text("theirs")
        real(source, target)

    monkeypatch.setattr(files.os, "rename", rename)
    with pytest.raises(ZooError, match="cannot write cnn-arch-foo"):
        write_plugin("cnn-arch-foo")
    assert [str(p.relative_to(here)) for p in sorted(here.rglob("*"))] == [
        "cnn-arch-foo",
        "cnn-arch-foo/theirs",
    ]


@pytest.mark.parametrize("at", [0, 3, 7])
def test_a_full_disk_leaves_nothing(here, monkeypatch, at):
    count = iter(range(100))

    def write(path, text):
        if next(count) == at:
            raise OSError(28, "No space left on device", str(path))
        files.write_text(path, text)

    monkeypatch.setattr(scaffold, "write_text", write)
    with pytest.raises(ZooError, match="No space left"):
        write_plugin("cnn-arch-foo")
    assert not list(here.iterdir())


def test_next_steps_can_be_pasted(tmp_path):
    steps = next_steps(Path("my plugins/foo"), "cnn-data-foo")
    assert steps[0] == "pip install -e 'my plugins/foo'"
    assert next_steps(Path("x"), "my-net", "arch")[1] == "cnnzoo show my_net"
