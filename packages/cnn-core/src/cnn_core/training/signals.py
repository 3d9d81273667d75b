"""SIGTERM and SIGINT while training: the first asks for a stop, the second forces it."""

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

ECHO = 3.0  # seconds: Ctrl-C reaches torchrun's processes at once, and again through torchrun


class Stop:
    """Whether a signal asked training to stop: its number, else 0."""

    signum: int = 0
    since: float = 0.0

    @staticmethod
    def error(signum: int) -> BaseException:
        """Return the exception that ends the training: `Terminated` or `KeyboardInterrupt`."""
        return Terminated() if signum == signal.SIGTERM else KeyboardInterrupt()

    def obey(self) -> None:
        """End the training, if a signal asked for it."""
        if self.signum:
            raise self.error(self.signum)


@contextlib.contextmanager
def stop_requests() -> Iterator[Stop]:
    """Take SIGTERM and SIGINT as requests to stop after the step; a second one ends at once.

    The former handlers are restored afterwards. Python runs signal handlers in the main thread
    only: in another thread nothing changes.
    """
    stop = Stop()
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if stop.signum and not (torchrun and now - stop.since < ECHO):
            # Not an exception, which `finally` blocks could delay: files survive any stop.
            os._exit(128 + signum)
        stop.signum, stop.since = signum, now

    before: dict[int, Any] = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():  # None was not set by Python: cannot be put back
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
