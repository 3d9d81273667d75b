"""The environment checks of `cnnzoo doctor`: versions, editable installs, extras, device, data.

Each finding is a line that ends with a remedy. Only metadata is read here; torch may fail to
import, so a separate process imports it and checks the device.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cnn_core.plugins.discovery import Plugin, unregistered

__all__ = ["editable_directory", "environment_faults"]

EXTRAS = {"cnn-core": ("tensorboard",), "cnn-viz": ("umap",)}
DEVICE = (
    "import torch\n"
    "built = torch.version.cuda or torch.version.hip\n"
    "print(bool(built) and not torch.cuda.is_available())"
)


def environment_faults(plugins: list[Plugin], timeout: float) -> list[str]:
    """Return a line of advice for each problem in the environment."""
    names = {"cnn-core", *(p.distribution for p in plugins if p.distribution != "unknown")}
    dists = [dist for name in sorted(names) if (dist := _distribution(name)) is not None]
    lines = [line for dist in dists for line in (*_requirements(dist), *_stale(dist))]
    return [*lines, *unregistered().values(), *_device(timeout), *_data()]


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements(dist: metadata.Distribution) -> list[str]:
    """Report requirements that are missing or have the wrong version, and missing extras."""
    from packaging.requirements import InvalidRequirement, Requirement

    name, lines = dist.name, []
    for text in dist.requires or []:
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            lines.append(f"{name}: invalid requirement '{text}': report this to the author")
            continue
        extra = next((e for e in EXTRAS.get(name, ()) if f'"{e}"' in str(needed.marker)), "")
        if needed.marker and not needed.marker.evaluate({"extra": extra}):
            continue
        found = _distribution(needed.name)
        if found is None:
            wanted = f"{name}[{extra}]" if extra else text.partition(";")[0].strip()
            problem = f"extra '{extra}' is not installed" if extra else f"'{text}' is missing"
            lines.append(f"{name}: {problem}: pip install '{wanted}'")
        elif not needed.specifier.contains(found.version, prereleases=True):
            wanted = f"{needed.name}{needed.specifier}"
            lines.append(f"{name}: needs {wanted}, found {found.version}: pip install '{wanted}'")
    return lines


def editable_directory(dist: metadata.Distribution | None) -> Path | None:
    """Return the source directory of an editable install (PEP 610), or None."""
    text = dist.read_text("direct_url.json") if dist is not None else None
    try:
        origin = json.loads(text or "")
        if not origin["dir_info"]["editable"]:
            return None
        return Path(unquote(urlsplit(origin["url"]).path))
    except (ValueError, TypeError, LookupError):  # not installed from a directory, or invalid JSON
        return None


def _stale(dist: metadata.Distribution) -> list[str]:
    """Report an editable install with a pyproject.toml that changed after installation."""
    folder = editable_directory(dist)
    if folder is None:
        return []
    reinstall = f"pip install -e {folder}"
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    except FileNotFoundError:
        return [f"{dist.name}: {folder} is gone: pip uninstall {dist.name}"]
    except (OSError, ValueError, LookupError):
        return [f"{dist.name}: {folder}/pyproject.toml cannot be read: fix it, then {reinstall}"]
    now = {
        # A dynamic version is not in the file: it counts as unchanged.
        "version": project.get("version", dist.version),
        "entry points": project.get("entry-points", {}).get("cnnzoo", {}),
        "requirements": {_normal(text) for text in project.get("dependencies", [])},
    }
    installed = {
        "version": dist.version,
        "entry points": {e.name: e.value for e in dist.entry_points.select(group="cnnzoo")},
        "requirements": {_normal(t) for t in dist.requires or [] if "extra ==" not in t},
    }
    changed = [key for key in now if now[key] != installed[key]]
    if not changed:
        return []
    return [f"{dist.name}: {', '.join(changed)} changed since installation: {reinstall}"]


def _normal(requirement: str) -> str:
    # Build tools rewrite a requirement's spaces, brackets and quotes.
    return re.sub(r"[\s()]", "", requirement).replace("'", '"').lower()


def _device(timeout: float) -> list[str]:
    """Report if torch cannot be imported, or cannot use the GPU although it supports one."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", DEVICE],
            capture_output=True,
            text=True,
            # At least 30 s, even if the limit for plugins is lower: on a slow disk, importing
            # torch can take this long.
            timeout=max(timeout, 30.0),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ["importing torch takes too long: pip install --force-reinstall torch"]
    if done.returncode != 0:
        cause = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return [f"torch cannot be imported: {cause}: pip install --force-reinstall torch"]
    if done.stdout.strip() == "True" and Path("/proc/driver/nvidia").exists():
        return [
            "torch finds no GPU although a driver is there: compare nvidia-smi and torch.version"
        ]
    return []


def _data() -> list[str]:
    """Report a dataset directory that is not writable."""
    from cnn_core.data.fetching.cache import cache_dir

    folder = cache_dir()
    # The first download creates the directory; until then, check its nearest existing parent.
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return [f"datasets cannot be stored in {folder}: set CNNZOO_CACHE to a writable directory"]
    return []
