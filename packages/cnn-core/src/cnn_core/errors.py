"""The errors that users see; each class has an exit code.

A message has one to three lines: the problem, with the offending value and the file or plugin at
fault, then a hint, which is a change to make or a command to run.
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
    "WeightsMissingError",
    "ZooError",
    "is_out_of_memory",
]


class ZooError(Exception):
    """The base class of all errors that cnnzoo raises on purpose; `hint` suggests a remedy."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(ZooError):
    """An invalid command, name or setting."""

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
    """A data file violates its format; the message gives the file and the violation."""


class DatasetMissingError(ZooError):
    """The files of a dataset are missing."""


class WeightsMissingError(ZooError):
    """The file of published weights is not on this machine, and cannot or may not be fetched."""


class CheckpointCorruptError(CorruptError):
    """The contents of a weights file or checkpoint have changed; the message says where."""


class RunError(CorruptError):
    """A run directory with a missing or unreadable file."""


class UntrustedWeightsError(CorruptError):
    """A weights file of another library that is broken or cannot be loaded safely."""


class NumericalError(ZooError):
    """A non-finite loss or gradient, or two results of a network that should agree but differ."""

    exit_code = 4


class ResourceError(ZooError):
    """Out of memory or disk space."""

    exit_code = 5


class Terminated(BaseException):
    """Raised on SIGTERM. Like KeyboardInterrupt, it is not caught by `except Exception`."""


class PluginError(ZooError):
    """A plugin is at fault."""

    exit_code = 6


OUT_OF_MEMORY = (  # in messages of torch, of its CPU allocator and of oneDNN
    "out of memory",
    "allocate memory",
    "could not create a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; on the CPU, torch raises a plain RuntimeError for it."""
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in message for phrase in OUT_OF_MEMORY)
