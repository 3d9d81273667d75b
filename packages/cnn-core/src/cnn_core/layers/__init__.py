"""Layer primitives that torch does not have, and the tracer behind `cnnzoo show`."""

from cnn_core.layers.init import lecun_uniform_
from cnn_core.layers.lenet import EuclideanRBF, ScaledTanh, SparseConv2d, Subsampling
from cnn_core.layers.tracing import Trace, trace

__all__ = [
    "EuclideanRBF",
    "ScaledTanh",
    "SparseConv2d",
    "Subsampling",
    "Trace",
    "lecun_uniform_",
    "trace",
]
