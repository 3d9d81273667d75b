"""Weights that other libraries wrote: read without running anything, renamed, and loaded.

A .pt file is a zip of a pickle and of raw tensors. The pickle is read with torch's allow-list
(`weights_only=True`), with no fallback, after the file's sizes were held against each other.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cnn_core.errors import CorruptError, UsageError
from cnn_core.keymap import KeyMap
from cnn_core.text import did_you_mean

__all__ = ["load_foreign", "read_foreign"]

PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
COUNTER = "num_batches_tracked"  # old files have none
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")  # keys that hold the state dict


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a .safetensors, .pt or .pth file, without wrapping prefixes.

    Raises:
        CorruptError: the file is broken, holds anything but tensors, or claims more than it has.
    """
    read = _safetensors if path.suffix == ".safetensors" else _torch_file
    state: Mapping[str, Any] = read(path)
    for wrapper in WRAPPERS:
        inner = state.get(wrapper)
        if isinstance(inner, Mapping):
            state = inner
            break
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CorruptError(f"{path}: holds no tensors")
    for prefix in PREFIXES * 2:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def load_foreign(
    model: nn.Module,
    state: Mapping[str, Tensor],
    maps: Mapping[str, KeyMap],
    path: Path,
    naming: str | None = None,
) -> str:
    """Load a state dict under `naming`, else whichever fits the model; return its name.

    "cnnzoo" is the model's own naming. Weights of a first convolution for another number of
    channels are adapted: summed for one channel, else repeated and scaled to keep the sum.

    Raises:
        UsageError: no naming fits, a shape differs, something is left over, or weights of that
            naming are another network's; names the first difference.
    """
    known = {"cnnzoo": KeyMap(), **maps}
    if naming is not None and naming not in known:
        nearest = did_you_mean(naming, known)
        raise UsageError(f"naming = '{naming}'{nearest}", f"one of {', '.join(known)}")
    expected = model.state_dict()
    names = {
        name: {key: keymap.theirs(key) for key in expected}
        for name, keymap in known.items()
        if naming in (None, name)
    }
    best = min(names, key=lambda name: sum(key not in state for key in names[name].values()))
    theirs = names[best]
    _require_whole(state, theirs.values(), known[best], f"{path}: named as by {best}")
    if known[best].beware and naming is None:
        raise UsageError(
            f"{path}: {known[best].beware}",
            f"naming='{best}' loads it all the same, for a file that is known to fit",
        )
    renamed = {key: state[name] for key, name in theirs.items() if name in state}
    loaded = {key: _adapted(key, expected[key], renamed, path) for key in expected}
    model.load_state_dict(loaded)
    return best


def _require_whole(
    state: Mapping[str, Tensor], expected: Iterable[str], keymap: KeyMap, what: str
) -> None:
    """Raise UsageError unless a state dict has the expected keys and no others."""
    wanted = set(expected)
    missing = [key for key in wanted if key not in state and not key.endswith(COUNTER)]
    if missing:
        raise UsageError(
            f"{what}, {min(missing)} is missing ({len(missing)} in all)",
            f"it has, for example: {next(iter(state))}",
        )
    left = [key for key in state if key not in wanted and not key.startswith(keymap.spare)]
    if left := [key for key in left if not key.endswith(COUNTER)]:
        raise UsageError(
            f"{what}, {left[0]} is not of this network ({len(left)} in all)",
            "another network, or another variant",
        )


def _adapted(key: str, own: Tensor, state: Mapping[str, Tensor], path: Path) -> Tensor:
    """Return one tensor in the model's shape."""
    value = state.get(key, own)
    if value.shape == own.shape:
        return value
    only_channels = own.ndim == 4 and value.ndim == 4 and own.shape[2:] == value.shape[2:]
    if only_channels and own.shape[0] == value.shape[0] and value.shape[1] == 3:
        channels = own.shape[1]
        total = value.sum(1, keepdim=True)
        return total if channels == 1 else total.expand(-1, channels, -1, -1) / channels
    raise UsageError(
        f"{path}: {key} is {tuple(value.shape)}, the model has {tuple(own.shape)}",
        "another network, another variant, or another number of classes (num_classes)",
    )


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise CorruptError(f"{path}: not a sound safetensors file: {error}") from error


def _torch_file(path: Path) -> dict[str, Any]:
    """Read what `torch.save` wrote, if it is only tensors and plain containers."""
    _check_archive(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch's reader meets in a file made to break it
        cause = " ".join(str(error).split())[:200]
        raise CorruptError(f"{path}: not weights that can be trusted: {cause}") from error
    if not isinstance(state, Mapping):
        raise CorruptError(f"{path}: holds a {type(state).__name__}, expected a state dict")
    return dict(state)


def _check_archive(path: Path) -> None:
    """Refuse what `torch.save` does not write: no zip, compression, more bytes than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CorruptError(
            f"{path}: not a file of torch.save: {error}",
            "one of before torch 1.6 has to be read and saved again, by someone who trusts it",
        ) from error
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > path.stat().st_size:
        raise CorruptError(f"{path}: claims more than it has: not a file of torch.save")
