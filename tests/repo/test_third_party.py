"""Networks and datasets of third parties, in processes that nobody told about them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_core.scaffold.writer import write_plugin
from cnn_core.training import Run

SPAWNED = """
import torch
from torch.utils.data import DataLoader, Dataset
import cnn_core

class Seen(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        model = cnn_core.create_model("theirs")
        images = cnn_core.load_dataset("theirs").split("test").images
        size = sum(p.numel() for p in model.parameters())
        return torch.tensor([size, len(images), torch.utils.data.get_worker_info().id])

if __name__ == "__main__":
    loader = DataLoader(Seen(), batch_size=2, num_workers=1, multiprocessing_context="spawn")
    print(torch.cat(list(loader)).tolist())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory, install) -> Path:
    """A folder like site-packages, with a network and a dataset called "theirs"."""
    folder = tmp_path_factory.mktemp("third")
    for name in ("cnn-arch-theirs", "cnn-data-theirs"):
        install(write_plugin(name, out=folder / name), folder / "site")
    return folder / "site"


def test_workers_that_are_spawned_see_them(site, pythonpath, tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": pythonpath(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row[:2] for row in rows] == [[24_058, 200]] * 4
    assert {row[2] for row in rows} == {0}


@pytest.mark.xdist_group("torchrun")
def test_both_processes_of_torchrun_see_them(site, pythonpath, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "cnn_core"]
    command += ["train", "theirs", "--data", "theirs", "--epochs", "2", "--out", "run"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": pythonpath(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=140,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = Run.open(tmp_path / "run")
    assert run.environment()["processes"] == 2
    assert run.environment()["origins"]["model"]["distribution"] == "cnn-arch-theirs"
    assert run.test_metrics()["test/top1"] > 0.3
