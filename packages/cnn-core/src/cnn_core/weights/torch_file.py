"""What `torch.save` wrote, read without running anything.

A .pt file is a zip of a pickle and of raw tensors. Neither Python's nor torch's unpickler sees
it: a machine of our own reads the few opcodes that a state dict needs, looks up no name, calls
nothing, and makes tensors only of bytes that are in the file. torch's own (weights_only=True)
takes minutes over some files made to hurt, and makes tensors of 10^12 elements of one.
"""

from __future__ import annotations

import math
import mmap
import os
import pickletools
import re
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cnn_core.text import printable

__all__ = ["read_torch_file", "short"]

# DenseNet-201 with Adam's state, the most tensors of our networks, has 3,000 of them, described
# by 99,000 opcodes in 0.35 MB.
MAX_TENSORS = 20_000
MAX_OPCODES = 300_000
MAX_PICKLE = 4 << 20
MAX_FILE = (1 << 32) - 1  # of a zip without the 64-bit extension
MAX_DIMENSIONS = 8

END = struct.Struct("<4s4H2IH")  # the records of a zip, from its end: the end,
END_64 = struct.Struct("<4sQ2H2I4Q")  # the same again, which torch adds,
LOCATOR = struct.Struct("<4sIQI")  # where that is,
ENTRY = struct.Struct("<4s6H3I5H2I")  # one per member,
LOCAL = struct.Struct("<4s5H3I2H")  # and one more, ahead of the member's bytes
ENCRYPTED = 1

MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id|data/[0-9]+"
)


def short(name: str) -> str:
    """Return a name from a file, fit for a message."""
    return printable(name[:80])


def read_torch_file(file: BinaryIO) -> dict[str, Any]:
    """Read what `torch.save` wrote, if it is only tensors and plain values."""
    size = os.fstat(file.fileno()).st_size
    if not END.size < size <= MAX_FILE:
        raise ValueError(f"has {size:,} bytes")
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    members = _members(data)
    if not {"data.pkl", "version"} <= members.keys():
        raise ValueError("its zip lacks data.pkl or version")
    order = members.get("byteorder")
    if sys.byteorder != ("little" if order is None else data[order].decode()):
        raise ValueError("written by a machine of another byte order")
    return _Machine(data, members).run(data[members["data.pkl"]])


def _members(data: mmap.mmap) -> dict[str, slice]:
    """Return where a zip's members lie, by name without the root; laid out as torch.save does."""
    if data[:4] != b"PK\3\4":
        old = ": one from before has to be saved again by someone who trusts it"
        found, hint = data[:8].hex(" "), old if data[:1] == b"\x80" else ""
        raise ValueError(f"starts with {found}, not as torch.save's zips since 1.6{hint}")
    count, at, stop = _directory(data)
    members: dict[str, slice] = {}
    roots = set()
    end, directory = 0, at
    for _ in range(count):
        name, start, size, at = _member(data, at, end)
        root, _, rest = name.partition("/")
        roots.add(root)
        if rest in members or len(roots) > 1 or not MEMBER.fullmatch(rest):
            raise ValueError(f"its zip has the member '{short(name)}'")
        if size > MAX_PICKLE and not rest.startswith("data/"):
            raise ValueError(f"its {rest} has {size:,} bytes")
        members[rest] = slice(start, end := start + size)
    if end > directory or at != stop:
        raise ValueError("its zip claims more than it has")
    return members


def _directory(data: mmap.mmap) -> tuple[int, int, int]:
    """Return how many members a zip has, and where its directory starts and stops."""
    at = len(data) - END.size
    magic, _, _, _, count, size, start, comment = END.unpack_from(data, at)
    if magic != b"PK\5\6" or comment:
        raise ValueError("its zip does not end as one of torch.save: cut short?")
    stop = start + size
    if stop != at:
        again = END_64.unpack_from(data, stop) if stop < at else ()
        if stop + END_64.size + LOCATOR.size != at or again[-3:] != (count, size, start):
            raise ValueError("its zip has two different directories")
    return count, start, stop


def _member(data: mmap.mmap, at: int, end: int) -> tuple[str, int, int, int]:
    """Return a member's name, start and size, and where the next entry is.

    `end` is where the member before ends.
    """
    (magic, _, _, flags, method, _, _, _, packed, size, *lengths, _, _, _, offset) = (
        ENTRY.unpack_from(data, at)
    )
    after = at + ENTRY.size + sum(lengths)
    name = data[at + ENTRY.size : at + ENTRY.size + lengths[0]]
    local, *_, named, extra = LOCAL.unpack_from(data, offset)
    start = offset + LOCAL.size
    if (magic, local) != (b"PK\1\2", b"PK\3\4") or data[start : start + named] != name:
        raise ValueError("its zip is broken")
    if method or packed != size or flags & ENCRYPTED:
        raise ValueError("its zip is compressed, which torch.save's is not")
    if offset < end or (end == 0 and offset):
        raise ValueError("its zip's members overlap, or are not in order")
    return name.decode(), start + named + extra, size, after


@dataclass(frozen=True, slots=True)
class Name:
    """What a pickle calls a global: compared with, and never looked up."""

    text: str


@dataclass(frozen=True, slots=True)
class Storage:
    """Elements in the file: the first one's byte, how many, and their type."""

    start: int
    count: int
    dtype: torch.dtype


OTHER = object()  # any value that is not of a state dict

STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch ComplexFloatStorage": torch.complex64,
    "torch ComplexDoubleStorage": torch.complex128,
}
ORDERED, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
# Calls that make plain values, which stand beside tensors in checkpoints; none is made.
PLAIN = (
    "__builtin__ complex",
    "__builtin__ set",
    "_codecs encode",
    "collections Counter",
    "torch Size",
    "torch device",
)
NAMES = {*STORAGES, *PLAIN, ORDERED, TENSOR, PARAMETER, *map(str, STORAGES.values())}


class _Machine:
    """What data.pkl drives: it makes dictionaries and tensors, and reads over plain values.

    Anything else is refused. Lists are not kept, and of dictionaries only the keys that are
    strings: nothing else is hashed, compared or printed.
    """

    def __init__(self, data: mmap.mmap, members: Mapping[str, slice]) -> None:
        self.data, self.members = data, members
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.made = 0

    def run(self, pickle: bytes) -> dict[str, Any]:
        """Return the dictionary that the pickle describes."""
        last = 0
        for number, (opcode, argument, at) in enumerate(pickletools.genops(pickle)):
            last = at or 0
            if number == MAX_OPCODES:
                raise ValueError(f"its pickle has more than {MAX_OPCODES:,} opcodes")
            if opcode.name not in ACTIONS:
                raise ValueError(f"its pickle has the opcode {opcode.name}")
            ACTIONS[opcode.name](self, argument)
        state = self.stack.pop()
        if last + 1 != len(pickle) or self.stack or self.marks:
            raise ValueError("its pickle goes on after its end")
        if not isinstance(state, dict):
            raise ValueError("holds no dictionary")
        return state

    def collect(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def take(self, count: int) -> list[Any]:
        """Take the values on top."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values, in turn, into the dictionary on top."""
        found = self.stack[-1]
        if not isinstance(found, dict):
            raise ValueError("its pickle sets items of what is no dictionary")
        pairs = zip(items[::2], items[1::2], strict=True)
        found.update((key, value) for key, value in pairs if isinstance(key, str))

    def remember(self, number: int) -> None:
        """Keep the value on top under a number."""
        self.memo[number] = self.stack[-1]

    def recall(self, number: int) -> None:
        """Put the value of a number on top again."""
        if number not in self.memo:
            raise ValueError("its pickle recalls what it never put")
        self.stack.append(self.memo[number])

    def name(self, text: str) -> None:
        """Read the name of a class or a function; few are let in."""
        if text not in NAMES:
            raise ValueError(f"its pickle names {text}")
        self.stack.append(Name(text))

    def storage(self, argument: Any) -> None:
        """Find the bytes of a storage: as many as it claims, and where an element may start."""
        match self.stack.pop():
            case ("storage", Name(kind), str(key), str(), int(count)) if kind in STORAGES:
                pass
            case _:
                raise ValueError("its pickle names a storage as torch.save does not")
        member, dtype = self.members.get(f"data/{key}", slice(0, 0)), STORAGES[kind]
        if member.stop - member.start != count * dtype.itemsize or member.start % dtype.itemsize:
            has = f"{member.stop - member.start:,} bytes"
            where = f"{has} at byte {member.start:,}"
            raise ValueError(f"storage {short(key)} claims {count:,} {dtype}, has {where}")
        self.stack.append(Storage(member.start, count, dtype))

    def reduce(self, argument: Any) -> None:
        """Stand in for the calls that make dictionaries, tensors and plain values."""
        match tuple(self.take(2)):
            case Name(text), () if text == ORDERED:
                self.stack.append({})
            case Name(text), (Storage() as storage, *others) if text == TENSOR:
                self.stack.append(self.tensor(storage, *others))
            case Name(text), (Tensor() as tensor, *_) if text == PARAMETER:
                self.stack.append(tensor)
            case Name(text), tuple() if text in PLAIN:
                self.stack.append(OTHER)
            case Name(text), _:
                raise ValueError(f"its pickle calls {text} as torch.save does not")
            case _:
                raise ValueError("its pickle calls what is no name")

    def tensor(
        self, storage: Storage, offset: Any, size: Any, stride: Any, *others: Any
    ) -> Tensor:
        """Make a tensor of what is in the file; none that has more elements than its storage."""
        self.made += 1
        if self.made > MAX_TENSORS:
            raise ValueError(f"holds more than {MAX_TENSORS:,} tensors")
        whole = isinstance(size, tuple) and isinstance(stride, tuple)
        unusual = not whole or len(size) != len(stride) or len(size) > MAX_DIMENSIONS
        if unusual or any(others[2:]) or {type(n) for n in (offset, *size, *stride)} != {int}:
            raise ValueError("holds a tensor of an unusual kind")
        if min((offset, *size, *stride)) < 0 or math.prod(size) > storage.count:
            raise ValueError(
                f"a storage has {storage.count:,} elements, and a tensor claims {size}"
            )
        if 0 in size:
            return torch.empty(size, dtype=storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= storage.count:
            raise ValueError(f"a tensor of {size} ends after its storage")
        start, count = storage.start, storage.count
        flat = torch.frombuffer(self.data, dtype=storage.dtype, count=count, offset=start)
        return flat.as_strided(size, stride, offset)


# The opcodes that are let in: see pickletools in the standard library.
ACTIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "GLOBAL": _Machine.name,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.reduce,
    "BUILD": lambda machine, _: machine.take(1),  # attributes: nothing looks at them
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.collect()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append(OTHER),
    "APPEND": lambda machine, _: machine.take(1),
    "APPENDS": lambda machine, _: machine.collect(),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.collect())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.take(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.take(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.take(3))),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    **dict.fromkeys(
        ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        lambda machine, argument: machine.stack.append(argument),
    ),
}
