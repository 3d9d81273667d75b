"""Log a training for TensorBoard: an observer that writes RUN/tensorboard.

tensorboard --logdir runs
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
    """Writes the metrics, the graph and the figures of a run for TensorBoard.

    Scalars are those of metrics.jsonl, by epoch. When a run is resumed, all its epochs are
    written again and TensorBoard is told to drop the old ones: none is missing, not even one
    trained without this observer, and none is there twice.

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
        """Begin with the epochs so far, and the graph of the network."""
        from torch.utils.tensorboard import SummaryWriter

        history = run.history()
        self.writer = SummaryWriter(str(run.path / "tensorboard"), purge_step=0)
        ended = time.time() - sum(line.get("seconds", 0.0) for line in history)
        for line in history:  # at the time when it would have ended without interruptions
            ended += line.get("seconds", 0.0)
            self._scalars(line, ended)
        self._graph(run, model, recipe)
        self.writer.flush()

    def cnnzoo_epoch_end(self, metrics: Mapping[str, float]) -> None:
        """Add an epoch."""
        self._scalars(metrics)
        self.writer.flush()

    def cnnzoo_fit_end(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Add the test split, and the figures that the run has."""
        try:
            self._scalars(metrics)
            self._figures(run, int(metrics["epoch"]))
        finally:
            self.writer.close()

    def _scalars(self, line: Mapping[str, float], when: float | None = None) -> None:
        for name, value in line.items():
            if name != "epoch":
                self.writer.add_scalar(name, value, int(line["epoch"]), walltime=when)

    def _figures(self, run: Run, epoch: int) -> None:
        import numpy as np
        from PIL import Image

        for path in sorted(run.figures.glob("*.png")):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            self.writer.add_image(f"figures/{path.stem}", pixels, epoch, dataformats="HWC")

    def _graph(self, run: Run, model: nn.Module, recipe: Recipe) -> None:
        """Trace a copy of the network, or warn why that cannot be done."""
        quiet = (warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()))
        with quiet[0], quiet[1], torch.random.fork_rng(devices=[]), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, add_graph needs it
            try:
                network = copy.deepcopy(model).cpu().eval()
                self.writer.add_graph(network, _input(network, recipe))
            except Exception as error:
                log.warning("%s: no graph on TensorBoard: %s", run.path, describe(error))


def _input(model: nn.Module, recipe: Recipe) -> Tensor:
    """Return a black image of the network's input shape, 1 C H W."""
    spec = registry.get_spec(recipe.model)
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    channels = first.in_channels if first is not None else spec.input[0]
    size = (recipe.image_size, recipe.image_size) if recipe.image_size else spec.input[1:]
    return torch.zeros(1, channels, *size)
