"""The `cnnzoo` command: one file a command, imported when that command is run."""

from cnn_core.cli.app import app, main

__all__ = ["app", "main"]
