"""One row per epoch; new columns; cnnzoo finds no fault with the plugin."""

import csv
from pathlib import Path
from types import SimpleNamespace

from cnn_track_csv import plugin

from cnn_core.plugins import plugins

RUN = SimpleNamespace(
    path=Path("runs/a"), recipe=SimpleNamespace(model="lenet5_modern", data="digits")
)


def test_old_rows_keep_their_values_when_columns_are_added(tmp_path, monkeypatch):
    path = tmp_path / "new" / "all.csv"
    monkeypatch.setenv("CNN_TRACK_CSV", str(path))
    plugin.cnnzoo_epoch_end(run=RUN, epoch=1, metrics={"epoch": 1, "train/loss": 0.5})
    plugin.cnnzoo_epoch_end(run=RUN, epoch=2, metrics={"epoch": 2, "train/loss": 0.25})
    plugin.cnnzoo_fit_end(run=RUN, metrics={"epoch": 1, "test/top1": 0.75})
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "1"]
    assert [row["train/loss"] for row in rows] == ["0.5", "0.25", ""]
    assert [row["test/top1"] for row in rows] == ["", "", "0.75"]
    assert {row["run"] for row in rows} == {str(RUN.path.absolute())}


def test_cnnzoo_finds_no_fault():
    (found,) = [p for p in plugins().all if p.name == "track-csv"]
    assert found.status == "ok"
    assert plugins().hooks(found) == ["cnnzoo_epoch_end", "cnnzoo_fit_end"]
