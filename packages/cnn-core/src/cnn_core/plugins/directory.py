"""Known plugins, installed or not, so that errors can suggest a package to install."""

from __future__ import annotations

import functools
from importlib import resources

__all__ = ["directory"]


@functools.cache
def directory() -> dict[str, dict[str, str]]:
    """Return the contents of directory.toml: kind -> name -> distribution."""
    import tomllib

    text = resources.files("cnn_core.plugins").joinpath("directory.toml").read_text("utf-8")
    return tomllib.loads(text)
