"""Hostile weights: no code runs, little memory and time are used, and one error is raised.

Run as a program this is the process that reads them: it forks for each file, with torch imported
once. It answers a line of JSON (how to read, and which file) with another (the outcome).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import pickletools
import re
import resource
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnn_core import create_model
from cnn_core.errors import CorruptError, UntrustedWeightsError
from cnn_core.weights.foreign import MAX_HEADER, read_foreign
from cnn_core.weights.torch_file import LEGACY, MAX_STEPS

ROOT = Path(__file__).parents[2]
CANARY = "CNNZOO_CANARY"  # a variable of the environment, and a file beside the weights
CPU_SECONDS = 5
MEGABYTE = 1 << 20

# --- The process that reads


def serve() -> None:
    """Answer requests until the input ends."""
    for line in sys.stdin:
        how, path = json.loads(line)
        if not (child := os.fork()):
            print(json.dumps(watched(READERS[how], Path(path))), flush=True)
            os._exit(0)
        if status := os.waitpid(child, 0)[1]:
            print(json.dumps({"error": f"the status {status}"}), flush=True)


def watched(read: Callable[[Path], object], path: Path) -> dict[str, object]:
    """Read a file; return the error and the memory it took. Too long, and this process ends."""
    read_foreign(Path(sys.argv[1]))  # touches the pages that any reading needs
    signal.alarm(60)  # for a reader that waits
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1 + CPU_SECONDS, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak
    base = memory("VmRSS")
    limit = memory("VmSize") + (6 << 30)  # for the sake of the machine
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    error, text = "none", ""
    try:
        read(path)
    except BaseException as found:
        error, text = type(found).__name__, str(found)
    with suppress(ChildProcessError):  # until all that the file started has ended
        while True:
            os.wait()
    grown = memory("VmHWM") - base
    return {"error": error, "text": text, "memory": grown, "canary": CANARY in os.environ}


def memory(field: str) -> int:
    """Return a figure of this process, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def trusting(path: Path) -> object:
    """Read a file as nobody should, to show that the hostile ones would do harm."""
    return torch.load(path, weights_only=False)


READERS: dict[str, Callable[[Path], object]] = {"safe": read_foreign, "trusting": trusting}

# --- The parts of hostile files


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def body(value: object) -> bytes:
    """Return the opcodes that push a value."""
    return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def storage(key: Any = "0", count: Any = 4, more: bytes = b"") -> bytes:
    """Return the opcodes that push a storage of floats; `key` may be opcodes itself."""
    key = key if isinstance(key, bytes) else body(key)
    start = b"(" + body("storage") + b"ctorch\nFloatStorage\n"
    return start + key + body("cpu") + body(count) + more + b"tQ"


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
ORDERED = b"ccollections\nOrderedDict\n)R"
STATE = b"\x80\x02}" + body("w")  # begins a state dict of one tensor: its value and b"s." follow


def tensor(*numbers: Any, held: bytes = b"", more: bytes = b"") -> bytes:
    """Return the opcodes that push a tensor: its offset, size and stride, or their opcodes."""
    parts = [n if isinstance(n, bytes) else body(n) for n in numbers or (0, (2, 2), (2, 1))]
    start = REBUILD + b"(" + (held or storage())
    return start + b"".join(parts) + b"\x89" + ORDERED + more + b"tR"


SOUND = STATE + tensor() + b"s."


def zipped(
    program: bytes = SOUND, *more: tuple[str, bytes], floats: bytes = bytes(16), **how: Any
) -> bytes:
    """Return a file as torch.save writes it, with one storage of four floats."""
    members = [("data.pkl", program), ("data/0", floats), (how.get("version", "version"), b"3\n")]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (*members, *more):
            info = zipfile.ZipInfo(how.get("root", "w/") + name)
            archive.writestr(info, data, how.get("method", zipfile.ZIP_STORED))
    return buffer.getvalue()


def legacy(program: bytes, keys: object = ("0",), data: bytes = b"\4" + bytes(23)) -> bytes:
    """Return a file as torch.save wrote it before torch 1.6."""
    return LEGACY + pickle.dumps({}, 2) + program + pickle.dumps(list(keys), 2) + data


def patched(after: bytes, at: int, layout: str, *values: object) -> bytes:
    """Return a sound zip with a change in its directory, so many bytes from the last `after`."""
    changed = bytearray(zipped())
    struct.pack_into(layout, changed, changed.rindex(after) + at, *values)
    return bytes(changed)


def with_end_64(claimed: int, shift: int = 0) -> bytes:
    """Return a zip with the 64-bit record of its end, which claims a number of members."""
    data = zipped()
    size, start = struct.unpack_from("<2I", data, len(data) - 10)
    record = (b"PK\6\6", 44, 45, 45, 0, 0, claimed, claimed, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(data) - 22 - shift, 1)
    return data[:-22] + struct.pack("<4sQ2H2I4Q", *record) + locator + data[-22:]


def header(fields: object, data: bytes = bytes(16)) -> bytes:
    """Return a safetensors file; `fields` may be the header's bytes."""
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def field(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> Any:
    """Return the description of one tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# --- The corpus

Builder = Callable[[Path], "bytes | None"]  # the file's content; None, if it is already there


@dataclass(frozen=True)
class Hostile:
    """How to build a file, its error, and whether a trusting reader runs its code."""

    build: Builder | bytes
    says: str
    live: bool = False
    suffix: str = ".pt"


CORPUS: dict[str, Hostile] = {}


def write(build: Builder | bytes, path: Path) -> Path:
    """Write a file of the corpus."""
    data = build if isinstance(build, bytes) else build(path)
    if data is not None:
        path.write_bytes(data)
    return path


def add(says: str, files: Mapping[str, Builder | bytes], **how: Any) -> None:
    """Add files to the corpus that are refused with the same words."""
    for name, build in files.items():
        assert name not in CORPUS, name
        CORPUS[name] = Hostile(build, says, **how)


def programs(says: str, files: Mapping[str, bytes]) -> None:
    """Add zips that are sound except for their data.pkl, which is given."""
    add(says, {name: zipped(program) for name, program in files.items()})


# Calls, in every kind of file that torch.load knows.

SET = f"__import__('os').environ.update({CANARY}='1')"


def system(path: Path) -> Call:
    return Call(os.system, f"touch {path.parent / CANARY}")


def runs_script(path: Path) -> Call:
    return Call(runpy.run_path, str(write(SET.encode(), path.with_name("other.py"))))


CALLS: dict[str, Callable[[Path], Call]] = {
    "os.system": system,
    "os.popen": lambda path: Call(os.popen, f"sleep 0.1; touch {path.parent / CANARY}"),
    "eval": lambda path: Call(eval, SET),
    "runpy": runs_script,
    "from bytes": lambda path: Call(torch.storage._load_from_bytes, pickle.dumps(system(path))),
}


def saved(make: Callable[[Path], Call], is_zip: bool) -> Builder:
    """Beside a sound tensor, as torch.save writes it."""
    how = {"_use_new_zipfile_serialization": is_zip}
    return lambda path: torch.save({"w": torch.zeros(4), "x": make(path)}, path, **how)


def tar(path: Path) -> bytes:
    """In the format from before torch 0.1.10."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return buffer.getvalue()


def around(before: bytes, after: bytes) -> Builder:
    """In a zip, with the command as an argument: opcodes around its text."""
    return lambda path: zipped(before + body(f"touch {path.parent / CANARY}") + after)


for kind, is_zip in (("zip", True), ("legacy", False)):
    files = {f"{name} in {kind}": saved(make, is_zip) for name, make in CALLS.items()}
    add("its pickle names [a-z_]+.*\n(if you trust|these can run commands)", files, live=True)
raw = {f"raw pickle {n}": lambda path, n=n: pickle.dumps(system(path), n) for n in range(6)}
add("its pickle names posix.system\n", raw, live=True)
add("a tar file of torch 0.1.10 .*\nif you trust", {"tar": tar})
OS = b"cposix\nsystem\n"
CALLED = {
    "STACK_GLOBAL": around(b"\x80\x04" + body("posix") + body("system") + b"\x93", b"\x85R."),
    "INST": around(b"\x80\x02(", b"iposix\nsystem\n."),
    "OBJ": around(b"\x80\x02(" + OS, b"o."),
    "called and dropped": around(b"\x80\x02" + OS, b"\x85R0" + STATE[2:] + b"Ns."),
    "called within a tensor": around(STATE + tensor()[:-2] + OS, b"\x85RtRs."),
    "called as a key": around(b"\x80\x02}" + OS, b"\x85R" + tensor() + b"s."),
    "called as an attribute": around(STATE + ORDERED + OS, b"\x85Rbs."),
}
add("pickle names posix.system", CALLED, live=True)
NAMED = {
    "a module": body(torch.nn.Linear(2, 2)) + b".",
    "tensor of 2^40": b"ctorch\nTensor\n" + body(1 << 40) + b"\x85R.",
    "bytearray of 2^40": b"c__builtin__\nbytearray\n" + body(1 << 40) + b"\x85R.",
    "two million words": b"c" + b"a " * 2_000_000 + b"\nb\n.",
}
programs("pickle names ", NAMED)

# Pickles that are broken, or of something else.

programs(
    "has the opcode ", {"EXT1": b"\x82\x01.", "PERSID": b"Pa\n.", "POP": b"N0.", "DUP": b"}2."}
)
programs(
    "does not contain a dictionary", {"a list": b"].", "None": b"N.", "a tensor": tensor() + b"."}
)
programs(
    "no tensors",
    {
        "no entries": b"}.",
        "a number as key": b"}K\1" + tensor() + b"s.",
        "a number": STATE + b"K\x01s.",
    },
)
BROKEN = {
    "no STOP": SOUND[:-1],
    "TUPLE2 of nothing": b"\x86.",
    "memo of nothing": b"h\x07.",
    "items of a list": b"](NNu.",
    "a key without value": b"}(" + body("w") + b"u.",
    "a text is called": body("os.system") + b")R.",
    "no UTF-8": b"X\2\0\0\0\xff\xfe.",
    "a text of 2^31": b"X\xff\xff\xff\x7fabc.",
    "another codec": b"c_codecs\nencode\n" + body(("a" * 99, "punycode")) + b"R.",
    "set of a tensor": b"c__builtin__\nset\n" + tensor() + b"\x85R.",
    "attributes of a class": b"cargparse\nNamespace\n}b.",
    "another storage": tensor() + b"(" + storage() + b"K\0K\1K\1tb.",
}
programs("its pickle is refused: ", BROKEN)

# Small pickles that keep torch.load(weights_only=True) busy, fill the memory, or crash it.

LAUGHS = b")" + b"q\x63h\x63\x86" * 60  # 2^60 tuples, if it were unfolded
MANY = MAX_STEPS - 9
GROWING = {
    "laughs as a key": b"}" + LAUGHS + b"K\x01s.",
    "laughs as a storage": tensor(held=storage(LAUGHS)) + b".",
    "laughs as a size": tensor(LAUGHS, LAUGHS, LAUGHS) + b".",
    "deep tuples as a key": b"})" + b"\x85" * MANY + b"Ns.",
    "numbers that collide": b"}("
    + b"".join(body(n * ((1 << 61) - 1)) + b"N" for n in range(5, 50_000))
    + b"u.",
    "a text copied": b"(c_codecs\nencode\nq\0X\0\0\x10\0" + b"a" * MEGABYTE + b"q\1"
    + body("latin1") + b"q\2\x86R" + b"h\0h\1h\2\x86R" * 40_000 + b"t.",
    "a list copied": b"(c__builtin__\nset\nq\0](" + b"K\1" * 50_000 + b"eq\1\x85R"
    + b"h\0h\1\x85R" * 40_000 + b"t.",
    "a million lists": b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    "a million dictionaries": b"}" * 10**6 + b".",
}  # fmt: skip
programs("more than [0-9,]+ (steps|nested tuples)|unlike torch.save", GROWING)
ALLOWED = {
    "deep lists": b"]" * (MANY // 2) + b"a" * (MANY // 2 - 1) + b".",
    "dictionaries": b"}" * MANY + b".",
    "long numbers": (b"\x8a\x08" + b"\1" * 8) * MANY + b".",
    "small memoised": b"".join(b")\x85r" + struct.pack("<I", n) for n in range(99_999)) + b".",
    "wide texts": b"X" + struct.pack("<I", 4_000_004) + b"a" * 4_000_000 + "😀".encode() + b"N.",
}
programs("not contain a dictionary|no tensors", ALLOWED)
programs("data.pkl has 5,000,000 bytes", {"a large pickle": bytes(5_000_000)})

# Storages and tensors that claim more than there is.

COUNTS = {
    f"storage of {count}": storage(count=count) for count in (1 << 60, 1 << 2000, -4, 5, 3, "4")
}
STORED = COUNTS | {"storage that is missing": storage("7"), "storage by number": storage(0)}
STORED |= {"storage that is a module": body(("module", None, "a", "b")) + b"Q"}
claims = "storage [07] declares |(to|a) storage |more elements than its storage"
programs(claims, {name: STATE + tensor(held=held) + b"s." for name, held in STORED.items()})
TENSORS: dict[str, tuple[object, object, object]] = {
    "expanded to 10^12": (0, (10**6, 10**6), (0, 0)),
    "size of 2^2000": (0, (1 << 2000,), (1,)),
    "empty, of 2^70": (0, (0, 1 << 70), (1, 1)),
    "negative size": (0, (-1, -4), (1, 1)),
    "negative step": (3, (2, 2), (-2, 1)),
    "start at 2^62": (1 << 62, (1,), (1,)),
    "steps of 2^62": (0, (2,), (1 << 62,)),
    "fewer steps than sizes": (0, (2, 2), (1,)),
    "a thousand dimensions": (0, (1,) * 1000, (1,) * 1000),
    "sizes that are fractions": (0, (2.0,), (1,)),
}
claims = "its pickle is refused: (contains a tensor|calls torch)|[Oo]verflow|too large"
programs(claims, {name: STATE + tensor(*numbers) + b"s." for name, numbers in TENSORS.items()})
OLD = STATE + tensor(held=storage(more=b"N")) + b"s."
OLDER = {
    "legacy storage of 2^40": legacy(STATE + tensor(held=storage(count=1 << 40)) + b"s."),
    "legacy storage with a byte less": legacy(OLD, data=bytes(23)),
    "legacy storage that is not listed": legacy(OLD, ()),
    "legacy storage that is not used": legacy(OLD, ("0", "1")),
    "legacy tensor beyond its storage": legacy(STATE + tensor(0, (5,), (1,)) + b"s."),
    "legacy laughs": legacy(b"\x80\x02}" + LAUGHS + b"K\x01s."),
    "legacy cut short": LEGACY,
}
differs = "its storages declare [0-9,]+ bytes, it has |its list of storages differs"
add(f"{differs}|its pickle is refused", OLDER)

# Zips that are not as torch.save's, with sound weights in them.

LARGE = STATE + tensor(0, (50_000_000,), (1,), held=storage(count=50_000_000)) + b"s."
PACKED = {
    "deflate bomb": lambda path: zipped(LARGE, floats=bytes(200_000_000), method=8),
    "bzip2": zipped(method=zipfile.ZIP_BZIP2),
    "encrypted": patched(b"w/data/0", 8 - 46, "<H", 1),
}
add("its zip is compressed", PACKED)
LAID = {
    "member of 2^30": patched(b"w/version", 20 - 46, "<2I", 1 << 30, 1 << 30),
    "storage of 2^30 in the zip": patched(b"w/data/0", 20 - 46, "<2I", 1 << 30, 1 << 30),
    "overlapping members": patched(b"w/data/0", 20 - 46, "<2I", 1000, 1000),
    "member beyond the end": patched(b"w/version", 42 - 46, "<I", (1 << 32) - 2),
    "a byte order of 5 MB": zipped(SOUND, ("byteorder", bytes(5_000_000))),
}
add("truncated|overlap|has [0-9,]+ bytes|[Bb]ad magic number", LAID)
MEMBERS = {
    "TorchScript": zipped(SOUND, ("constants.pkl", b"N."), ("code/__torch__.py", b"import os")),
    "path outside": zipped(SOUND, ("../../../etc/passwd", b"root")),
    "no root": zipped(root=""),
    "a name twice": zipped(SOUND, ("data/1", b"x")).replace(b"w/data/1", b"w/data/0"),
    "a name in capitals": zipped(SOUND, ("DATA.PKL", b"x")),
    "a name with NUL": zipped(SOUND, ("data/1x", b"x")).replace(b"data/1x", b"data/1\0"),
    "a name of 60,000 letters": zipped(SOUND, ("a" * 60_000, b"x")),
    "no version": zipped(version=".format_version"),
}
add("its zip (has an unexpected member|lacks) ", MEMBERS)
ENDS = {
    "a comment": patched(b"PK\5\6", 20, "<H", 1) + b"!",
    "bytes after": zipped() + bytes(9),
    **{f"cut at {n}/4": zipped()[: len(zipped()) * n // 4] for n in range(1, 4)},
    "64-bit end of 2^40 members": with_end_64(1 << 40),
    "64-bit end elsewhere": with_end_64(3, shift=8),
    "directory of 2^31": patched(b"PK\5\6", 12, "<I", 1 << 31),
    "directory elsewhere": patched(b"PK\5\6", 16, "<I", 0),
    "100,000 members": lambda p: zipped(SOUND, *((f"data/{n}", b"") for n in range(1, 10**5))),
}
add("its zip (does not end like|has two different directories|has a directory of)", ENDS)

# Other formats, and other things than files.

OTHERS = {
    "gzip": gzip.compress(zipped()),
    "7z": b"7z\xbc\xaf\x27\x1c\0\4" + bytes(99),
    "a web page": b"<!DOCTYPE html><title>404</title>" + bytes(99),
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "safetensors named .pt": header({"w": field()}),
    "empty": b"",
    "a terabyte": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 1 << 40),
}
add("starts with |is empty", OTHERS)


def socket_at(path: Path) -> None:
    """A socket that nobody reads."""
    here = os.getcwd()
    os.chdir(path.parent)  # its path may have 107 letters
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
    os.chdir(here)


for ending in (".pt", ".safetensors"):
    things: dict[str, Any] = {"FIFO": os.mkfifo, "directory": os.mkdir, "socket": socket_at}
    things["link to /dev/zero"] = lambda path: path.symlink_to("/dev/zero")
    things["link to itself"] = lambda path: path.symlink_to(path.name)
    things["no file"] = lambda path: None
    named = {f"{name} named {ending}": build for name, build in things.items()}
    add("not a regular file", named, suffix=ending)

# safetensors.

HEADERS: dict[str, Any] = {
    "header that is text": b"weights",
    "header cut short": b'{"w":{"dtype":"F32"',
    "deep lists in a header": b'{"w":' + b"[" * (MAX_HEADER - 9),
    "deep objects in a header": b'{"w":' * 100_000,
    "a number of a million digits": b'{"w":' + b"9" * 1_000_000 + b"}",
    "a tensor twice": b'{"w":%b,"w":%b}' % ((json.dumps(field()).encode(),) * 2),
    "offsets that are NaN": {"w": field(offsets=[float("nan"), 16])},
    "offsets to the end of the world": {"w": field(offsets=[0, 1 << 60])},
    "offsets the wrong way": {"w": field(offsets=[16, 0])},
    "shape that overflows": {"w": field(shape=[1 << 32, 1 << 32, 2])},
    "type that is unknown": {"w": field("F31")},
    "tensors at one place": {"a": field(), "b": field()},
}
SAFE = {name: header(fields) for name, fields in HEADERS.items()}
SAFE |= {"safetensors without tensors": header({}, b""), "cut by 1": header({"w": field()})[:-1]}
add(
    "its header: |contains a name twice|deserializing header|no tensors",
    SAFE,
    suffix=".safetensors",
)
LENGTHS: dict[str, Builder | bytes] = {
    "header of 2^63": struct.pack("<Q", 1 << 63) + header({"w": field()})[8:],
    "header of 2 MB": header(b'{"__metadata__":{"a":"' + b"a" * (2 << 20) + b'"}}'),
    "zip as safetensors": zipped(),
    "pickle as safetensors": lambda path: pickle.dumps(system(path), 2),
}
add(r"its header declares [0-9,]+ bytes", LENGTHS, suffix=".safetensors")

# --- The tests


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Path], Any]]:
    """A function that has a file read by the process beside."""
    warm = tmp_path_factory.mktemp("warm") / "w.pt"
    warm.write_bytes(zipped())
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, __file__, str(warm)], **pipes) as process:

        def answer(how: str, path: Path) -> Any:
            print(json.dumps([how, str(path)]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())

        yield answer
        process.stdin.close()


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_file_is_one_error_and_costs_nothing(tmp_path, ask, name):
    path = write(CORPUS[name].build, tmp_path / f"w{CORPUS[name].suffix}")
    size = path.stat().st_size if path.is_file() else 0
    found = ask("safe", path)  # which ends the reader after five seconds of work
    assert found["error"] == "UntrustedWeightsError", found
    assert found["text"].startswith(f"{path}: cannot be loaded safely: ")
    assert re.search(CORPUS[name].says, found["text"]), found["text"]
    assert found["text"].count("\n") <= 2
    assert len(found["text"]) < 600
    assert all(line.isprintable() for line in found["text"].split("\n"))
    assert found["memory"] <= 3 * size + 64 * MEGABYTE
    assert not found["canary"]
    assert not (tmp_path / CANARY).exists()


def test_the_corpus_is_large():
    assert len(CORPUS) >= 60


@pytest.mark.parametrize("name", [name for name in CORPUS if CORPUS[name].live])
def test_a_reader_that_trusts_would_run_the_code(tmp_path, ask, name):
    found = ask("trusting", write(CORPUS[name].build, tmp_path / "w.pt"))
    assert found["canary"] or (tmp_path / CANARY).exists(), found


def larger_than_4_gib(path: Path) -> None:
    """Write a zip with an unused storage of zeros, which takes no place on the disk."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open(zipfile.ZipInfo("w/data/1"), "w", force_zip64=True) as member:
            archive.fp.seek(1 << 32, os.SEEK_CUR)
            member._file_size = 1 << 32
        for name, data in (("data.pkl", SOUND), ("data/0", bytes(16)), ("version", b"3\n")):
            archive.writestr(f"w/{name}", data)


VALUES = {(1, 2): [1.5, {3}], 4: b"5", "f": 1j, "n": np.float64(1)}
TEN_THOUSAND = [body(str(n)) + tensor() for n in range(10_000)]
READ: dict[str, Builder | bytes] = {
    "a zip": zipped(),
    "a zip with a 64-bit end": with_end_64(3),
    "a zip of 4 GiB": larger_than_4_gib,
    "a file from before torch 1.6": legacy(OLD),
    "10,000 tensors": zipped(
        b"}(" + b"".join(body(f"{n}") + tensor() for n in range(10_000)) + b"u."
    ),
    "20,000 members": zipped(SOUND, *((f"data/{n}", b"") for n in range(1, 20_001))),
    "other values": zipped(STATE + tensor() + b"s" + body("e") + body(VALUES) + b"s."),
    "bytes of the other order": zipped(SOUND, ("byteorder", b"big")),
}


@pytest.mark.parametrize("name", READ)
def test_what_the_corpus_is_made_of_is_sound(tmp_path, ask, name):
    path = write(READ[name], tmp_path / "w.pt")
    found = ask("safe", path)
    assert found["error"] == "none", found
    assert found["memory"] <= 3 * path.stat().st_size + 64 * MEGABYTE
    assert all(torch.equal(t, torch.zeros(2, 2)) for t in read_foreign(path).tensors.values())


@pytest.mark.parametrize(
    "name", ["os.system in zip", "eval in legacy", "tar", "laughs as a key", "gzip"]
)
def test_create_model_raises_the_same_error(tmp_path, name):
    path = write(CORPUS[name].build, tmp_path / f"w{CORPUS[name].suffix}")
    with pytest.raises(UntrustedWeightsError, match=CORPUS[name].says) as caught:
        create_model("lenet5_modern", weights=path)
    assert isinstance(caught.value, CorruptError)
    assert caught.value.exit_code == 3
    assert not (tmp_path / CANARY).exists()
    assert CANARY not in os.environ


if __name__ == "__main__":
    serve()
