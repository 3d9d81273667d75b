"""The known plugins of directory.toml, installed or not: they tell users what to install."""

from __future__ import annotations

import functools
from importlib import resources

__all__ = ["directory"]


@functools.cache
def directory() -> dict[str, dict[str, str]]:
    """Return the known plugins: kind -> name -> distribution."""
    import tomllib

    text = resources.files("cnn_core.plugins").joinpath("directory.toml").read_text("utf-8")
    return tomllib.loads(text)
