"""Each wheel installed alone, with what it declares and nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cnn_core import registry

ROOT = Path(__file__).parent.parent
MEMBERS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
MODELS = {
    name: sorted(n for n, e in registry.models() if e.plugin.distribution == name)
    for name in MEMBERS
}


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """A wheel of every member: those of $WHEELS (`make wheels`), or built here."""
    if given := os.environ.get("WHEELS"):
        folder = Path(given)
    else:
        folder = tmp_path_factory.mktemp("wheels")
        build = "import sys; from flit_core import buildapi; buildapi.build_wheel(sys.argv[1])"
        for name in MEMBERS:
            command = [sys.executable, "-c", build, str(folder)]
            subprocess.run(command, cwd=ROOT / "packages" / name, check=True, capture_output=True)
    return {path.name.split("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


def closure(names, wheels):
    """Return the requirements of distributions, and theirs: (members, others)."""
    members, others, todo = set(), set(), list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in members | others:
            continue
        (members if name in wheels else others).add(name)
        if name in wheels:
            with zipfile.ZipFile(wheels[name]) as wheel:
                (path,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
                lines = wheel.read(path).decode().splitlines()
            wanted = [
                line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist")
            ]
        else:
            wanted = metadata.requires(name) or []
        for requirement in map(Requirement, wanted):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return members, others


def alone(name, wheels, folder):
    """Make an environment with one wheel and what it requires; return its python."""
    members, others = closure([name], wheels)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    for member in members:
        with zipfile.ZipFile(wheels[member]) as wheel:
            wheel.extractall(site)
    links = folder / "third-party"
    links.mkdir()
    here = Path(sysconfig.get_path("purelib"))
    for other in others:
        files = metadata.files(other) or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            if not (links / top).exists() and (here / top).exists():
                (links / top).symlink_to(here / top)
    (site / "third-party.pth").write_text(f"{links}\n")
    return folder / "venv" / "bin" / "python", members


def run(python, *arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, check=False, env=environment
    )


def test_there_is_a_wheel_of_every_member(wheels):
    assert sorted(wheels) == MEMBERS


@pytest.mark.parametrize("name", MEMBERS)
def test_a_wheel_alone_lists_and_builds_its_models(name, wheels, tmp_path):
    python, members = alone(name, wheels, tmp_path)
    expected = sorted(model for member in members for model in MODELS[member])
    listed = run(python, "-m", "cnn_core", "list-models", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert sorted(model["name"] for model in json.loads(listed.stdout)["models"]) == expected
    if name == "cnnzoo":
        assert len(expected) > 40
        return  # each of them builds alone
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


def test_views_alone_need_no_architecture(wheels, tmp_path):
    python, members = alone("cnn-viz", wheels, tmp_path)
    assert members == {"cnn-viz", "cnn-core"}
    listed = run(python, "-m", "cnn_core", "list-views", "--json")
    assert "gradcam" in [view["name"] for view in json.loads(listed.stdout)["views"]]
