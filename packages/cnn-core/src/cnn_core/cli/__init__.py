"""The `cnnzoo` command line: one file per command, imported only when that command runs."""

from cnn_core.cli.app import app, main

__all__ = ["app", "main"]
