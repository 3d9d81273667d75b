"""Layers that torch lacks, weight initialisation, and the tracer behind `cnnzoo show`."""

from cnn_core.layers.classifier import Classifier, features, require_size
from cnn_core.layers.init import he_normal_, lecun_uniform_
from cnn_core.layers.lenet import EuclideanRBF, ScaledTanh, SparseConv2d, Subsampling
from cnn_core.layers.tracing import Trace, trace

__all__ = [
    "Classifier",
    "EuclideanRBF",
    "ScaledTanh",
    "SparseConv2d",
    "Subsampling",
    "Trace",
    "features",
    "he_normal_",
    "lecun_uniform_",
    "require_size",
    "trace",
]
