"""The public API changes only when someone means it: tests/repo/api_snapshot.txt."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

from cnn_core import specs

TESTS = Path(__file__).parent
KEPT = TESTS / "api_snapshot.txt"
VERSIONING = TESTS.parents[1] / "docs" / "versioning.md"
COMMAND = "python tests/repo/api_snapshot.py > tests/repo/api_snapshot.txt"


def printed(code: str = "") -> str:
    """Return what the script prints, after some other code."""
    script = f"import runpy\n{code}\nrunpy.run_path('api_snapshot.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=TESTS,
        env={**os.environ, "CNNZOO_PLUGINS": ""},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout


def test_the_public_api_is_as_it_was():
    kept, now = KEPT.read_text("utf-8").splitlines(), printed().splitlines()
    changes = list(difflib.unified_diff(kept, now, "kept", "now", lineterm="", n=0))
    assert not changes, "\n".join([*changes, f"if you mean it: {COMMAND}"])


def test_a_change_of_any_kind_is_seen():
    """A hook's argument, a field, a name, an option."""
    changes = (
        "import click, dataclasses\n"
        "from cnn_core import hookspecs, data, specs\n"
        "from cnn_core.cli import train\n"
        "def cnnzoo_epoch_end(run, epoch): pass\n"
        "hookspecs.cnnzoo_epoch_end = cnnzoo_epoch_end\n"
        "data.__all__.remove('fetch')\n"
        "train.command.params = [p for p in train.command.params if p.name != 'resume']\n"
        "specs.Check.__dataclass_fields__.pop('summary')\n"
    )
    kept, now = KEPT.read_text("utf-8").splitlines(), printed(changes).splitlines()
    gone = [line for line in kept if line not in now]
    assert len(gone) == 4, gone
    for part in (
        "cnnzoo_epoch_end(",
        "cnn_core.data.fetch(",
        "train --resume",
        "Check.summary",
    ):
        assert sum(part in line for line in gone) == 1


def test_everything_public_is_in_it():
    text = KEPT.read_text("utf-8")
    for spec in specs.__all__:
        for field in dataclasses.fields(getattr(specs, spec)):
            assert f"\n{spec}.{field.name}: " in text


def test_the_page_on_versions_says_how_to_write_it_again():
    page = VERSIONING.read_text("utf-8")
    assert COMMAND in page
    for path in re.findall(r"\]\(([^):#]+)\)", page):
        assert (VERSIONING.parent / path).exists(), path
