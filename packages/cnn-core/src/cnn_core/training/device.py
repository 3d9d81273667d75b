"""Where to compute, in which precision, and a record of the surroundings."""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from cnn_core.errors import UsageError
from cnn_core.plugins import plugins

__all__ = ["DTYPES", "autocast", "choose_device", "environment"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; "auto" is the GPU if there is one, else the CPU.

    Raises:
        UsageError: this machine, or this build of torch, has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device '{name}': {reason}", "--device cpu works everywhere") from error
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return a context in which the network computes in `precision`: fp32, bf16 or fp16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def environment(
    device: torch.device, data_dir: Path | None, data: str, fingerprint: str
) -> dict[str, Any]:
    """Return what a run records of its surroundings, and of its data set."""
    name, colon, folder = data.partition(":")
    return {
        "schema": 1,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "data": f"{name}:{Path(folder).absolute()}" if colon else name,
        "data_fingerprint": fingerprint,
        "data_dir": str(data_dir.absolute()) if data_dir is not None else None,
        "plugins": [
            {"name": p.name, "distribution": p.distribution, "version": p.version}
            for p in plugins().loaded
        ],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "device_name": _device_name(device),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
