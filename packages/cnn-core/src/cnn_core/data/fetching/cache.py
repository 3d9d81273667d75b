"""The location of the cache for downloads."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """Return the cache folder: $CNNZOO_CACHE, else cnnzoo in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("CNNZOO_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cnnzoo"
