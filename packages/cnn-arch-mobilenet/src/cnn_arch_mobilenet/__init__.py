"""MobileNet v1 (2017) and v2 (2018), for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_mobilenet.mobilenet_v1 import MobileNetV1
    from cnn_arch_mobilenet.mobilenet_v2 import MobileNetV2

__version__ = "0.1.0"

__all__ = ["MobileNetV1", "MobileNetV2"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_arch_mobilenet.mobilenet_v1": ("MobileNetV1",),
        "cnn_arch_mobilenet.mobilenet_v2": ("MobileNetV2",),
    },
)
