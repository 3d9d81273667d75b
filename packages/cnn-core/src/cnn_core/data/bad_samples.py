"""Keep account of files that cannot be decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

from cnn_core.errors import DatasetCorruptError
from cnn_core.text import counted

__all__ = ["BadSamples"]

MAX_NAMED = 5  # bad files that an error names


@dataclass
class BadSamples:
    """The error messages of files that cannot be decoded, and how many such files are allowed."""

    allowed: int = 0
    messages: list[str] = field(default_factory=list)

    def raise_if_too_many(self) -> None:
        """Raise DatasetCorruptError if there are more bad files than allowed."""
        count = len(self.messages)
        if count > self.allowed:
            listed = "; ".join(self.messages[:MAX_NAMED]) + ("; …" if count > MAX_NAMED else "")
            raise DatasetCorruptError(
                f"{counted(count, 'sample')} cannot be used: {listed}",
                f"fix them, or skip them: --on-bad-sample skip:{count}",
            )
