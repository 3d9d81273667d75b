"""The whole zoo in one install: cnn-core, cnn-viz and all networks, with cnn_core's names."""

from typing import Any

import cnn_core

__version__ = "0.1.0"

__all__ = list(cnn_core.__all__)


def __getattr__(name: str) -> Any:
    return getattr(cnn_core, name)
