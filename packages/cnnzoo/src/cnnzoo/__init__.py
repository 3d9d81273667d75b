"""The zoo of famous CNNs: every member in one install, with cnn_core's public face."""

from typing import Any

import cnn_core

__version__ = "0.1.0"

__all__ = list(cnn_core.__all__)


def __getattr__(name: str) -> Any:
    return getattr(cnn_core, name)
