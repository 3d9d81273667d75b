"""The core and the views say the type of every public name, as their py.typed promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(ROOT.glob("packages/*/src"))
# This environment's python first: --pythonpath alone does not find what packages import.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@pytest.mark.parametrize("package", ["cnn_core", "cnn_viz"])
def test_every_public_name_has_a_type(package):
    options = ("--pythonpath", sys.executable, "--ignoreexternal", "--outputjson")
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--verifytypes", package, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES)), "PATH": PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)["typeCompleteness"]
    assert Path(found["packageRootDirectory"]).is_relative_to(ROOT)
    lacking = [
        f"{symbol['name']}: {fault['message']}"
        for symbol in found["symbols"]
        if symbol["isExported"] and not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"])
        for fault in symbol["diagnostics"]
    ]
    assert lacking == []
    assert found["exportedSymbolCounts"]["withKnownType"] > 300
    assert (found["completenessScore"], done.returncode) == (1, 0), done.stderr
