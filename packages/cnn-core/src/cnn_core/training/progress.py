"""Display the progress of a training: live on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from cnn_core.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from cnn_core.runs.run import Run

__all__ = ["Live", "Plain", "Progress", "Silent", "counting", "progress_for"]

INTERVAL = 0.25  # seconds between updates of the live line: each costs a millisecond

Numbers = Callable[[], Mapping[str, float]]


class Progress(Protocol):
    """A display that is told about every step and epoch."""

    def start(self, run: Run, steps: int, done: int) -> None:
        """A run with `steps` steps per epoch begins, or is resumed after `done` steps in all."""

    def step(self, images: int, numbers: Numbers) -> None:
        """A step was taken; `numbers` gives the epoch's metrics so far, if asked."""

    def epoch(self, epoch: int, line: Mapping[str, float]) -> None:
        """An epoch ended, with this line of metrics.jsonl."""

    def stop(self) -> None:
        """Training ended, well or not."""


class Silent:
    """Shows nothing."""

    def start(self, run: Run, steps: int, done: int) -> None: ...

    def step(self, images: int, numbers: Numbers) -> None: ...

    def epoch(self, epoch: int, line: Mapping[str, float]) -> None: ...

    def stop(self) -> None: ...


class Plain(Silent):
    """One line per epoch on stderr."""

    def start(self, run: Run, steps: int, done: int) -> None:
        self.epochs: int = run.recipe.epochs
        epochs, more = divmod(done, steps)
        after = f", after epoch {epochs}" if done else ""
        after = f", after step {more} of epoch {epochs + 1}" if more else after
        what = printable(f"{run.recipe.model} on {run.recipe.data}{after}: {run.path}")
        print(what, file=sys.stderr)

    def epoch(self, epoch: int, line: Mapping[str, float]) -> None:
        parts = [f"epoch {epoch}/{self.epochs}"]
        for split in ("train", "val"):
            numbers = {k: v for k, v in line.items() if k.startswith(f"{split}/")}
            if numbers:
                parts.append(f"{split}: {format_metrics(numbers)}")
        speed = line["images_per_second"]
        parts.append(f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.1f} images/s")
        parts.append(f"{line['seconds']:.1f} s")
        print("  ".join(parts), file=sys.stderr, flush=True)


class Live(Plain):
    """A live line on a terminal: epoch, step, metrics, images/s, time left; with `Plain`'s."""

    taken: int
    first: int
    images: int
    began: float
    shown: float
    bar: RichProgress
    task: TaskID

    def start(self, run: Run, steps: int, done: int) -> None:
        super().start(run, steps, done)
        self.steps = steps
        self.taken = done
        # The speed leaves out steps before a resumption: they took none of this process's time.
        self.first = self.taken
        self.images = 0
        self.began = self.shown = time.perf_counter()
        self.bar, self.task = _rich_bar()
        self.bar.start()

    def step(self, images: int, numbers: Numbers) -> None:
        self.taken += 1
        self.images += images
        now = time.perf_counter()
        if now - self.shown < INTERVAL:
            return
        self.shown = now
        speed = (self.taken - self.first) / (now - self.began)
        total = self.epochs * self.steps
        epoch, step = divmod(self.taken - 1, self.steps)
        self.bar.update(
            self.task,
            total=total,
            completed=self.taken,
            epoch=f"epoch {epoch + 1}/{self.epochs}",
            step=f"step {step + 1}/{self.steps}",
            # Called only for a line that is shown: computing metrics waits for the device.
            numbers=format_metrics(numbers()),
            speed=f"{self.images / (now - self.began):,.0f} images/s",
            left=_clock((total - self.taken) / speed),
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
        TextColumn("{task.fields[numbers]}"),
        TextColumn("{task.fields[speed]}"),
        TextColumn("{task.fields[left]}"),
        console=Console(stderr=True),
        transient=True,
        # stdout is for results, and may be a pipe: rich must not move it to stderr.
        redirect_stdout=False,
        refresh_per_second=1 / INTERVAL,
    )
    return bar, bar.add_task("", total=1, epoch="", step="", numbers="", speed="", left="")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


PLAIN = {"loss", "hausdorff", "hd95", "assd"}  # no fractions; distances are in pixels


def format_metrics(numbers: Mapping[str, float]) -> str:
    """Return "loss 0.1230  top1 95.10 %": fractions in per cent, losses and pixels as numbers."""
    parts = []
    for key, value in numbers.items():
        name = key.rpartition("/")[2]
        shown = f"{value:.4f}" if name in PLAIN else f"{100 * value:.2f} %"
        parts.append(f"{name} {shown}")
    return "  ".join(parts)


def progress_for(shown: bool) -> Progress:
    """Return the display for stderr: live on a terminal, plain elsewhere; silent if not shown."""
    if not shown:
        return Silent()
    return Live() if sys.stderr.isatty() else Plain()


@contextlib.contextmanager
def counting(title: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function of (done, total) that updates a bar; None where there is no terminal."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)
