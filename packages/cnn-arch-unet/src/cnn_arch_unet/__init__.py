"""U-Net (2015) and its padded variant, for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_unet.unet import UNet
    from cnn_arch_unet.unet_same import UNetSame

__version__ = "0.1.0"

__all__ = ["UNet", "UNetSame"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_arch_unet.unet": ("UNet",),
        "cnn_arch_unet.unet_same": ("UNetSame",),
    },
)
