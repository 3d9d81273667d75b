"""Where datasets are kept. No torch here."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """Return where downloads go: $CNNZOO_CACHE, else cnnzoo in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("CNNZOO_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cnnzoo"
