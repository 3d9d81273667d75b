"""Choose the device, precision and memory format, and record the environment."""

from __future__ import annotations

import os
import platform
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnn_core.errors import UsageError
from cnn_core.files import expanded
from cnn_core.plugins import plugins

__all__ = [
    "DTYPES",
    "FORMATS",
    "autocast",
    "choose_device",
    "choose_memory_format",
    "choose_precision",
    "environment",
    "numerical_environment",
]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
FORMATS = {
    "auto": torch.contiguous_format,
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


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
        # A valid name does not mean that the device exists, so allocate a tensor on it.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device '{name}': {reason}", "--device cpu works everywhere") from error
    return device


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return a context manager that runs the network in `precision`: fp32, bf16 or fp16."""
    if precision in ("auto", "fp32"):
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def choose_precision(name: str, device: torch.device) -> str:
    """Return `name`, or for "auto" the fastest precision that is safe on the device.

    On CUDA that is bf16 if the hardware supports it, else fp16 with loss scaling. Elsewhere it is
    fp32: on CPUs autocast made most networks slower, even with bf16 instructions
    (docs/performance.md).
    """
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def choose_memory_format(name: str, model: nn.Module) -> str:
    """Return `name`, or for "auto" channels_last for networks with batch normalisation.

    Most of those are faster with it, but the VGGs are slower (docs/performance.md).
    """
    if name != "auto":
        return name
    normalised = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return "channels_last" if normalised else "contiguous"


def numerical_environment(device: torch.device, world: int) -> dict[str, Any]:
    """Return the settings, besides the recipe, that can change the last bits of the results."""
    found = {
        "torch": torch.__version__,
        "device": _device_name(device),
        "processes": world,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    # The thread count and instruction set change the order of summation.
    if device.type == "cpu":
        return {
            **found,
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled,
        }
    return {
        **found,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def environment(
    device: torch.device,
    *,
    data_dir: Path | None,
    data: str,
    fingerprint: str,
    allocator: str,
    world: int = 1,
) -> dict[str, Any]:
    """Return the content of environment.json: versions, hardware and the dataset's location."""
    name, colon, folder = data.partition(":")
    return {
        "schema": 1,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        # Absolute, because a run may be opened from another directory.
        "data": f"{name}:{expanded(folder).absolute()}" if colon else name,
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
        "processes": world,
        "allocator": allocator,
        "device": device.type,
        "device_name": _device_name(device),
    }


def _processor() -> str:
    # On many Linux systems platform.processor() is empty.
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
