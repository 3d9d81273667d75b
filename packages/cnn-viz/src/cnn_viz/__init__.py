"""Visualise a trained CNN: draw figures of a run, and write a one-page report."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnn_core.lazy import lazy_names
from cnn_viz.version import __version__ as __version__

if TYPE_CHECKING:
    from cnn_viz.attribution.cam import Cam, cams, cost, grad_cam, seg_grad_cam
    from cnn_viz.drawing.render import draw
    from cnn_viz.page.report import write_report

__all__ = ["Cam", "cams", "cost", "draw", "grad_cam", "seg_grad_cam", "write_report"]

__getattr__: Callable[[str], Any] = lazy_names(
    __name__,
    {
        "cnn_viz.attribution.cam": ("Cam", "cams", "cost", "grad_cam", "seg_grad_cam"),
        "cnn_viz.drawing.render": ("draw",),
        "cnn_viz.page.report": ("write_report",),
    },
)
