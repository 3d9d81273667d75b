"""An observer that logs a training run for TensorBoard, in RUN/tensorboard.

View it with: tensorboard --logdir runs
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.errors import UsageError
from cnn_core.plugins.discovery import describe
from cnn_core.runs.recipe import Recipe
from cnn_core.runs.run import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoard"]

log: logging.Logger = logging.getLogger("cnn_core")


class TensorBoard:
    """Writes a run's metrics, network graph and figures for TensorBoard.

    The scalars are the values in metrics.jsonl, by epoch. When a run is resumed, TensorBoard is
    told to drop the old events, and all epochs are written again. So every epoch appears exactly
    once, even if it was trained without this observer.

    Raises:
        UsageError: tensorboard is not installed.
    """

    writer: SummaryWriter

    def __init__(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise UsageError(
                "tensorboard is not installed", 'pip install "cnn-core[tensorboard]"'
            ) from error

    def cnnzoo_fit_start(self, run: Run, model: nn.Module, recipe: Recipe) -> None:
        """Write the metrics of all previous epochs and the graph of the network."""
        from torch.utils.tensorboard import SummaryWriter

        history = run.history()
        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=0)
        ended = time.time() - sum(line.get("seconds", 0.0) for line in history)
        # Date the epochs as if training had run without interruption until now.
        for line in history:
            ended += line.get("seconds", 0.0)
            self._write_scalars(line, ended)
        self._write_graph(run, model, recipe)
        self.writer.flush()

    def cnnzoo_epoch_end(self, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an epoch."""
        self._write_scalars(metrics)
        self.writer.flush()

    def cnnzoo_fit_end(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Write the test metrics and the run's figures, and close the log."""
        try:
            self._write_scalars(metrics)
            self._write_figures(run, int(metrics["epoch"]))
        finally:
            self.writer.close()

    def _write_scalars(self, line: Mapping[str, float], walltime: float | None = None) -> None:
        for name, value in line.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, int(line["epoch"]), walltime=walltime)

    def _write_figures(self, run: Run, epoch: int) -> None:
        import numpy as np
        from PIL import Image

        for path in sorted(run.figures.glob("*.png")):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self.writer.add_image(f"figures/{path.stem}", pixels, epoch, dataformats="HWC")

    def _write_graph(self, run: Run, model: nn.Module, recipe: Recipe) -> None:
        """Write the graph of a copy of the network; log a warning if tracing fails."""
        no_output = contextlib.redirect_stdout(io.StringIO())
        with (
            warnings.catch_warnings(),
            no_output,
            torch.random.fork_rng(devices=[]),
            torch.no_grad(),
        ):
            warnings.simplefilter("ignore")  # add_graph uses torch.jit.trace, which is deprecated
            try:
                network = copy.deepcopy(model).cpu().eval()
                self.writer.add_graph(network, _example_input(network, recipe))
            except Exception as error:
                log.warning(
                    "%s: cannot write the graph for TensorBoard: %s", run.path, describe(error)
                )


def _example_input(model: nn.Module, recipe: Recipe) -> Tensor:
    """Return a black image of the network's input shape, 1 C H W."""
    spec = registry.get_spec(recipe.model)
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    channels = first.in_channels if first is not None else spec.input[0]
    size = (recipe.image_size, recipe.image_size) if recipe.image_size else spec.input[1:]
    return torch.zeros(1, channels, *size)
