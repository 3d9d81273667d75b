"""Read weights files of other libraries, without running code from them."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from safetensors.torch import load_file
from torch import Tensor

from cnn_core.data.readers.pickle_scan import NeedsTrustError
from cnn_core.errors import UntrustedWeightsError
from cnn_core.text import printable
from cnn_core.weights.torch_file import read_torch_file

__all__ = ["ForeignFile", "read_foreign"]

DEPTH = 8  # of nested dictionaries; trainings nest two or three
LENGTH = 512  # characters of a key; else a long key of a large dictionary would fill the memory
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


@dataclass(frozen=True, kw_only=True)
class ForeignFile:
    """The tensors of a file of another library.

    `tensors` has the keys of nested dictionaries joined by dots, as in "state_dict.conv1.weight";
    `others` are the names of the file's entries without tensors.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...] = ()


def read_foreign(path: Path) -> ForeignFile:
    """Read the tensors of a .safetensors, .pt or .pth file.

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
            return _flattened(path, state)
    except Exception as error:  # a malicious file can make its reader raise anything
        cause = printable(" ".join(str(error)[:200].split())) or type(error).__name__
        raise UntrustedWeightsError(
            f"{path}: cannot be loaded safely: {cause}",
            _advice(path, error, cause),
        ) from error


def _advice(path: Path, error: Exception, cause: str) -> str:
    """Return the hint for a file that was refused."""
    if not isinstance(error, NeedsTrustError):
        return EXPECTED
    if re.search(COMMANDS, cause):
        return DANGEROUS
    return CONVERT.format(old=printable(str(path)), new=printable(f"clean-{path.name}"))


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


def _flattened(path: Path, state: Mapping[str, Any]) -> ForeignFile:
    """Return the tensors of nested dictionaries, with their keys joined by dots."""
    tensors: dict[str, Tensor] = {}
    stack: list[tuple[str, Any, int]] = [("", state, 0)]
    entered: set[int] = set()  # each dictionary once: one may contain itself
    while stack:
        name, value, depth = stack.pop()
        if isinstance(value, Tensor):
            if name in tensors:
                raise ValueError("contains a name twice")
            tensors[name] = value.detach()  # because a file can attach hooks to a tensor
        elif isinstance(value, Mapping) and id(value) not in entered and depth < DEPTH:
            entered.add(id(value))
            # Keys may be of any type. Reversed, because the last one is taken first.
            inner = [(key, v) for key, v in value.items() if isinstance(key, str)]
            if any(len(name) + len(key) > LENGTH for key, _ in inner):
                raise ValueError(f"contains a name of more than {LENGTH} characters")
            stack += [
                (f"{name}.{key}" if depth else key, v, depth + 1) for key, v in reversed(inner)
            ]
    if not tensors:
        raise ValueError("contains no tensors")
    used = {key.partition(".")[0] for key in tensors}
    names = (key for key in state if isinstance(key, str))
    others = tuple(key for key in names if key.partition(".")[0] not in used)
    return ForeignFile(path=path, tensors=tensors, others=others)


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
