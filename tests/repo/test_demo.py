"""The main job in one word, as a new user gets it."""

from __future__ import annotations

import json
import re

import pytest


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


def test_without_cnn_viz_the_demo_says_what_to_install(cnnzoo, tmp_path):
    done = cnnzoo("--no-plugin", "viz", "demo", "--out", "run", cwd=tmp_path)
    assert done.code == 0
    assert "pip install cnn-viz" in done.err
    assert not (tmp_path / "run" / "figures").exists()
