"""A progress bar for jobs that are counted in files, images or models."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]

LINE_INTERVAL = 10.0  # seconds between two lines, without a terminal


class _Lines:
    """A line on stderr every ten seconds, for logs."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if (now := time.monotonic()) - self.last >= LINE_INTERVAL and done < total:
            self.last = now
            print(f"{self.title}: {done:,} of {total:,}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress_bar(title: str, show: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function of (done, total) that updates a bar, or None if `show` is false.

    Without a terminal, it prints a line every ten seconds.
    """
    if not show:
        yield None
        return
    if not sys.stderr.isatty():
        yield _Lines(title)
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    # stdout is for results and may be a pipe, so rich must not redirect it to stderr.
    console = Console(stderr=True)
    with Bar(console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(title)
        yield lambda done, total: bar.update(task, completed=done, total=total)
