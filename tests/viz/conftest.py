"""Runs to draw, and a network that looks at quadrants."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnn_core.training import Run
    from cnn_viz.results.inputs import ViewInputs


@pytest.fixture(scope="module")
def run(digits_run: Run) -> Run:
    return digits_run


@pytest.fixture(scope="module")
def view_inputs(run: Run) -> ViewInputs:
    from cnn_viz.results.inputs import ViewInputs

    return ViewInputs(run, device="cpu")


@pytest.fixture(scope="session")
def report_once() -> Callable[[Run], str]:
    """Return a function that writes a run's report and returns the text of the page.

    It checks that views and page share one network, one reading of the weights, one dataset and,
    in classification, one evaluation.
    """
    return _report_once


def _report_once(run: Run) -> str:
    from cnn_core.training import trained
    from cnn_core.weights import native
    from cnn_viz import write_report
    from cnn_viz.results import inputs

    calls: Counter[str] = Counter()

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def call(*arguments: Any, **more: Any) -> Any:
            if name != "read_bytes" or arguments[0].name == run.weights.name:
                calls[name] += 1
            return function(*arguments, **more)

        patch.setattr(owner, name, call)

    watched = [(native, "_read"), (native, "_digest"), (Path, "read_bytes")]
    watched += [(trained, "build"), (trained, "load_dataset")]
    if "val/top1" in run.history()[-1]:
        watched.append((inputs, "predictions"))
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in watched:
            watch(owner, name)
        path = write_report(run, device="cpu")
    assert path == run.path / "report.html"
    assert calls == {name: 1 for _, name in watched}
    return path.read_text("utf-8")


@pytest.fixture(scope="session")
def reported(trained_once, report_once, tmp_path_factory) -> Run:
    """A run of lenet5_modern on the digits with its report, which tests only read."""
    from cnn_core.training import Run

    whole = trained_once("lenet5_modern", "digits")
    run = Run.open(shutil.copytree(whole, tmp_path_factory.mktemp("reported") / "run"))
    report_once(run)
    return run


@pytest.fixture
def draw_only(monkeypatch) -> Callable[..., None]:
    """Return a function that limits reports and `viz all` to some views of a classification."""
    from cnn_viz.drawing.render import views_for

    def limit(*names: str) -> None:
        few = [(name, entry) for name, entry in views_for("classification") if name in names]
        assert len(few) == len(names)
        for place in ("cnn_viz.page.report.views_for", "cnn_viz.drawing.render.views_for"):
            monkeypatch.setattr(place, lambda task: few)

    return limit


@pytest.fixture
def draw_views_with_names(draw_only) -> None:
    """Limit reports to the figures of the page that show names of classes."""
    draw_only("predictions", "confused", "class_scores", "rankings", "features", "receptive_field")


@pytest.fixture(params=range(4))
def quadrant(request) -> tuple[int, tuple[slice, slice]]:
    """A quadrant of images of 16 x 16 pixels, and its rows and columns."""
    row, column = divmod(request.param, 2)
    places = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
    return request.param, places


@pytest.fixture
def quadrants():
    """A network whose class q is the brightness of quadrant q, seen by channel q of `looked`."""
    import torch
    from torch import Tensor, nn

    class Quadrants(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = nn.Conv2d(1, 4, 4, stride=4, bias=False)
            masks = torch.zeros(4, 4, 4)
            for q in range(4):
                masks[q, q // 2 * 2 : q // 2 * 2 + 2, q % 2 * 2 : q % 2 * 2 + 2] = 1
            self.register_buffer("masks", masks)
            nn.init.constant_(self.stage.weight, 1 / 16)
            self.looked = nn.Identity()
            self.head = nn.Linear(4, 4, bias=False)
            nn.init.eye_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.looked(self.stage(x) * self.masks)
            return self.head(maps.mean((2, 3)))

    return Quadrants()
