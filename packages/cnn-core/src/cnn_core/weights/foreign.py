"""Load weights that other libraries wrote: read them without running code, and rename them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import load_file
from torch import Tensor, nn

from cnn_core.data.readers.pickle_scan import NeedsTrustError
from cnn_core.errors import UntrustedWeightsError, UsageError
from cnn_core.text import did_you_mean, printable
from cnn_core.weights.keymap import KeyMap
from cnn_core.weights.torch_file import read_torch_file, short

__all__ = ["load_foreign", "read_foreign"]

PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
COUNTER = "num_batches_tracked"  # files from before torch 0.4.1 have none
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")  # keys that hold the state dict
EXPECTED = "expected a .safetensors, or a file that torch.save(model.state_dict(), path) wrote"
# Not as one text, so that a search for the unsafe call finds nothing in the packages.
CONVERT = (
    "if you trust its author, make a clean file, with the key that holds the weights: "
    f"torch.save(torch.load('old.pt', weights_only={False})['state_dict'], 'new.pt')"
)
MAX_HEADER = 1 << 20  # bytes: DenseNet-201's 1,207 tensors have a header of 0.13 MB


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a .safetensors, .pt or .pth file, without wrapping prefixes.

    No code from the file runs. Memory use grows with the size of the file, not with its claims.

    Raises:
        UntrustedWeightsError: the file is broken, holds anything but tensors and plain values,
            or claims more than it has.
    """
    try:
        with _opened(path) as file:
            library = path.suffix == ".safetensors"
            tensors = _unwrapped(_safetensors(path, file) if library else read_torch_file(file))
    except Exception as error:  # a hostile file can make its reader raise anything
        cause = printable(" ".join(str(error)[:200].split())) or type(error).__name__
        raise UntrustedWeightsError(
            f"{path}: not weights that can be trusted: {cause}",
            CONVERT if isinstance(error, NeedsTrustError) else EXPECTED,
        ) from error
    # Twice: a model can be compiled and then distributed, or the other way round.
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
    fresh: Collection[str] = (),
) -> str:
    """Load a state dict with the key map called `naming`, or the one that fits best.

    Returns the name of the key map; "cnnzoo" is the model's own names. Weights of a first
    convolution for RGB are adapted to other numbers of channels: summed for one channel, repeated
    and scaled to the same sum for more. Tensors named in `fresh` keep the model's values where
    the shapes differ.

    Raises:
        UsageError: a key is missing or left over, a shape differs, or the key map's files are
            known to be of another network. The message has the first difference.
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
    # The best is the one with the fewest missing keys: the error then shows the nearest miss.
    best = min(names, key=lambda name: sum(key not in state for key in names[name].values()))
    theirs = names[best]
    _require_whole(state, theirs.values(), known[best], f"{path}: named as by {best}")
    if known[best].beware and naming is None:
        raise UsageError(
            f"{path}: {known[best].beware}",
            f"naming='{best}' loads it anyway: use it for a file that you know to fit",
        )
    renamed = {key: state[name] for key, name in theirs.items() if name in state}
    loaded = {key: _adapted(key, expected[key], renamed, path, fresh) for key in expected}
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
            f"it has, for example: {short(next(iter(state)))}",
        )
    left = [key for key in state if key not in wanted and not key.startswith(keymap.spare)]
    if left := [key for key in left if not key.endswith(COUNTER)]:
        raise UsageError(
            f"{what}, {short(left[0])} is not of this network ({len(left)} in all)",
            "another network, or another variant",
        )


def _adapted(
    key: str, own: Tensor, state: Mapping[str, Tensor], path: Path, fresh: Collection[str]
) -> Tensor:
    """Return one tensor in the model's shape; a key in `fresh` may keep the model's own."""
    value = state.get(key, own)
    if value.shape == own.shape:
        return value
    if key in fresh:
        return own
    only_channels = own.ndim == 4 and value.ndim == 4 and own.shape[2:] == value.shape[2:]
    if only_channels and own.shape[0] == value.shape[0] and value.shape[1] == 3:
        # Summed weights give for a grey image what RGB weights give for it in three equal
        # channels.
        channels = own.shape[1]
        total = value.sum(1, keepdim=True)
        return total if channels == 1 else total.expand(-1, channels, -1, -1) / channels
    raise UsageError(
        f"{path}: {key} is {tuple(value.shape)}, the model has {tuple(own.shape)}",
        "another network, another variant, or another number of classes (num_classes)",
    )


def _opened(path: Path) -> BinaryIO:
    """Open a regular file. Pipes and devices could block, or never end."""
    if not path.is_file():
        raise ValueError("not a regular file")

    def without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=without_waiting)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # replaced since is_file()
        file.close()
        raise ValueError("not a regular file")
    return file


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors, which some libraries wrap in another dictionary."""
    inner = (state[wrapper] for wrapper in WRAPPERS if isinstance(state.get(wrapper), Mapping))
    state = next(inner, state)
    # Detached: a file can attach hooks to a tensor. Keys of a hostile file can be anything.
    pairs = [(key, value) for key, value in state.items() if isinstance(key, str)]
    tensors = {key: value.detach() for key, value in pairs if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError("holds no tensors")
    return tensors


def _safetensors(path: Path, file: BinaryIO) -> dict[str, Any]:
    # Check the header before the library parses it: it could claim gigabytes, or give a name
    # twice, and only one of the two would be loaded.
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, os.fstat(file.fileno()).st_size - 8):
        raise ValueError(f"its header claims {length:,} bytes")
    try:
        json.loads(file.read(length).decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header: {error}") from error
    return dict(load_file(path))


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object; raises ValueError if a key occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("has a name twice")
    return found
