"""Show training progress on stderr: live on a terminal, otherwise one line per epoch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from cnn_core.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from cnn_core.runs.run import Run

__all__ = [
    "Live",
    "Plain",
    "Progress",
    "Silent",
    "format_metric",
    "progress_for",
]

OF_CLASSES = ("balanced_accuracy", "macro_f1", "auc")  # in an epoch's line if monitored
INTERVAL = 0.25  # seconds between updates of the live line; each update takes about 1 ms


ComputeMetrics = Callable[[], Mapping[str, float]]


class Progress(Protocol):
    """A display that is updated at every step and epoch."""

    def start(self, run: Run, steps: int, done: int) -> None:
        """Start a run of `steps` steps per epoch; `done` steps in total were done before."""

    def step(self, images: int, metrics: ComputeMetrics) -> None:
        """Show a step on `images` images; `metrics` computes the epoch's metrics so far."""

    def epoch(self, epoch: int, line: Mapping[str, float]) -> None:
        """Show the end of an epoch; `line` is its line of metrics.jsonl."""

    def stop(self) -> None:
        """Remove the display after training, whether it succeeded or failed."""


class Silent:
    """Shows nothing."""

    def start(self, run: Run, steps: int, done: int) -> None: ...

    def step(self, images: int, metrics: ComputeMetrics) -> None: ...

    def epoch(self, epoch: int, line: Mapping[str, float]) -> None: ...

    def stop(self) -> None: ...


class Plain(Silent):
    """One line per epoch on stderr."""

    def start(self, run: Run, steps: int, done: int) -> None:
        self.epochs: int = run.recipe.epochs
        names = {f"{split}/{name}" for split in ("train", "val") for name in OF_CLASSES}
        self.hidden: set[str] = names - {run.recipe.monitor}
        epochs, extra_steps = divmod(done, steps)
        resumed = f", after epoch {epochs}" if done else ""
        resumed = f", after step {extra_steps} of epoch {epochs + 1}" if extra_steps else resumed
        header = printable(f"{run.recipe.model} on {run.recipe.data}{resumed}: {run.path}")
        print(header, file=sys.stderr)

    def epoch(self, epoch: int, line: Mapping[str, float]) -> None:
        parts = [f"epoch {epoch}/{self.epochs}"]
        for split in ("train", "val"):
            metrics = {k: v for k, v in line.items() if k.startswith(f"{split}/")}
            # A line has no room for all; the log of the run has them.
            metrics = {k: v for k, v in metrics.items() if k not in self.hidden}
            if metrics:
                parts.append(f"{split}: {format_metrics(metrics)}")
        speed = line["images_per_second"]
        parts.append(f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.1f} images/s")
        parts.append(f"{line['seconds']:.1f} s")
        print("  ".join(parts), file=sys.stderr, flush=True)


class Live(Plain):
    """A live line with epoch, step, metrics, images/s and time left, besides the `Plain` lines."""

    steps_done: int
    resumed_at: int
    images: int
    started: float
    last_update: float
    bar: RichProgress
    task: TaskID

    def start(self, run: Run, steps: int, done: int) -> None:
        super().start(run, steps, done)
        self.steps = steps
        self.steps_done = done
        # Steps done before a resumption do not count towards the speed of this process.
        self.resumed_at = self.steps_done
        self.images = 0
        self.started = self.last_update = time.perf_counter()
        self.bar, self.task = _rich_bar()
        self.bar.start()

    def step(self, images: int, metrics: ComputeMetrics) -> None:
        self.steps_done += 1
        self.images += images
        now = time.perf_counter()
        if now - self.last_update < INTERVAL:
            return
        self.last_update = now
        speed = (self.steps_done - self.resumed_at) / (now - self.started)
        total = self.epochs * self.steps
        epoch, step = divmod(self.steps_done - 1, self.steps)
        self.bar.update(
            self.task,
            total=total,
            completed=self.steps_done,
            epoch=f"epoch {epoch + 1}/{self.epochs}",
            step=f"step {step + 1}/{self.steps}",
            # Call this only for displayed updates: computing metrics synchronises with the device.
            metrics=format_metrics({k: v for k, v in metrics().items() if k not in OF_CLASSES}),
            speed=f"{self.images / (now - self.started):,.0f} images/s",
            left=_clock((total - self.steps_done) / speed),
        )

    def stop(self) -> None:
        # Training may have failed before `start`.
        if hasattr(self, "bar"):
            self.bar.stop()


def _rich_bar() -> tuple[RichProgress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("[bold]{task.fields[epoch]}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[step]}"),
        TextColumn("{task.fields[metrics]}"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[left]}"),
        console=Console(stderr=True),
        transient=True,
        # stdout is for results and may be a pipe, so rich must not redirect it to stderr.
        redirect_stdout=False,
        refresh_per_second=1 / INTERVAL,
    )
    return bar, bar.add_task("", total=1, epoch="", step="", metrics="", speed="", left="")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


NOT_FRACTIONS = {"loss", "hausdorff", "hd95", "assd"}  # the last three: pixels of the input


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Format metrics as "loss 0.1230  top1 95.10 %", with fractions as percentages.

    The recall of each class is left out: a line has no room for it.
    """
    parts = []
    for key, value in metrics.items():
        split, _, rest = key.partition("/")
        name = rest if split in ("train", "val", "test") else key  # a class's name may have a "/"
        if not name.startswith(("recall_", "ap_")):
            parts.append(f"{name} {format_metric(name, value)}")
    return "  ".join(parts)


def format_metric(name: str, value: float) -> str:
    """Format the value of a metric: a fraction as a percentage."""
    if name == "not_finite":  # a number of images
        return f"{value:g}"
    return f"{value:.4f}" if name in NOT_FRACTIONS else f"{100 * value:.2f} %"


def progress_for(show: bool) -> Progress:
    """Return the display: `Live` on a terminal, else `Plain`; `Silent` if `show` is false."""
    if not show:
        return Silent()
    return Live() if sys.stderr.isatty() else Plain()
