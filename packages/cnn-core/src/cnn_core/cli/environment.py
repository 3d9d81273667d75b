"""The checks of `cnnzoo doctor` beside plugins: versions, editable installs, extras, device, data.

Each finding is a line that ends with the remedy. Only metadata is read here; torch, which can
fail to load, is asked for the device in a process of its own.
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

from cnn_core.plugins.discovery import Plugin, strays

__all__ = ["editable_folder", "environment_faults"]

EXTRAS = {"cnn-core": ("tensorboard",), "cnn-viz": ("umap",)}
DEVICE = (
    "import torch\n"
    "built = torch.version.cuda or torch.version.hip\n"
    "print(bool(built) and not torch.cuda.is_available())"
)


def environment_faults(plugins: list[Plugin], timeout: float) -> list[str]:
    """Return a line of advice for each fault of the environment."""
    names = {"cnn-core", *(p.distribution for p in plugins if p.distribution != "unknown")}
    dists = [dist for name in sorted(names) if (dist := _distribution(name)) is not None]
    lines = [line for dist in dists for line in (*_requirements(dist), *_stale(dist))]
    return [*lines, *strays().values(), *_device(timeout), *_data()]


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements(dist: metadata.Distribution) -> list[str]:
    """Return the requirements that are missing or of a wrong version, and missing extras."""
    from packaging.requirements import InvalidRequirement, Requirement

    name, lines = dist.name, []
    for text in dist.requires or []:
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            lines.append(f"{name}: requirement '{text}' cannot be read: ask its author")
            continue
        extra = next((e for e in EXTRAS.get(name, ()) if f'"{e}"' in str(needed.marker)), "")
        if needed.marker and not needed.marker.evaluate({"extra": extra}):
            continue
        found = _distribution(needed.name)
        if found is None:
            wanted = f"{name}[{extra}]" if extra else text.partition(";")[0].strip()
            what = f"extra '{extra}' is not installed" if extra else f"'{text}' is missing"
            lines.append(f"{name}: {what}: pip install '{wanted}'")
        elif not needed.specifier.contains(found.version, prereleases=True):
            wanted = f"{needed.name}{needed.specifier}"
            lines.append(f"{name}: needs {wanted}, found {found.version}: pip install '{wanted}'")
    return lines


def editable_folder(dist: metadata.Distribution | None) -> Path | None:
    """Return the source folder of an editable install (PEP 610), or None."""
    text = dist.read_text("direct_url.json") if dist is not None else None
    try:
        origin = json.loads(text or "")
        if not origin["dir_info"]["editable"]:
            return None
        return Path(unquote(urlsplit(origin["url"]).path))
    except (ValueError, TypeError, LookupError):  # not from a folder, or not JSON
        return None


def _stale(dist: metadata.Distribution) -> list[str]:
    """Report an editable install whose pyproject.toml has changed since pip read it."""
    folder = editable_folder(dist)
    if folder is None:
        return []
    again = f"pip install -e {folder}"
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["project"]
    except FileNotFoundError:
        return [f"{dist.name}: {folder} is gone: pip uninstall {dist.name}"]
    except (OSError, ValueError, LookupError):
        return [f"{dist.name}: {folder}/pyproject.toml cannot be read: fix it, then {again}"]
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
    return [f"{dist.name}: {', '.join(changed)} changed since it was installed: {again}"]


def _normal(requirement: str) -> str:
    # Build tools rewrite a requirement's spaces, brackets and quotes.
    return re.sub(r"[\s()]", "", requirement).replace("'", '"').lower()


def _device(timeout: float) -> list[str]:
    """Report a torch that does not load, or does not see the GPU it was built for."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", DEVICE],
            capture_output=True,
            text=True,
            # However short the limit for a plugin: importing torch can take this long on a slow
            # disk.
            timeout=max(timeout, 30.0),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ["torch does not load within half a minute: pip install --force-reinstall torch"]
    if done.returncode != 0:
        cause = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return [f"torch does not load: {cause}: pip install --force-reinstall torch"]
    if done.stdout.strip() == "True" and Path("/proc/driver/nvidia").exists():
        return [
            "torch sees no GPU, though there is a driver: compare nvidia-smi and torch.version"
        ]
    return []


def _data() -> list[str]:
    """Report a dataset folder that cannot be written."""
    from cnn_core.data.fetching.cache import cache_dir

    folder = cache_dir()
    # The folder is made by the first download: until then the one above it must be writable.
    above = next(path for path in (folder, *folder.parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        return [f"datasets cannot be kept in {folder}: set CNNZOO_CACHE to a folder of yours"]
    return []
