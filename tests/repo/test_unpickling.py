"""Nothing in the tree unpickles without a short list of names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def calls(path: Path) -> Iterator[str]:
    """Yield the calls that a file must not have."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.keyword(arg="weights_only", value=ast.Constant(value=False)):
                yield ast.unparse(node)
            case ast.Call(func=func) if ast.unparse(func).endswith("torch.load"):
                if not any(keyword.arg == "weights_only" for keyword in node.keywords):
                    yield ast.unparse(node)


def test_nothing_in_the_tree_loads_with_torch_unsafely():
    files = [
        p for part in ("packages", "benchmarks", "tests") for p in (ROOT / part).rglob("*.py")
    ]
    found = {f"{p.relative_to(ROOT)}: {text}" for p in files for text in calls(p)}
    assert found == {"tests/core/test_hostile_weights.py: weights_only=False"}  # trusting()
    assert len(files) > 100


def test_nothing_in_the_packages_unpickles():
    pattern = re.compile(r"weights_only\s*=\s*False|pickle\.loads?\b|\bUnpickler\b|import_pickle")
    ours = "pickle.loads(pickle.dumps("  # what was pickled by the same line
    found = {
        path.name
        for path in (ROOT / "packages").rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8").replace(ours, ""))
    }
    assert found == {"cifar_pickle.py"}  # whose unpickler looks up five names of its own


@pytest.mark.parametrize("folder", ["packages/cnn-core/src/cnn_core", "benchmarks", "tests"])
def test_ruff_forbids_unpickling_everywhere(folder):
    source = "import pickle\n\npickle.loads(b'')\n"
    command = [sys.executable, "-m", "ruff", "check", "--quiet", "--no-cache"]
    command += ["--output-format", "concise", "--stdin-filename", f"{folder}/new.py", "-"]
    done = subprocess.run(
        command, input=source, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "new.py:3:1: S301" in done.stdout, done.stderr
