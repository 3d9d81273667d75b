"""The errors a user can meet: each knows its exit code and says what to do about it.

An error reads as one to three lines: what happened, with the offending value and the
file or plugin at fault, and then the change or command that helps.
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
    """Base of every error that cnnzoo raises on purpose; `hint` says what helps."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(ZooError):
    """The command, a name or a setting was misused."""

    exit_code = 2


class UnknownNameError(UsageError, LookupError):
    """A name that nothing answers to; suggests the names nearest by edit distance."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        nearest = did_you_mean(name, known)
        super().__init__(f"unknown {kind} '{printable(name)}'{nearest}", hint)


class SpecError(UsageError, ValueError):
    """A plugin described something with a value that its spec does not allow."""


class CorruptError(ZooError):
    """A file is not what it claims to be, or comes from someone not to be trusted."""

    exit_code = 3


class DatasetCorruptError(CorruptError):
    """A data file that breaks its own format: names file, offset, expected, found."""


class DatasetMissingError(ZooError):
    """The dataset is not where it was looked for."""


class CheckpointCorruptError(CorruptError):
    """Weights or a training state that are not what was written; names file and difference."""


class RunError(CorruptError):
    """A run directory that lacks a file, or holds one that cannot be read."""


class UntrustedWeightsError(CorruptError):
    """Weights of others in a file that holds, or claims to hold, anything but tensors."""


class NumericalError(ZooError):
    """The loss became infinite or not a number, or one network computes two different things."""

    exit_code = 4


class ResourceError(ZooError):
    """Out of memory or disk."""

    exit_code = 5


class Terminated(BaseException):
    """SIGTERM arrived."""


class PluginError(ZooError):
    """A plugin is at fault."""

    exit_code = 6


OUT_OF_MEMORY = (  # torch's, its CPU allocator's, oneDNN's
    "out of memory",
    "allocate memory",
    "could not create a primitive",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's are plain RuntimeErrors on the CPU."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in words for sign in OUT_OF_MEMORY)
