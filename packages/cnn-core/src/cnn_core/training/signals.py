"""SIGTERM and SIGINT during training: the first requests a stop, the second forces it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from cnn_core.errors import Terminated

__all__ = ["Stop", "stop_requests"]

ECHO = 3.0  # seconds; on Ctrl-C the terminal and torchrun both signal each process


class Stop:
    """A request to stop: the number of the signal, or 0, and the time when it arrived."""

    signum: int = 0
    since: float = 0.0  # time.monotonic()

    @staticmethod
    def error(signum: int) -> BaseException:
        """Return the exception to raise: `Terminated` for SIGTERM, else `KeyboardInterrupt`."""
        return Terminated() if signum == signal.SIGTERM else KeyboardInterrupt()

    def raise_if_requested(self) -> None:
        """Raise the exception for the signal, if one has arrived."""
        if self.signum:
            raise self.error(self.signum)


@contextlib.contextmanager
def stop_requests() -> Iterator[Stop]:
    """Record SIGTERM and SIGINT as requests to stop; a second signal exits immediately.

    The previous handlers are restored afterwards. Outside the main thread, where Python cannot
    set signal handlers, this does nothing.
    """
    stop = Stop()
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if stop.signum and not (torchrun and now - stop.since < ECHO):
            # Exit without an exception, which `finally` blocks could delay. The files on disk
            # are safe at any moment.
            os._exit(128 + signum)
        stop.signum, stop.since = signum, now

    previous: dict[int, Any] = {
        s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            # None means that the handler was not set from Python, so it cannot be restored.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
