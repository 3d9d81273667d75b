"""What would be published: wheels and sdists, each held to git, each installed alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cnn_core import registry

ROOT = Path(__file__).parents[2]
PROJECTS = {
    path.parent.name: path.parent
    for path in sorted(
        (*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("examples/*/pyproject.toml"))
    )
}
MEMBERS = sorted(name for name, path in PROJECTS.items() if path.parent.name == "packages")
MODELS = {
    **{
        name: sorted(n for n, e in registry.models() if e.plugin.distribution == name)
        for name in MEMBERS
    },
    "cnn-arch-squeezenet": ["squeezenet1_0", "squeezenet1_1"],
    "cnn-data-kmnist": [],
    "cnn-track-csv": [],
}
QUICK = r"cnn-(core|viz|arch-lenet|arch-efficientnet|data-.*|track-.*)|cnnzoo"
BUILD = """
import os, sys
from flit_core import buildapi
for project in sys.argv[2:]:
    os.chdir(project)
    buildapi.build_wheel(sys.argv[1])
    buildapi.build_sdist(sys.argv[1])
"""


def build(folder, *projects):
    """Make the wheel and the sdist of each project."""
    command = [sys.executable, "-c", BUILD, str(folder), *map(str, projects)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder with what is published: $DIST (`make wheels`), or built here."""
    if given := os.environ.get("DIST"):
        return Path(given)
    folder = tmp_path_factory.mktemp("dist")
    build(folder, *PROJECTS.values())
    return folder


def by_project(files):
    return {path.name.split("-")[0].replace("_", "-"): path for path in files}


@pytest.fixture(scope="session")
def wheels(built):
    return by_project(built.glob("*.whl"))


@pytest.fixture(scope="session")
def sdists(built):
    return by_project(built.glob("*.tar.gz"))


def packed(path):
    """Return what a wheel or an sdist holds, by name; an sdist's top folder is left out."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist()}
    with tarfile.open(path) as sdist:
        return {
            member.name.partition("/")[2]: sdist.extractfile(member).read() for member in sdist
        }


def tracked(folder):
    """Return the files of a folder that git knows, by their names in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=folder, check=True, capture_output=True, text=True
    )
    return {name: (folder / name).read_bytes() for name in listed.stdout.split("\0") if name}


def differences(found, wanted):
    """Return the names of files that only one side has, or that differ."""
    return sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))


def closure(name, wheels):
    """Return what a distribution requires, itself and theirs included: (members, others)."""
    members, others, done, todo = set(), set(), set(), [(name, "")]
    while todo:
        name, extra = todo.pop()
        name = re.sub(r"[-_.]+", "-", name).lower()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        (members if name in wheels else others).add(name)
        if name in wheels:
            files = packed(wheels[name])
            (path,) = (n for n in files if n.endswith(".dist-info/METADATA"))
            said = message_from_bytes(files[path])
            wanted = said.get_all("Requires-Dist") or []
        else:
            wanted = metadata.requires(name) or []
        for requirement in map(Requirement, wanted):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(requirement.name, each) for each in ("", *requirement.extras)]
    return members, others


def alone(name, wheels, folder):
    """Make an environment of what a wheel requires and install it; return python, members."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    return python, install(name, wheels, python)


def install(name, wheels, python):
    """Install a wheel and what it requires into an environment of ours; return the members.

    Other people's distributions are links to those here. pip sees these and the wheels, and
    no index: it refuses when anything that is declared is not there.
    """
    members, others = closure(name, wheels)
    (site,) = (python.parent.parent / "lib").glob("python*/site-packages")
    links = python.parent.parent / "third-party"
    links.mkdir(exist_ok=True)
    here = Path(sysconfig.get_path("purelib"))
    for other in others:
        files = metadata.files(other) or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (links / top).exists() and (here / top).exists():
                (links / top).symlink_to(here / top)
    (site / "third-party.pth").write_text(f"{links}\n")
    pip = ("-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "-q")
    source = wheels[name].parent
    done = run(sys.executable, *pip, "--no-index", "--no-compile", "--find-links", source, name)
    assert (done.returncode, done.stderr) == (0, "")
    return members


def run(python, *arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, check=False, env=environment
    )


def test_every_member_and_example_has_a_wheel_and_an_sdist(wheels, sdists):
    assert sorted(wheels) == sorted(sdists) == sorted(PROJECTS) == sorted(MODELS)


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_holds_what_git_tracks_and_nothing_else(name, wheels):
    said = tomllib.loads((PROJECTS[name] / "pyproject.toml").read_text())["project"]
    info = f"{name.replace('-', '_')}-{said['version']}.dist-info"
    files = packed(wheels[name])
    own = {n: files.pop(n) for n in list(files) if n.startswith(f"{info}/")}
    assert differences(files, tracked(PROJECTS[name] / "src")) == []
    assert own[f"{info}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    expected = {"METADATA", "RECORD", "WHEEL", "licenses/LICENSE"}
    expected |= {"entry_points.txt"} if {"entry-points", "scripts"} & set(said) else set()
    assert {n.removeprefix(f"{info}/") for n in own} == expected


@pytest.mark.parametrize("name", PROJECTS)
def test_an_sdist_holds_what_git_tracks_and_builds_the_same_wheel(name, wheels, sdists, tmp_path):
    files = packed(sdists[name])
    assert files.pop("PKG-INFO")
    wanted = {n: data for n, data in tracked(PROJECTS[name]).items() if not n.startswith("tests/")}
    assert differences(files, wanted) == []
    with tarfile.open(sdists[name]) as sdist:
        sdist.extractall(tmp_path, filter="data")
    (tmp_path / "again").mkdir()
    build(tmp_path / "again", *tmp_path.glob("*-*/"))
    (again,) = (tmp_path / "again").glob("*.whl")
    assert again.name == wheels[name].name
    assert differences(packed(again), packed(wheels[name])) == []


def test_an_index_would_take_and_show_them(wheels, sdists):
    files = sorted(map(str, (*wheels.values(), *sdists.values())))
    done = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == len(files) == 2 * len(PROJECTS)


# Packages of networks are alike: `make wheels` tries them all.
ONE_OF_EACH_KIND = [
    pytest.param(name, marks=[] if re.fullmatch(QUICK, name) else [pytest.mark.slow])
    for name in PROJECTS
]


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_a_wheel_alone_lists_and_builds_its_models(name, wheels, tmp_path):
    python, members = alone(name, wheels, tmp_path)
    expected = sorted(model for member in members for model in MODELS[member])
    command = python.parent / "cnnzoo"
    shown = run(command, "plugins", "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    plugins = json.loads(shown.stdout)["plugins"]
    assert {plugin["status"] for plugin in plugins} == {"ok"}
    assert {plugin["distribution"] for plugin in plugins} == members - {"cnnzoo"}
    listed = run(command, "list-models", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert sorted(model["name"] for model in json.loads(listed.stdout)["models"]) == expected
    if name == "cnnzoo":
        assert members == set(MEMBERS)
        assert len(expected) > 40
        found = run(python, "-c", "from importlib import metadata; metadata.version('umap-learn')")
        assert found.returncode == 0  # cnn-viz[umap]
        return  # each of them builds alone
    if name == "cnn-viz":
        assert members == {"cnn-viz", "cnn-core"}  # and no architecture
        views = run(command, "list-views", "--json")
        assert "gradcam" in [view["name"] for view in json.loads(views.stdout)["views"]]
    if not expected and name != "cnn-core":
        return  # nothing to build, and torch takes seconds to import
    code = (
        "import sys, torch, cnn_core\n"
        "with torch.device('meta'):\n"
        "    for name in sys.argv[1:]:\n"
        "        model = cnn_core.create_model(name)\n"
        "        spec = cnn_core.get_spec(name)\n"
        "        assert sum(p.numel() for p in model.parameters()) == spec.params, name\n"
        "loaded = [m.__file__ for n, m in sys.modules.items() if n.startswith('cnn_')]\n"
        "assert all(path.startswith(sys.prefix) for path in loaded), loaded\n"
        "print(len(sys.argv) - 1)"
    )
    built = run(python, "-c", code, *expected)
    assert (built.stdout.strip(), built.stderr) == (str(len(expected)), "")


def test_a_third_partys_network_trains_alone_and_reports_once_cnn_viz_is_there(wheels, tmp_path):
    python, members = alone("cnn-arch-squeezenet", wheels, tmp_path)
    assert members == {"cnn-arch-squeezenet", "cnn-core"}
    command, out = python.parent / "cnnzoo", tmp_path / "run"
    quick = ("--epochs", "1", "--set", "image_size=48")
    trained = run(command, "train", "squeezenet1_1", "--data", "digits", *quick, "--out", out)
    assert (trained.returncode, trained.stdout) == (0, f"{out}\n")
    refused = run(command, "report", out)
    assert refused.returncode == 2
    assert "pip install cnn-viz" in refused.stderr
    assert not (out / "report.html").exists()
    assert install("cnn-viz", wheels, python) == {"cnn-viz", "cnn-core"}
    reported = run(command, "report", out)
    assert (reported.returncode, reported.stdout) == (0, f"{out / 'report.html'}\n")
    assert "could not be drawn" not in reported.stderr
    page = (out / "report.html").read_text("utf-8")
    assert "squeezenet1_1" in page
    assert all(f'id="{section}"' in page for section in ("confusion", "cams", "embedding"))
