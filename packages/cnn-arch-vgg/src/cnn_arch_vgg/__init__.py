"""VGG (2014), with and without batch normalisation, and for small images, for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_vgg.vgg import VGG
    from cnn_arch_vgg.vgg_cifar import VGGCifar

__version__ = "0.1.0"

__all__ = ["VGG", "VGGCifar"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_arch_vgg.vgg": ("VGG",),
        "cnn_arch_vgg.vgg_cifar": ("VGGCifar",),
    },
)
