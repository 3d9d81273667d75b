"""The errors that users see; each has an exit code and a hint.

A message has one to three lines: the problem, with the offending value and the file or plugin at
fault, then the change or command that helps.
"""

from __future__ import annotations

from collections.abc import Iterable

from cnn_core.text import did_you_mean, printable

__all__ = [
    "CheckpointCorruptError",
    "CorruptError",
    "DatasetCorruptError",
    "DatasetMissingError",
    "NumericalError",
    "PluginError",
    "ResourceError",
    "RunError",
    "SpecError",
    "Terminated",
    "UnknownNameError",
    "UntrustedWeightsError",
    "UsageError",
    "ZooError",
    "is_out_of_memory",
]


class ZooError(Exception):
    """The base of all errors that cnnzoo raises on purpose; `hint` is the change that helps."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(ZooError):
    """A wrong command, name or setting."""

    exit_code = 2


class UnknownNameError(UsageError, LookupError):
    """An unknown name; the message suggests the most similar known names."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        nearest = did_you_mean(name, known)
        super().__init__(f"unknown {kind} '{printable(name)}'{nearest}", hint)


class SpecError(UsageError, ValueError):
    """A field of a plugin's spec has an invalid value."""


class CorruptError(ZooError):
    """A corrupt file, or one that must not be trusted."""

    exit_code = 3


class DatasetCorruptError(CorruptError):
    """A data file that violates its format; gives file, offset, expected and found."""


class DatasetMissingError(ZooError):
    """The files of a dataset are missing."""


class CheckpointCorruptError(CorruptError):
    """Weights or a checkpoint that differ from the ones written; gives file and difference."""


class RunError(CorruptError):
    """A run directory with a missing or unreadable file."""


class UntrustedWeightsError(CorruptError):
    """A weights file of another library that contains anything but tensors."""


class NumericalError(ZooError):
    """An infinite loss or NaN, or two results of one network that should agree and do not."""

    exit_code = 4


class ResourceError(ZooError):
    """Out of memory or disk space."""

    exit_code = 5


class Terminated(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt, no `except Exception` catches it."""


class PluginError(ZooError):
    """A plugin is at fault."""

    exit_code = 6


OUT_OF_MEMORY = (  # torch's, its CPU allocator's, oneDNN's
    "out of memory",
    "allocate memory",
    "could not create a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on the CPU, torch raises plain RuntimeErrors for that."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in words for sign in OUT_OF_MEMORY)
