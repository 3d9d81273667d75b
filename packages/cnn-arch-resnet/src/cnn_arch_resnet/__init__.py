"""Residual networks (2015) for ImageNet and for CIFAR-10, for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_resnet.resnet import ResNet
    from cnn_arch_resnet.resnet_cifar import CifarResNet
    from cnn_arch_resnet.resnet_cifar_stem import CifarStemResNet

__version__ = "0.1.0"

__all__ = ["CifarResNet", "CifarStemResNet", "ResNet"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_arch_resnet.resnet": ("ResNet",),
        "cnn_arch_resnet.resnet_cifar": ("CifarResNet",),
        "cnn_arch_resnet.resnet_cifar_stem": ("CifarStemResNet",),
    },
)
