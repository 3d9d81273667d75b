"""SqueezeNet 1.0 and 1.1, for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_squeezenet.squeezenet import SqueezeNet10, SqueezeNet11

__version__ = "0.1.0"

__all__ = ["SqueezeNet10", "SqueezeNet11"]

__getattr__ = lazy_names(
    __name__, {"cnn_arch_squeezenet.squeezenet": ("SqueezeNet10", "SqueezeNet11")}
)
