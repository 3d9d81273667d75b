"""The main job in one word, as a new user gets it."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from cnn_core import registry
from cnn_core.cli.demo import command


@pytest.mark.parametrize(
    ("task", "said", "least", "most"),
    [
        ("classification", "of unseen digits", 97, 30),
        pytest.param("segmentation", "mean IoU", 90, 6, marks=pytest.mark.slow),
    ],
)
def test_the_demo_gets_there_in_few_epochs(task, said, least, most, cnnzoo, tmp_path):
    done = cnnzoo("demo", "--task", task, cwd=tmp_path)
    assert done.code == 0, done.err
    reached = float(re.search(rf"^([\d.]+) % {said}", done.out, re.M).group(1))
    assert reached >= least
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(line["epoch"] for line in lines) <= most
    for name in ("report.html", "weights.safetensors", "metrics.jsonl", "figures"):
        assert str(run.relative_to(tmp_path) / name) in done.out
        assert (run / name).exists()
    assert {path.suffix for path in (run / "figures").iterdir()} == {".png", ".svg"}


def test_without_cnn_viz_the_demo_says_what_to_install(digits_run, monkeypatch):
    others = [(name, entry) for name, entry in registry.commands() if entry.plugin.name != "viz"]
    monkeypatch.setattr(registry, "commands", lambda: others)
    monkeypatch.setattr("cnn_core.training.trainer.train", lambda *a, **k: digits_run)
    done = CliRunner().invoke(command, [], catch_exceptions=False)
    assert done.exit_code == 0
    assert "to get figures and a report: pip install cnn-viz" in done.stderr
    assert "% of unseen digits are classified correctly" in done.stdout
    assert str(digits_run.weights) in done.stdout
    assert "report.html" not in done.stdout
