"""The tutorial: its files are written and its commands run, in the order of the page."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from cnn_core.training import Run

PAGE = Path(__file__).parents[2] / "docs" / "plugin-tutorial.md"
BLOCK = re.compile(r"(?:^`([\w./-]+)`\n\n)?^```(\w+)\n(.*?)^```", re.M | re.S)


def test_the_tutorial_is_true(cnnzoo, install, site, tmp_path):
    installed, written, ran = False, [], []
    for name, language, body in BLOCK.findall(PAGE.read_text("utf-8")):
        if name:
            assert (tmp_path / name).is_file(), f"{name} replaces nothing that cnnzoo new wrote"
            (tmp_path / name).write_text(body)
            install(tmp_path / "cnn-arch-nin", site.path)
            written.append(name)
            continue
        assert language == "bash"
        for line in body.splitlines():
            words = shlex.split(line)
            if words[0] == "pip":
                assert words == ["pip", "install", "-e", "cnn-arch-nin"]
                install(tmp_path / words[-1], site.path)
                installed = True
                continue
            assert words[0] == "cnnzoo"
            if words[1] == "doctor":  # with a real torch it runs in test_readme
                site.stub_torch()
            known = site.path if installed else None
            done = cnnzoo(*words[1:], site=known, cwd=tmp_path, warm=True)
            assert done.code == 0, f"{line}: {done.err}{done.out}"
            assert "warning" not in done.err
            ran.append(words[1])
    assert [Path(name).name for name in written] == ["nin.py", "plugin.py", "nin-digits.toml"]
    assert ran == [
        *("new", "list-models", "check", "show", "train", "evaluate", "viz", "report"),
        *("check", "plugins", "doctor"),
    ]
    assert (tmp_path / "runs/nin/report.html").is_file()
    reached = Run.open(tmp_path / "runs/nin").test_metrics()["test/top1"]
    claim = tomllib.loads((tmp_path / written[-1]).read_text())["claim"]
    assert 0.8 < reached < claim["mean"] + 0.02


@pytest.mark.slow
def test_the_recipe_reaches_what_it_claims(cnnzoo, install, tmp_path):
    new = cnnzoo("new", "cnn-arch-nin", cwd=tmp_path)
    assert new.code == 0, new.err
    files = {name: body for name, _, body in BLOCK.findall(PAGE.read_text("utf-8")) if name}
    for name, body in files.items():
        (tmp_path / name).write_text(body)
    site = install(tmp_path / "cnn-arch-nin", tmp_path / "site")
    words = ("train", "nin", "--data", "digits", "--out", "full")
    done = cnnzoo(*words, site=site, cwd=tmp_path, warm=True)
    assert done.code == 0, done.err
    reached = Run.open(tmp_path / "full").test_metrics()["test/top1"]
    claim = tomllib.loads(next(body for name, body in files.items() if "toml" in name))["claim"]
    assert reached == pytest.approx(claim["mean"], abs=0.02)


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text("utf-8")):
        assert target.startswith("http") or (PAGE.parent / target).exists(), target
