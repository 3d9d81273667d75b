"""The members: versions, pins, licences, what is in the wheels, and public names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = sorted(path.parent for path in ROOT.glob("packages/*/pyproject.toml"))
NAMES = [member.name for member in MEMBERS]


def project(member: Path) -> dict:
    return tomllib.loads((member / "pyproject.toml").read_text())["project"]


def source(member: Path) -> Path:
    return member / "src" / member.name.replace("-", "_")


@pytest.mark.parametrize("member", MEMBERS, ids=NAMES)
def test_metadata_is_complete_and_alike(member):
    facts, core = project(member), project(ROOT / "packages" / "cnn-core")
    assert facts["version"] == core["version"]
    assert facts["license"] == "MIT"
    assert facts["requires-python"] == ">=3.11"
    module = importlib.import_module(source(member).name)
    assert module.__version__ == facts["version"]
    assert (source(member) / "py.typed").is_file()
    assert (member / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert f"-e packages/{member.name}" in (ROOT / "requirements.txt").read_text()
    assert len((member / "README.md").read_text().splitlines()) > 15


@pytest.mark.parametrize("member", MEMBERS, ids=NAMES)
def test_siblings_are_pinned_to_this_release(member):
    facts = project(member)
    for requirement in facts["dependencies"]:
        name = re.match(r"[\w-]+", requirement).group()
        if name in NAMES:
            assert requirement.endswith(f"~={facts['version']}"), requirement
    if member.name.startswith("cnn-arch-"):
        assert facts["dependencies"] == [f"cnn-core~={facts['version']}"]


def test_the_facade_depends_on_every_member():
    wanted = {
        re.match(r"[\w-]+", r).group() for r in project(ROOT / "packages/cnnzoo")["dependencies"]
    }
    assert wanted == set(NAMES) - {"cnnzoo"}


def test_the_facade_has_the_cores_face():
    import cnn_core
    import cnnzoo

    assert cnnzoo.__all__ == cnn_core.__all__
    assert all(getattr(cnnzoo, name) is getattr(cnn_core, name) for name in cnnzoo.__all__)


@pytest.mark.parametrize("member", MEMBERS, ids=NAMES)
def test_the_wheel_holds_every_file_of_the_package(member, tmp_path):
    code = (
        "import os, sys; from flit_core import buildapi\n"
        "os.chdir(sys.argv[1]); print(buildapi.build_wheel(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(member), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        extra = {name.rpartition("/")[2] for name in wheel.namelist() if ".dist-info/" in name}
    files = {
        str(path.relative_to(member / "src"))
        for path in source(member).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == files
    assert "LICENSE" in extra


# Methods whose meaning is that of the class they come from.
OVERRIDES = {
    "extra_repr",
    "forward",
    "forward_features",
    "forward_head",
    "get_command",
    "get_invalid_choice_message",
    "list_commands",
    "reset_classifier",
    "resolve_command",
    "shell_complete",
    "start",
    "step",
    "epoch",
    "stop",
}


def modules() -> list[str]:
    found = []
    for member in MEMBERS:
        for path in sorted(source(member).rglob("*.py")):
            parts = path.relative_to(member / "src").with_suffix("").parts
            if parts[-1] not in ("__main__", "plugin_report"):
                found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.parametrize("name", modules())
def test_public_names_are_sorted_and_there(name):
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None)
    if names is None:
        own = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == name]
        assert name.endswith((".hookspecs", ".plugin")) or not own, "no __all__"
        return
    assert list(names) == sorted(names)
    assert all(getattr(module, public) is not None for public in names)


@pytest.mark.parametrize("name", modules())
def test_functions_are_short_and_public_ones_say_what_they_do(name):
    module = importlib.import_module(name)
    tree = ast.parse(Path(module.__file__).read_text())
    assert ast.get_docstring(tree), f"{name} has no docstring"
    hooks = name.endswith(".plugin") or name == "cnn_core.builtin.plugin"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    nodes = [*tree.body, *(inner for node in classes for inner in node.body)]
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.body[0].lineno + 1
            assert body <= 50 or hooks, f"{name}.{node.name} is {body} lines long"
        stub = isinstance(node.body[-1], ast.Expr)
        exempt = hooks or stub or node.name.startswith("_") or node.name in OVERRIDES
        assert ast.get_docstring(node) or exempt, f"{name}.{node.name} has no docstring"


def test_nothing_in_the_repository_names_a_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    private = re.compile("/" + r"(work|root|home/\w+)/|file:/{2}|pypi\.(org|python)")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yml", ".html", "") and path.is_file():
            found = private.search(path.read_text(errors="replace"))
            assert not found, f"{name} says {found.group()}"
