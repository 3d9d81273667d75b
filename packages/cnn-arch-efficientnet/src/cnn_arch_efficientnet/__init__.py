"""EfficientNet-Lite (2019, 2020), for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_efficientnet.efficientnet_lite import EfficientNetLite

__version__ = "0.1.0"

__all__ = ["EfficientNetLite"]

__getattr__ = lazy_names(
    __name__, {"cnn_arch_efficientnet.efficientnet_lite": ("EfficientNetLite",)}
)
