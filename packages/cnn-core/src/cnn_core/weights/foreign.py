"""Load weights files of other libraries: read them without running code, rename the tensors."""

from __future__ import annotations

import json
import os
import re
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

__all__ = ["best_naming", "load_foreign", "read_foreign"]

PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
COUNTER = "num_batches_tracked"  # files from before torch 0.4.1 have none
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")  # keys that hold the state dict
EXPECTED = "expected a .safetensors file, or one that torch.save(model.state_dict(), path) wrote"
# An f-string, so that searching the code for the unsafe call does not find this help text.
CONVERT = (
    "if you trust its author, re-save only the state dict (adjust the key): "
    f"torch.save(torch.load({{old!r}}, weights_only={False})['state_dict'], {{new!r}})"
)
# Modules with functions that run commands or code: no state dict has a use for them.
COMMANDS = r"\b(posix|nt|os|subprocess|pty|runpy|code|socket|shutil|sys)\.|\b(eval|exec|open)\b"
DANGEROUS = "these can run commands or change files: do not load this file"
MAX_HEADER = 1 << 20  # bytes: DenseNet-201's 1,207 tensors have a header of 0.13 MB


def read_foreign(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a .safetensors, .pt or .pth file, without the keys' prefixes.

    No code from the file runs. Memory use is proportional to the size of the file, not to the
    sizes it declares.

    Raises:
        UntrustedWeightsError: the file is broken, contains anything but tensors and plain values,
            or declares more data than it contains.
    """
    try:
        with _open_regular(path) as file:
            is_safetensors = path.suffix == ".safetensors"
            state = _safetensors(path, file) if is_safetensors else read_torch_file(file)
            tensors = _unwrapped(state)
    except Exception as error:  # a malicious file can make its reader raise anything
        cause = printable(" ".join(str(error)[:200].split())) or type(error).__name__
        raise UntrustedWeightsError(
            f"{path}: cannot be loaded safely: {cause}",
            _advice(path, error, cause),
        ) from error
    # Twice: a model can be compiled and then distributed, or the other way round.
    for prefix in PREFIXES * 2:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _advice(path: Path, error: Exception, cause: str) -> str:
    """Return the hint for a file that was refused."""
    if not isinstance(error, NeedsTrustError):
        return EXPECTED
    if re.search(COMMANDS, cause):
        return DANGEROUS
    return CONVERT.format(old=printable(str(path)), new=printable(f"clean-{path.name}"))


def load_foreign(
    model: nn.Module,
    state: Mapping[str, Tensor],
    maps: Mapping[str, KeyMap],
    path: Path,
    naming: str | None = None,
    fresh: Collection[str] = (),
) -> str:
    """Load a state dict with the key map called `naming`, by default the best match.

    Returns the name of the key map; "cnnzoo" means that no renaming was needed. A conv with 3
    input channels is adapted to other channel counts: its weights are summed over RGB, and the
    sum is divided equally among the new channels. Tensors named in `fresh` keep the model's
    values if the shapes differ.

    Raises:
        UsageError: a key is missing or unexpected, a shape differs, or the key map has a warning
            and `naming` does not request it. The message gives the first difference.
    """
    expected, known = model.state_dict(), {"cnnzoo": KeyMap(), **maps}
    best, theirs = best_naming(expected, state, maps, naming)
    _require_all_keys(state, theirs.values(), known[best], f"{path}: under {best} naming")
    if known[best].warning and naming is None:
        raise UsageError(
            f"{path}: {known[best].warning}",
            f"naming='{best}' loads it anyway: use it if you know that the file is compatible",
        )
    renamed = {key: state[name] for key, name in theirs.items() if name in state}
    loaded = {key: _adapted(key, expected[key], renamed, path, fresh) for key in expected}
    model.load_state_dict(loaded)
    return best


def best_naming(
    expected: Iterable[str],
    state: Mapping[str, Tensor],
    maps: Mapping[str, KeyMap],
    naming: str | None = None,
) -> tuple[str, dict[str, str]]:
    """Return the key map under which most expected keys are in a state dict, and its renaming.

    The renaming maps our keys to the file's. With `naming`, only that key map is considered.

    Raises:
        UsageError: there is no key map of that name; suggests one.
    """
    known = {"cnnzoo": KeyMap(), **maps}
    if naming is not None and naming not in known:
        nearest = did_you_mean(naming, known)
        raise UsageError(f"naming = '{naming}'{nearest}", f"one of {', '.join(known)}")
    keys = list(expected)
    renamings = {
        name: {key: keymap.theirs(key) for key in keys}
        for name, keymap in known.items()
        if naming in (None, name)
    }
    # The fewest missing keys; if none matches, the error describes the closest map.
    best = min(
        renamings, key=lambda name: sum(key not in state for key in renamings[name].values())
    )
    return best, renamings[best]


def _require_all_keys(
    state: Mapping[str, Tensor], expected: Iterable[str], keymap: KeyMap, context: str
) -> None:
    """Raise UsageError unless a state dict has exactly the expected keys.

    Keys ending in num_batches_tracked are optional, and the key map's `ignored_prefixes` are
    skipped.
    """
    required = set(expected)
    missing = [key for key in required if key not in state and not key.endswith(COUNTER)]
    if missing:
        raise UsageError(
            f"{context}, {min(missing)} is missing ({len(missing)} in all)",
            f"it has, for example: {short(next(iter(state)))}",
        )
    ignored = keymap.ignored_prefixes
    extra = [key for key in state if key not in required and not key.startswith(ignored)]
    if extra := [key for key in extra if not key.endswith(COUNTER)]:
        raise UsageError(
            f"{context}, {short(extra[0])} is not a parameter of this model ({len(extra)} in all)",
            "the file is for another network or variant",
        )


def _adapted(
    key: str, own: Tensor, state: Mapping[str, Tensor], path: Path, fresh: Collection[str]
) -> Tensor:
    """Return a tensor in the model's shape; keys in `fresh` may keep the model's own tensor."""
    value = state.get(key, own)
    if value.shape == own.shape:
        return value
    if key in fresh:
        return own
    same_kernel = own.ndim == 4 and value.ndim == 4 and own.shape[2:] == value.shape[2:]
    if same_kernel and own.shape[0] == value.shape[0] and value.shape[1] == 3:
        # On a grey image, summed weights give the output that the RGB weights give on three
        # copies of it.
        channels = own.shape[1]
        total = value.sum(1, keepdim=True)
        return total if channels == 1 else total.expand(-1, channels, -1, -1) / channels
    raise UsageError(
        f"{path}: {key} has shape {tuple(value.shape)}, the model expects {tuple(own.shape)}",
        "the file is for another network, variant or number of classes (num_classes)",
    )


def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file; raise ValueError for pipes and devices, which may block."""
    if not path.is_file():
        raise ValueError("not a regular file")

    def open_nonblocking(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=open_nonblocking)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # it was replaced after is_file()
        file.close()
        raise ValueError("not a regular file")
    return file


def _unwrapped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors by name; some libraries nest them in another dictionary."""
    inner = (state[wrapper] for wrapper in WRAPPERS if isinstance(state.get(wrapper), Mapping))
    state = next(inner, state)
    # Detached, because a file can attach hooks to a tensor. Keys may be of any type.
    pairs = [(key, value) for key, value in state.items() if isinstance(key, str)]
    tensors = {key: value.detach() for key, value in pairs if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError("contains no tensors")
    return tensors


def _safetensors(path: Path, file: BinaryIO) -> dict[str, Any]:
    # Check the header before the library parses it: it could declare gigabytes, or use a name
    # twice, in which case the library would load only one of the two tensors.
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER, os.fstat(file.fileno()).st_size - 8):
        raise ValueError(f"its header declares {length:,} bytes")
    try:
        json.loads(file.read(length).decode(), object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header: {error}") from error
    return dict(load_file(path))


def _reject_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return a JSON object as a dict; raise ValueError if a key occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("contains a name twice")
    return found
