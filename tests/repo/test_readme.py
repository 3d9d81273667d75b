"""The README is true: its commands run, its plugin works, its numbers match the recipes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from cnn_core import get_spec, registry
from cnn_viz.drawing.render import views_for

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture
def type_in(cnnzoo, tmp_path):
    """Return a function that runs a line of cnnzoo's in the test's folder; it must end well."""

    def run_line(line: str, site: Path | None = None) -> str:
        name, *words = shlex.split(line)
        assert name == "cnnzoo"
        done = cnnzoo(*words, cwd=tmp_path, site=site, warm=True)
        assert done.code == 0, f"{line}: {done.err}"
        return done.out

    return run_line


def test_every_command_of_use_runs_as_it_stands(type_in, tmp_path):
    commands = blocks(section("Use"), "bash")[0].splitlines()
    assert len(commands) == 12
    for line in commands:
        type_in(line)
    assert (tmp_path / "runs" / "first" / "report.html").is_file()
    assert (tmp_path / "runs" / "first" / "lenet5_modern.pt2").is_file()
    figures = (tmp_path / "runs" / "first" / "figures").glob("*.png")
    assert {path.stem for path in figures} == {name for name, _ in views_for("classification")}


def test_every_command_with_trained_networks_runs_as_it_stands(type_in, tmp_path):
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "photo.jpg")
    printed = "".join(map(type_in, blocks(section("Trained networks"), "bash")[0].splitlines()))
    assert printed.count("palace") == 2  # by the weights and by the exported file
    assert (tmp_path / "cams" / "photo.grad-cam.png").is_file()


def test_every_command_about_training_runs_as_it_stands(type_in, tmp_path):
    for line in blocks(section("Training"), "bash")[0].splitlines():
        if line.startswith("torchrun "):
            smaller = ["--set", "image_size=16"]  # a quarter of the time
            run(["-m", "torch.distributed.run", *shlex.split(line)[1:], *smaller], tmp_path)
        else:
            type_in(line)
    assert (tmp_path / "curves.png").is_file()
    assert (tmp_path / "runs" / "two" / "weights.safetensors").is_file()


def test_every_command_about_data_runs_as_it_stands(type_in, tmp_path):
    commands = blocks(section("Your own images, and standard datasets"), "bash")[0]
    for line in commands.splitlines():
        type_in(line)
    assert (tmp_path / "digits.png").is_file()


def test_the_python_snippet_runs(script, tmp_path):
    (code,) = blocks(section("Use"), "python")
    done = script(code, tmp_path)
    assert done.code == 0, done.err
    assert 0.5 < float(done.out) <= 1


def test_the_plugin_works_as_printed(type_in, tmp_path):
    text = section("Your own network, as a plugin")
    files = dict(re.findall(r"`([\w/.]+)`\n\n```\w+\n(.*?)```", text, re.S))
    assert set(files) == {"pyproject.toml", "cnn_arch_tiny/plugin.py", "cnn_arch_tiny/tiny.py"}
    code = "".join(files[name] for name in sorted(files))
    assert len([line for line in code.splitlines() if line.strip()]) <= 45
    project, wheels, site = (tmp_path / name for name in ("project", "wheels", "site"))
    for name, content in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    wheels.mkdir()
    build = "import sys; from flit_core import buildapi; buildapi.build_wheel(sys.argv[1])"
    run(["-c", build, str(wheels)], project)
    (wheel,) = wheels.iterdir()
    run(["-m", "zipfile", "-e", str(wheel), str(site)], tmp_path)
    assert "tiny" in type_in("cnnzoo list-models", site)
    shown = type_in("cnnzoo show tiny", site)
    spec_numbers = re.search(r"params=([\d_]+), macs=([\d_]+)", files["cnn_arch_tiny/plugin.py"])
    for number in spec_numbers.groups():
        assert f"{int(number):,}" in shown
    type_in("cnnzoo train tiny --data digits --epochs 1 --out tiny", site)


def rows() -> list[list[str]]:
    table = re.search(r"^\| model \|.*?\n\n", README, re.M | re.S).group().strip()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def test_the_tables_numbers_are_those_of_specs_and_recipes():
    names = {"digits": "digits", "Fashion-MNIST": "fashion_mnist", "MNIST": "mnist"}
    model, checked = "", 0
    for first, _, year, parameters, data, ours, _ in rows():
        if first:
            model = first.strip("`")
            assert parameters == f"{get_spec(model).params:,}"
            assert year == str(get_spec(model).paper.year)
        claim = registry.recipes().get(f"{model}-{names[data]}").claim
        if not claim:
            # Then the accuracy is that of our weights, of one seed.
            spec = registry.weights().get(f"{model}:{names[data]}")
            assert spec.source.startswith("README of cnn-arch-")
            assert ours == f"{100 * spec.accuracy['top1']:.2f} % (1)"
            continue
        mean, std = 100 * claim["mean"], 100 * claim["std"]
        assert ours == f"{mean:.2f} ± {std:.2f} % ({claim['n']})"
        checked += 1
    assert checked == 12
    assert set(registry.list_models()) >= {row[0].strip("`") for row in rows() if row[0]}


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("packages/*/*.md")))
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


SEGMENTATION = ["README.md", "docs/segmentation.md", "packages/cnn-arch-unet/README.md"]


FOREGROUND = {"isbi_em": "cell", "digit_scenes": "digit"}


def claim_data(recipe):
    return registry.recipes().get(recipe.strip("`")).dataset


@pytest.mark.parametrize("page", SEGMENTATION)
def test_the_tables_of_segmentation_are_the_recipes_claims(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    table = re.search(r"^(\| recipe \| mIoU .*?)\n\n", text, re.M | re.S).group(1).splitlines()
    names = ("pixel_accuracy", "iou", "boundary_f1", "hd95", "rand_error")
    for line in table[2:]:
        recipe, miou, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        claim = registry.recipes().get(recipe.strip("`")).claim
        assert miou == f"{100 * claim['mean']:.2f} ± {100 * claim['std']:.2f} %"
        for name, cell in zip(names, cells, strict=False):
            key = f"iou/{FOREGROUND[claim_data(recipe)]}" if name == "iou" else name
            mean, std = claim["others"].get(f"test/{key}", (None, None))
            if mean is None:
                assert cell == "\N{EN DASH}"
            elif name in ("hd95", "rand_error"):
                assert cell == f"{mean:.2f} ± {std:.2f}"
            else:
                assert cell == f"{100 * mean:.2f} ± {100 * std:.2f} %"
    assert len(table) >= 4
