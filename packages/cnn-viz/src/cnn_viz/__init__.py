"""See what a CNN learned: figures of a run, and the report that puts them on one page."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_viz.cam import Cam, cams, grad_cam, seg_grad_cam
    from cnn_viz.cam_perturb import cost
    from cnn_viz.figures import draw
    from cnn_viz.report import write_report

__version__ = "0.1.0"

__all__ = ["Cam", "cams", "cost", "draw", "grad_cam", "seg_grad_cam", "write_report"]

__getattr__: Callable[[str], Any] = lazy_names(
    __name__,
    {
        "cnn_viz.cam": ("Cam", "cams", "grad_cam", "seg_grad_cam"),
        "cnn_viz.cam_perturb": ("cost",),
        "cnn_viz.figures": ("draw",),
        "cnn_viz.report": ("write_report",),
    },
)
