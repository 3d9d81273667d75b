"""AlexNet (2012), its one-tower variant (2014), and one for small images, for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_alexnet.alexnet import AlexNet
    from cnn_arch_alexnet.alexnet_owt import AlexNetOWT
    from cnn_arch_alexnet.alexnet_small import AlexNetSmall

__version__ = "0.1.0"

__all__ = ["AlexNet", "AlexNetOWT", "AlexNetSmall"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_arch_alexnet.alexnet": ("AlexNet",),
        "cnn_arch_alexnet.alexnet_owt": ("AlexNetOWT",),
        "cnn_arch_alexnet.alexnet_small": ("AlexNetSmall",),
    },
)
