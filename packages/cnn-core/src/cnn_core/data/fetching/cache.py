"""The location of the cache for downloads."""

from __future__ import annotations

import os
from pathlib import Path

from cnn_core.files import expanded

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """Return the cache folder: $CNNZOO_CACHE, else cnnzoo in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("CNNZOO_CACHE"):
        return expanded(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (expanded(base) if base else Path.home() / ".cache") / "cnnzoo"
