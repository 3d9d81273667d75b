"""Load files written by `torch.save` with torch's own reader, after checking that this is safe.

`torch.load(weights_only=True)` runs no code, but a small file can still do harm: a compressed zip
or many copies of a string fill the memory; nested tuples, colliding hashes, or tensors that
enlarge their storage take hours; a deeply nested tuple as a key crashes the process (all of this
applies to torch 2.15). So the zip's layout and the pickle's steps are checked before torch reads
the file.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from cnn_core.data.readers.pickle_scan import OTHER, Group, Keys, Name, NeedsTrustError, PickleScan
from cnn_core.text import printable

__all__ = ["read_torch_file", "short"]

# Among our networks, DenseNet-201 with Adam's state has the most tensors: 3,000. Its pickle has
# 117,000 steps and 0.35 MB.
MAX_STEPS = 300_000
MAX_DIMENSIONS = 64  # torch's own limit
MAX_PICKLE = 4 << 20  # bytes; also the limit for a zip's directory

END = struct.Struct("<4s4H2IH")  # the last record of a zip
END_64 = struct.Struct("<4sQ2H2I4Q")  # its 64-bit form, which torch writes before it
LOCATOR = struct.Struct("<4sIQI")  # between the two: the offset of the 64-bit record
MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id|data/[0-9]+"
)
# Files from before torch 1.6 begin with two pickles: a magic number and the version, 1001.
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."

STORAGES = {
    f"torch {name}Storage": size
    for size, names in {
        16: ["ComplexDouble"],
        8: ["Double", "Long", "ComplexFloat"],
        4: ["Float", "Int"],
        2: ["Half", "BFloat16", "Short"],
        1: ["Char", "Byte", "Bool"],
    }.items()
    for name in names
}
DTYPES = [f"torch {name}" for name, value in vars(torch).items() if type(value) is torch.dtype]
ORDERED = "collections OrderedDict"
CONTAINERS = (ORDERED, "collections Counter", "__builtin__ set", "builtins set")
TENSORS = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
PARAMETERS = ("torch._utils _rebuild_parameter", "torch.nn.parameter Parameter")
ATOMS = (int, float, str, Group)
PLAIN = ("__builtin__ complex", "builtins complex", "torch Size", "torch device")
ENCODE = "_codecs encode"  # how protocol 2 writes bytes
# Files of torchvision, timm and DeiT contain these beside the weights. We do not need them.
IGNORED = (
    "argparse Namespace",
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
)


class Ignored:
    """Placeholder for an unused object; accepts any arguments and stores none."""

    def __new__(cls, *_: object) -> Ignored:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Discard the state."""


SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (Ignored, name.replace(" ", ".")) for name in IGNORED
]


def short(name: str) -> str:
    """Return a name from a file, truncated and escaped for a message."""
    return printable(name[:80])


def read_torch_file(file: BinaryIO) -> dict[str, Any]:
    """Load a dictionary from a file that `torch.save` of torch 0.1.11 or later wrote.

    Raises:
        ValueError: the file is of another kind, is broken, contains something other than a
            dictionary, or declares more data than it contains. torch raises other errors for
            problems that it finds itself.
    """
    size, start = os.fstat(file.fileno()).st_size, file.read(len(LEGACY))
    if start.startswith(b"PK\3\4"):
        _check_zip(file, size)
    elif start == LEGACY:
        _check_legacy(file, size)
    else:
        _refuse(file)
    file.seek(0)
    with torch.serialization.safe_globals(SAFE):
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    if not isinstance(state, dict):
        raise ValueError("does not contain a dictionary")
    return state


def _check_zip(file: BinaryIO, size: int) -> None:
    """Raise ValueError unless a zip has the layout of torch's files and a valid pickle."""
    _require_one_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        sizes = _members(archive.infolist(), size)
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        scan = _Scan()
        scan.run(archive.read(name))
    for key, declared in scan.storages.items():
        if declared != (actual := sizes.get(f"data/{key}", 0)):
            raise ValueError(f"storage {short(key)} declares {declared:,} bytes, has {actual:,}")


def _require_one_directory(file: BinaryIO, size: int) -> None:
    """Raise ValueError if zipfile and torch could find different directories in a zip."""
    file.seek(max(0, size - END_64.size - LOCATOR.size - END.size))
    *_, count, length, start, comment = END.unpack((tail := file.read())[-END.size :])
    if tail[-END.size :][:4] != b"PK\5\6" or comment:
        raise ValueError("its zip does not end like torch's: is it truncated?")
    stop = size - END.size
    if tail[-END.size - LOCATOR.size :].startswith(b"PK\6\7"):
        stop = size - len(tail)
        magic, *_, count_64, length_64, start_64 = END_64.unpack(tail[: END_64.size])
        position = LOCATOR.unpack_from(tail, END_64.size)[2]
        clipped = (min(count_64, 0xFFFF), min(length_64, 0xFFFFFFFF), min(start_64, 0xFFFFFFFF))
        if (magic, position, clipped) != (b"PK\6\6", stop, (count, length, start)):
            raise ValueError("its zip has two different directories")
        length, start = length_64, start_64
    if start + length != stop:
        raise ValueError("its zip has two different directories")
    if length > MAX_PICKLE:
        raise ValueError(f"its zip has a directory of {length:,} bytes")


def _members(infos: list[zipfile.ZipInfo], size: int) -> dict[str, int]:
    """Return the sizes of a zip's members; raise ValueError unless it has torch's layout."""
    sizes: dict[str, int] = {}
    root, end = infos[0].orig_filename.partition("/")[0] if infos else "", 0
    for info in infos:
        head, _, name = info.orig_filename.partition("/")
        if head != root or name in sizes or not MEMBER.fullmatch(name):
            raise ValueError(f"its zip has an unexpected member '{short(info.orig_filename)}'")
        if info.compress_type or info.compress_size != info.file_size or info.flag_bits & 1:
            raise ValueError("its zip is compressed or encrypted, unlike torch's")
        if info.file_size > MAX_PICKLE and not name.startswith("data/"):
            raise ValueError(f"its {name} has {info.file_size:,} bytes")
        if info.header_offset < end:
            raise ValueError("its zip's members overlap or are out of order")
        end = info.header_offset + info.file_size
        sizes[name] = info.file_size
    if end > size or not {"data.pkl", "version"} <= sizes.keys():
        raise ValueError("its zip lacks data.pkl or version, or is truncated")
    return sizes


def _check_legacy(file: BinaryIO, size: int) -> None:
    """Raise ValueError unless a file from before torch 1.6 is valid.

    After the magic number and version come three pickles (facts about the machine, the weights,
    the keys of the storages), then each storage: its number of elements, and its bytes.
    """
    pickles, scan = io.BytesIO(file.read(MAX_PICKLE)), _Scan()
    scan.run(pickles)
    scan.run(pickles)
    if set(scan.run(pickles)) != scan.storages.keys():
        raise ValueError("its list of storages differs from those that its pickle uses")
    declared = sum(8 + length for length in scan.storages.values())
    if declared != (actual := size - len(LEGACY) - pickles.tell()):
        raise ValueError(f"its storages declare {declared:,} bytes, it has {actual:,}")


def _refuse(file: BinaryIO) -> None:
    """Raise a ValueError that describes a file of another format as well as possible."""
    file.seek(0)
    start, scan = file.read(MAX_PICKLE), _Scan()
    if start[257:262] == b"ustar":
        raise NeedsTrustError("is a tar file of torch 0.1.10 or older, which must be converted")
    with suppress(ValueError):
        scan.run(start)
    scan.require_known()
    if not start:
        raise ValueError("is empty")
    raise ValueError(f"starts with {start[:8].hex(' ')}, unlike files of torch.save")


@dataclass(frozen=True, slots=True)
class Storage:
    """Placeholder for a storage with `count` elements."""

    count: int


TENSOR = object()


class _Scan(PickleScan):
    """Scans the pickle of a state dict; `storages` maps keys to sizes in bytes."""

    def __init__(self) -> None:
        known = (*STORAGES, *DTYPES, *CONTAINERS, *TENSORS, *PARAMETERS, *PLAIN, ENCODE, *IGNORED)
        super().__init__(known, MAX_STEPS)
        self.storages: dict[str, int] = {}

    def stored(self, identity: Any) -> Storage:
        """Record a storage's key and size; before torch 1.6, a None followed the size."""
        match identity:
            case ("storage", Name() as kind, str(key), str(), int(count), *more):
                size = count * STORAGES.get(kind, -1)
            case _:
                raise ValueError("refers to a storage unlike torch.save")
        if size < 0 or any(more) or self.storages.setdefault(key, size) != size:
            raise ValueError(f"refers to storage {short(key)} unlike torch.save")
        return Storage(count)

    def called(self, name: Name, arguments: Group) -> Any:
        """Return a placeholder for the result of a call, if torch.save makes such calls."""
        match arguments:
            case (Storage(count), offset, Group() as size, Group() as stride, *others):
                if name in TENSORS and not any(others[2:]):
                    return self.tensor(count, offset, size, stride)
            case () | (list(),) if name in CONTAINERS:
                return self.gathered(name, *arguments)
            case (first, *_) if name in PARAMETERS and first is TENSOR:
                return OTHER
            case _ if name in PLAIN and all(isinstance(a, ATOMS) for a in arguments):
                return OTHER
            case _ if name in IGNORED or (name == ENCODE and arguments[1:] == ("latin1",)):
                return OTHER
        raise ValueError(f"calls {name} unlike torch.save")

    def gathered(self, name: Name, members: list[Any] | None = None) -> Keys:
        """Return the keys of a dictionary or set; Python 2 wrote dictionaries as pair lists."""
        members = members or []
        if name == ORDERED and not isinstance(members, Keys):
            if not all(isinstance(pair, list) and len(pair) == 2 for pair in members):
                raise ValueError("builds a dictionary from something other than pairs")
            members = [pair[0] for pair in members]
        self.hashed(members)
        return Keys(members)

    def tensor(self, count: int, offset: Any, size: Group, stride: Group) -> object:
        """Raise ValueError unless a tensor lies within its storage, which torch would enlarge."""
        if {type(n) for n in (offset, *size, *stride)} != {int} or len(size) != len(stride):
            raise ValueError("contains a tensor with invalid sizes or strides")
        if len(size) > MAX_DIMENSIONS:
            raise ValueError(f"contains a tensor with {len(size):,} dimensions")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride)) < 0 or math.prod(size) > count:
            raise ValueError(f"contains a tensor with more elements than its storage ({count:,})")
        if 0 not in size and last >= count:
            raise ValueError("contains a tensor that ends beyond its storage")
        return TENSOR
