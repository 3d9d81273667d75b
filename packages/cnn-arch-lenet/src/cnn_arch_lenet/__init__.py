"""LeNet-5 (1998) and its modern variant, for cnnzoo."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_arch_lenet.lenet5 import LeNet5
    from cnn_arch_lenet.lenet5_modern import LeNet5Modern

__version__ = "0.1.0"

__all__ = ["LeNet5", "LeNet5Modern"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_arch_lenet.lenet5": ("LeNet5",),
        "cnn_arch_lenet.lenet5_modern": ("LeNet5Modern",),
    },
)
