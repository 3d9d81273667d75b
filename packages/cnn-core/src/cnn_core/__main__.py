"""`python -m cnn_core`: the cnnzoo command without its console script."""

import sys

from cnn_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
