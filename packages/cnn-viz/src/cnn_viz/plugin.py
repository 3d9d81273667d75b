"""What cnn-viz offers to cnnzoo."""

from cnn_core import hookimpl
