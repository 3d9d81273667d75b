"""The main job in one word, as a new user gets it."""

from __future__ import annotations

import re
import time

import pytest


@pytest.mark.xdist_group("timing")
@pytest.mark.parametrize(
    ("task", "said", "least"),
    [
        ("classification", "of the digits", 97),
        pytest.param("segmentation", "mean IoU", 90, marks=pytest.mark.slow),
    ],
)
def test_the_demo_gets_there_within_90_seconds(task, said, least, cnnzoo, tmp_path):
    began = time.perf_counter()
    done = cnnzoo("demo", "--task", task, cwd=tmp_path)
    seconds = time.perf_counter() - began
    assert done.code == 0, done.err
    reached = float(re.search(rf"^([\d.]+) % {said}", done.out, re.M).group(1))
    assert reached >= least
    assert seconds <= 90
    (run,) = (tmp_path / "runs").iterdir()
    for name in ("report.html", "weights.safetensors", "metrics.jsonl", "figures"):
        assert str(run.relative_to(tmp_path) / name) in done.out
        assert (run / name).exists()
    assert {path.suffix for path in (run / "figures").iterdir()} == {".png", ".svg"}


def test_without_cnn_viz_the_demo_says_what_to_install(cnnzoo, tmp_path):
    done = cnnzoo("--no-plugin", "viz", "demo", "--out", "run", cwd=tmp_path)
    assert done.code == 0
    assert "pip install cnn-viz" in done.err
    assert not (tmp_path / "run" / "figures").exists()
