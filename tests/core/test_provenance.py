"""Origins: plugins, the environment, and the records of both in runs."""

from __future__ import annotations

import json
import shutil

import pytest

from cnn_core.plugins.discovery import unregistered
from cnn_core.training import Run

NET = """
from torch import nn
def tiny(num_classes=10, in_channels=1):
    net = nn.Sequential()
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(64 * in_channels, num_classes))
    return net
"""
DATA = """
from cnn_core import DatasetSpec
@hookimpl
def cnnzoo_datasets():
    return [
        DatasetSpec(
            name="mydigits", target="tiny_data:load", summary="s", classes=tuple("0123456789"),
            image=(1, 8, 8), splits={"train": 1438, "test": 359}, mean=(), std=(), licence="l",
            citation="c", homepage="h",
        )
    ]
"""
LOAD = """
import dataclasses
from cnn_core import load_dataset
def load(spec, root, download):
    return dataclasses.replace(load_dataset("digits"), spec=spec)
"""


@pytest.fixture
def mine(site, good_source):
    """A plugin with the model "tiny" and the dataset "mydigits"."""
    site.add(good_source + DATA, distribution="cnn-arch-mine", name="mine")
    (site.path / "tiny_net.py").write_text(NET)
    (site.path / "tiny_data.py").write_text(LOAD)
    return site


def test_plugins_say_all_that_is_known_of_each(cnnzoo, mine):
    done = cnnzoo("plugins", "--json", site=mine.path)
    rows = {row["name"]: row for row in json.loads(done.out)["plugins"]}
    row = rows["mine"]
    assert row.pop("ms") > 0
    assert row.pop("file") == str(mine.path / "cnn_arch_mine_plugin.py")
    assert row == {
        "name": "mine",
        "distribution": "cnn-arch-mine",
        "version": "1.2.3",
        "status": "ok",
        "reason": "",
        "target": "cnn_arch_mine_plugin",
        "models": ["tiny"],
        "hooks": ["cnnzoo_datasets", "cnnzoo_models"],
        "editable": False,
    }
    assert rows["lenet"]["models"] == ["lenet5", "lenet5_modern"]
    table = cnnzoo("plugins", "-v", site=mine.path).out
    assert "models" in table.splitlines()[0]
    (line,) = [line for line in table.splitlines() if line.startswith("mine ")]
    assert line.split()[:5] == ["mine", "cnn-arch-mine", "1.2.3", "ok", "tiny"]


@pytest.fixture
def run(cnnzoo, mine, tmp_path):
    out = tmp_path / "run"
    done = cnnzoo(
        *("train", "tiny", "--data", "mydigits", "--epochs", "1", "--out", out),
        site=mine.path,
        warm=True,
    )
    assert done.code == 0, done.err
    return Run.open(out)


def test_a_run_without_its_plugin_names_the_package(cnnzoo, mine, run, tmp_path):
    recorded = run.environment()
    origin = {"distribution": "cnn-arch-mine", "version": "1.2.3"}
    assert recorded["origins"] == {"model": origin, "data": origin}
    assert {"name": "mine", **origin} in recorded["plugins"]
    (tmp_path / "seven.png").write_bytes(b"")
    for command in (
        ("evaluate", run.path),
        ("train", "--resume", run.path),
        ("viz", "curves", run.path),
        ("report", run.path),
        ("predict", run.path, tmp_path / "seven.png"),
    ):
        done = cnnzoo(*command)
        assert (done.code, done.out) == (6, ""), done.err
        message, hint = done.err.splitlines()
        assert message.startswith(f"error: {run.path}")
        assert "model 'tiny' is from cnn-arch-mine 1.2.3, which is not installed" in message
        assert hint == "pip install cnn-arch-mine==1.2.3"
    assert cnnzoo("evaluate", run.path, site=mine.path, warm=True).code == 0
    copy = shutil.copytree(run.path, tmp_path / "copy")
    assert cnnzoo("compare", run.path, copy).code == 0  # reads files only


def test_a_run_without_its_dataset_names_the_package(cnnzoo, mine, run):
    text = (run.path / "recipe.toml").read_text()
    assert 'model = "tiny"' in text
    (run.path / "recipe.toml").write_text(text.replace('"tiny"', '"lenet5"'))
    recorded = run.environment()
    recorded["origins"]["model"] = {"distribution": "cnn-arch-lenet", "version": "0.1.0"}
    (run.path / "environment.json").write_text(json.dumps(recorded))
    done = cnnzoo("evaluate", run.path)
    assert done.code == 6
    assert "dataset 'mydigits' is from cnn-arch-mine 1.2.3" in done.err


def test_a_plugin_that_is_there_and_broken_is_blamed_itself(cnnzoo, mine, run):
    plugin = mine.path / "cnn_arch_mine_plugin.py"
    plugin.write_text("raise ImportError('libfoo')")
    done = cnnzoo("evaluate", run.path, site=mine.path, warm=True)
    assert "not installed" not in done.err
    assert "libfoo" in done.err


def test_a_run_uses_the_plugin_it_records_whatever_another_offers(cnnzoo, mine, run, tmp_path):
    source = (mine.path / "cnn_arch_mine_plugin.py").read_text()
    others = source.replace("tiny_net:", "no_net:").replace("tiny_data:", "no_data:")
    mine.add(others, distribution="cnn-arch-twin", name="twin")
    done = cnnzoo("evaluate", run.path, site=mine.path, warm=True)
    assert (done.code, "test/top1" in done.out) == (0, True), done.err
    shutil.rmtree(next(mine.path.glob("cnn_arch_mine-*.dist-info")))
    done = cnnzoo(
        "evaluate", run.path, site=mine.path, warm=True
    )  # the name is there, and another's
    assert done.code == 6
    assert "model 'tiny' is from cnn-arch-mine 1.2.3, which is not installed" in done.err


# doctor


def installed(site, folder, pyproject, name):
    """Make a distribution of the site one that pip installed from `folder` with -e."""
    folder.mkdir()
    if pyproject:
        (folder / "pyproject.toml").write_text(pyproject)
    info = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    path = site.path / f"cnn_arch_{name}-1.2.3.dist-info" / "direct_url.json"
    path.write_text(json.dumps(info))


SOUND = """
[project]
name = "cnn-arch-NAME"
version = "1.2.3"
dependencies = ["cnn-core"]
[project.entry-points.cnnzoo]
NAME = "cnn_arch_NAME_plugin"
"""
STALE = {
    "sound": (SOUND, ""),
    "later": (SOUND.replace("1.2.3", "1.3.0"), "version changed since installation"),
    "extended": (SOUND + 'more = "x"\n', "entry points changed since installation"),
    "needy": (SOUND.replace('core"', 'core~=0.1"'), "requirements changed since"),
    "gone": ("", "is gone: pip uninstall cnn-arch-gone"),
    "garbled": ("[", "pyproject.toml cannot be read"),
}


def advice_about(cnnzoo, site):
    """Return the lines of `cnnzoo doctor` about the distributions of a site, by their names."""
    site.stub_torch()
    done = cnnzoo("doctor", "--json", site=site.path, CNNZOO_PLUGINS="")
    assert done.code == 0, done.err
    found = {
        path.name.partition("-")[0].replace("_", "-"): [] for path in site.path.glob("*.dist-info")
    }
    for line in json.loads(done.out)["advice"]:
        name, _, said = line.partition(": ")
        if name in found:
            found[name].append(said)
    return found


def test_doctor_finds_stale_editable_installs(cnnzoo, site, good_source, tmp_path):
    for name, (pyproject, _) in STALE.items():
        site.add(good_source, distribution=f"cnn-arch-{name}", name=name)
        installed(site, tmp_path / f"my {name}", pyproject.replace("NAME", name), name)
    found = advice_about(cnnzoo, site)
    assert len(found) == len(STALE)
    for name, (_, advice) in STALE.items():
        about = found[f"cnn-arch-{name}"]
        assert len(about) == bool(advice)
        assert not about or advice in about[0]


def test_doctor_finds_requirements_that_do_not_hold(cnnzoo, site, good_source):
    needs = ("cnn-core", "click>=99", "cnn-no-such", "what ever", 'x; python_version < "3"')
    site.add(good_source, requires=needs)
    click, missing, invalid = advice_about(cnnzoo, site)["cnn-arch-bad"]
    assert click.startswith("needs click>=99, found")
    assert click.endswith("pip install 'click>=99'")
    assert missing.startswith("'cnn-no-such' is missing:")
    assert invalid.startswith("invalid requirement 'what ever':")


@pytest.mark.parametrize(
    ("group", "only"),
    [
        ("cnn-zoo", ", only in 'cnn-zoo'"),
        ("cnnzoo.plugins", ", only in 'cnnzoo.plugins'"),
        ("CNNZOO", ", only in 'CNNZOO'"),
        ("console_scripts", ""),
    ],
)
def test_a_plugin_in_another_group_is_named(cnnzoo, site, good_source, monkeypatch, group, only):
    site.add(good_source, distribution="cnn-arch-astray", group=group)
    site.add(
        good_source,
        distribution="cnn-arch-extra",
        requires=("cnn-core; extra == 'zoo'",),
        group="other",
    )
    monkeypatch.syspath_prepend(site.path)
    (line,) = unregistered().values()
    what = "cnn-arch-astray 1.2.3: requires cnn-core but has no entry point in the group 'cnnzoo'"
    assert line.startswith(f"{what}{only}: declare it in pyproject.toml under")
    if group == "CNNZOO":
        site.stub_torch()
        assert line in cnnzoo("doctor", site=site.path, CNNZOO_PLUGINS="").out
        done = cnnzoo("check", "cnn-arch-astray", site=site.path, warm=True)
        assert (done.code, done.err.splitlines()[0]) == (6, f"error: {line}")


def test_doctor_finds_a_folder_of_data_sets_that_cannot_be_written(cnnzoo, site, tmp_path):
    site.stub_torch()
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "data"
    done = cnnzoo("doctor", site=site.path, CNNZOO_CACHE=cache, CNNZOO_PLUGINS="")
    assert "set CNNZOO_CACHE to a writable directory" in done.out


@pytest.mark.parametrize(
    ("torch", "advice"),
    [
        (
            "raise OSError('libcudart.so.9: no such file')",
            "torch cannot be imported: OSError: libcud",
        ),
        ("import sys; sys.exit(3)", "torch cannot be imported: no reason given"),
    ],
)
def test_doctor_finds_a_torch_that_does_not_load(cnnzoo, site, torch, advice):
    (site.path / "torch.py").write_text(torch)
    done = cnnzoo("doctor", site=site.path, CNNZOO_PLUGINS="")
    assert advice in done.out
    assert "Traceback" not in done.out + done.err
