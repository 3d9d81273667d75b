"""Load files of `torch.save` with torch's own reader, after a check that keeps it from harm.

`torch.load(weights_only=True)` runs no code, but a small file can still do harm: a compressed zip
or copies of one text fill the memory; tuples in tuples, colliding numbers, or tensors that enlarge
their storage take hours; a deep tuple as a key crashes the process (torch 2.15 does all of these).
So the layout of the zip and the steps of the pickle are checked before torch sees the file.
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

# DenseNet-201 with Adam's state, the most tensors of our networks, has 3,000 of them, described
# in 117,000 steps and 0.35 MB.
MAX_STEPS = 300_000
MAX_DIMENSIONS = 64  # torch's own limit
MAX_PICKLE = 4 << 20  # bytes; also of a zip's directory

END = struct.Struct("<4s4H2IH")  # the last record of a zip
END_64 = struct.Struct("<4sQ2H2I4Q")  # the same in 64 bits, which torch writes before it,
LOCATOR = struct.Struct("<4sIQI")  # with its place between the two
MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id|data/[0-9]+"
)
# A file from before torch 1.6 begins with two pickles: a magic number and the version 1001.
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
GATHER = (ORDERED, "collections Counter", "__builtin__ set", "builtins set")
TENSORS = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
PARAMETERS = ("torch._utils _rebuild_parameter", "torch.nn.parameter Parameter")
ATOMS = (int, float, str, Group)
PLAIN = ("__builtin__ complex", "builtins complex", "torch Size", "torch device")
ENCODE = "_codecs encode"  # how protocol 2 writes bytes
# Beside the weights of torchvision, timm and DeiT. Nobody reads them, so nothing builds them.
IGNORED = (
    "argparse Namespace",
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
)


class Ignored:
    """Stands in for an object that nobody reads; it takes any arguments and keeps none."""

    def __new__(cls, *_: object) -> Ignored:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Keep nothing."""


SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (Ignored, name.replace(" ", ".")) for name in IGNORED
]


def short(name: str) -> str:
    """Return a name from a file, fit for a message."""
    return printable(name[:80])


def read_torch_file(file: BinaryIO) -> dict[str, Any]:
    """Load a file of `torch.save`, of any torch since 0.1.11, if it holds a dictionary.

    Raises:
        ValueError: it is something else, is broken, or claims more than it has; torch raises
            other errors for problems that it finds itself.
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
        raise ValueError("holds no dictionary")
    return state


def _check_zip(file: BinaryIO, size: int) -> None:
    """Raise ValueError unless a zip is laid out as torch's are and its pickle is sound."""
    _require_one_directory(file, size)
    with zipfile.ZipFile(file) as archive:
        sizes = _members(archive.infolist(), size)
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        scan = _Scan()
        scan.run(archive.read(name))
    for key, claimed in scan.storages.items():
        if claimed != (has := sizes.get(f"data/{key}", 0)):
            raise ValueError(f"storage {short(key)} claims {claimed:,} bytes, has {has:,}")


def _require_one_directory(file: BinaryIO, size: int) -> None:
    """Check the end of a zip, where zipfile and torch could find two different directories."""
    file.seek(max(0, size - END_64.size - LOCATOR.size - END.size))
    *_, count, length, start, comment = END.unpack((tail := file.read())[-END.size :])
    if tail[-END.size :][:4] != b"PK\5\6" or comment:
        raise ValueError("its zip does not end as torch's do: cut short?")
    stop = size - END.size
    if tail[-END.size - LOCATOR.size :].startswith(b"PK\6\7"):
        stop = size - len(tail)
        magic, *_, count_64, length_64, start_64 = END_64.unpack(tail[: END_64.size])
        where = LOCATOR.unpack_from(tail, END_64.size)[2]
        same = (min(count_64, 0xFFFF), min(length_64, 0xFFFFFFFF), min(start_64, 0xFFFFFFFF))
        if (magic, where, same) != (b"PK\6\6", stop, (count, length, start)):
            raise ValueError("its zip has two different directories")
        length, start = length_64, start_64
    if start + length != stop:
        raise ValueError("its zip has two different directories")
    if length > MAX_PICKLE:
        raise ValueError(f"its zip has a directory of {length:,} bytes")


def _members(infos: list[zipfile.ZipInfo], size: int) -> dict[str, int]:
    """Return the sizes of a zip's members, if all are named and laid out as torch's."""
    sizes: dict[str, int] = {}
    root, end = infos[0].orig_filename.partition("/")[0] if infos else "", 0
    for info in infos:
        head, _, name = info.orig_filename.partition("/")
        if head != root or name in sizes or not MEMBER.fullmatch(name):
            raise ValueError(f"its zip has the member '{short(info.orig_filename)}'")
        if info.compress_type or info.compress_size != info.file_size or info.flag_bits & 1:
            raise ValueError("its zip is compressed, which torch's are not")
        if info.file_size > MAX_PICKLE and not name.startswith("data/"):
            raise ValueError(f"its {name} has {info.file_size:,} bytes")
        if info.header_offset < end:
            raise ValueError("its zip's members overlap, or are not in order")
        end = info.header_offset + info.file_size
        sizes[name] = info.file_size
    if end > size or not {"data.pkl", "version"} <= sizes.keys():
        raise ValueError("its zip lacks data.pkl or version, or claims more than it has")
    return sizes


def _check_legacy(file: BinaryIO, size: int) -> None:
    """Raise ValueError unless a file from before torch 1.6 is sound.

    After the magic number it has three pickles (the machine that wrote it, the weights, the
    storages by name), and then the bytes of each storage with their number before them.
    """
    pickles, scan = io.BytesIO(file.read(MAX_PICKLE)), _Scan()
    scan.run(pickles)
    scan.run(pickles)
    if set(scan.run(pickles)) != scan.storages.keys():
        raise ValueError("lists other storages than its pickle uses")
    claimed = sum(8 + length for length in scan.storages.values())
    if claimed != (has := size - len(LEGACY) - pickles.tell()):
        raise ValueError(f"its storages claim {claimed:,} bytes, has {has:,}")


def _refuse(file: BinaryIO) -> None:
    """Raise ValueError with the best description of a file that torch.save did not write."""
    file.seek(0)
    start, scan = file.read(MAX_PICKLE), _Scan()
    if start[257:262] == b"ustar":
        raise NeedsTrustError("is a tar file of torch 0.1.10 or older, which has to be converted")
    with suppress(ValueError):
        scan.run(start)
    scan.require_known()
    raise ValueError(f"starts with {start[:8].hex(' ')}, not as files of torch.save do")


@dataclass(frozen=True, slots=True)
class Storage:
    """Stands in for a storage of so many elements."""

    count: int


TENSOR = object()


class _Scan(PickleScan):
    """Follows the pickle of a state dict; finds the size in bytes of each storage, by key."""

    def __init__(self) -> None:
        known = (*STORAGES, *DTYPES, *GATHER, *TENSORS, *PARAMETERS, *PLAIN, ENCODE, *IGNORED)
        super().__init__(known, MAX_STEPS)
        self.storages: dict[str, int] = {}

    def stored(self, identity: Any) -> Storage:
        """Read a storage's type, key and size; before torch 1.6, None followed."""
        match identity:
            case ("storage", Name() as kind, str(key), str(), int(count), *more):
                size = count * STORAGES.get(kind, -1)
            case _:
                raise ValueError("names a storage as torch.save does not")
        if size < 0 or any(more) or self.storages.setdefault(key, size) != size:
            raise ValueError(f"names the storage {short(key)} as torch.save does not")
        return Storage(count)

    def called(self, name: Name, arguments: Group) -> Any:
        """Check a call: tensors lie within their storages, and copies are counted."""
        match arguments:
            case (Storage(count), offset, Group() as size, Group() as stride, *others):
                if name in TENSORS and not any(others[2:]):
                    return self.tensor(count, offset, size, stride)
            case () | (list(),) if name in GATHER:
                return self.gathered(name, *arguments)
            case (first, *_) if name in PARAMETERS and first is TENSOR:
                return OTHER
            case _ if name in PLAIN and all(isinstance(a, ATOMS) for a in arguments):
                return OTHER
            case _ if name in IGNORED or (name == ENCODE and arguments[1:] == ("latin1",)):
                return OTHER
        raise ValueError(f"calls {name} as torch.save does not")

    def gathered(self, name: Name, members: list[Any] | None = None) -> Keys:
        """Return a dictionary or set with these members; Python 2 wrote them as lists of pairs."""
        members = members or []
        if name == ORDERED and not isinstance(members, Keys):
            if not all(isinstance(pair, list) and len(pair) == 2 for pair in members):
                raise ValueError("makes a dictionary of something other than pairs")
            members = [pair[0] for pair in members]
        self.hashed(members)
        return Keys(members)

    def tensor(self, count: int, offset: Any, size: Group, stride: Group) -> object:
        """Check that a tensor lies within its storage: torch would enlarge a storage to fit."""
        if {type(n) for n in (offset, *size, *stride)} != {int} or len(size) != len(stride):
            raise ValueError("has a tensor of an unusual kind")
        if len(size) > MAX_DIMENSIONS:
            raise ValueError(f"has a tensor of {len(size):,} dimensions")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride)) < 0 or math.prod(size) > count:
            raise ValueError(f"has a tensor with more elements than its storage, {count:,}")
        if 0 not in size and last >= count:
            raise ValueError("has a tensor that ends after its storage")
        return TENSOR
