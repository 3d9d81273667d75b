"""Run the `cnnzoo` command as `python -m cnnzoo`, e.g. under torchrun."""

import sys

from cnn_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
