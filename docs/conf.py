"""Sphinx configuration for `make docs`: pages from docs/, the READMEs and the code, offline."""

import sys
from pathlib import Path

import cnn_core

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "cnnzoo"
release = version = cnn_core.__version__
extensions = ["myst_parser", "cnnzoo_docs"]
nitpicky = True
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"cnnzoo {release}"
html_use_index = False
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False
