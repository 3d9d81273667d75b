"""GoogLeNet (2014), and its variant with batch normalisation, for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_googlenet.googlenet import GoogLeNet
    from cnn_arch_googlenet.googlenet_bn import GoogLeNetBN

__version__ = "0.1.0"

__all__ = ["GoogLeNet", "GoogLeNetBN"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_arch_googlenet.googlenet": ("GoogLeNet",),
        "cnn_arch_googlenet.googlenet_bn": ("GoogLeNetBN",),
    },
)
