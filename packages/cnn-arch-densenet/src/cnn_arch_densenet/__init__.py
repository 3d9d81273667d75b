"""DenseNet (2016) for ImageNet and CIFAR, for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_densenet.densenet import DenseNet
    from cnn_arch_densenet.densenet_cifar import DenseNetCIFAR

__version__ = "0.1.0"

__all__ = ["DenseNet", "DenseNetCIFAR"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_arch_densenet.densenet": ("DenseNet",),
        "cnn_arch_densenet.densenet_cifar": ("DenseNetCIFAR",),
    },
)
