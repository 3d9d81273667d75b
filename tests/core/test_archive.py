"""Archives under fire: a sound one comes out byte for byte, of any other nothing does."""

from __future__ import annotations

import bz2
import gzip
import inspect
import io
import lzma
import os
import random
import stat
import struct
import subprocess
import tarfile
import zipfile

import pytest

from cnn_core.data.fetching import archive as module
from cnn_core.data.fetching.archive import SUFFIXES, extract, stem
from cnn_core.errors import (
    CorruptError,
    DatasetCorruptError,
    DatasetMissingError,
    ResourceError,
    UsageError,
)
from fuzzing import check, fuzz, mutated

PACKERS = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.xz": lzma.compress,
    ".tar.bz2": bz2.compress,
}
CONTENTS = {
    "set/readme.txt": b"twelve bytes",
    "set/empty": b"",
    "set/a folder/noise.bin": random.Random(0).randbytes(300_000),
    "set/é ü 猫.txt": "猫".encode(),
    "set/" + "n" * 150 + "/" + "m" * 150: b"a long name",
}


def member(name, kind=tarfile.REGTYPE, data=b"data", **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar(*members, form=tarfile.PAX_FORMAT, end=True):
    """Return the bytes of a tar archive of such members, without its end if asked to."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for info, data in members:
            file.addfile(info, io.BytesIO(data) if info.size else None)
        length = file.offset
    return buffer.getvalue() if end else buffer.getvalue()[:length]


def tar_of(*names, **fields):
    return tar(*(member(name, **fields) for name in names))


def zip_of(*names, data=b"data", mode=0, **fields):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in names:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is: the constructor would fix it
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            for field, value in fields.items():
                setattr(info, field, value)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *_, **__: None)  # of duplicate names
                file.writestr(info, b"" if name.endswith("/") else data)
    return buffer.getvalue()


def patched(data, old, new):
    """Return the bytes with some replaced by as many others, all of which must be there."""
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


def zip_patched(data, signature, offset, form, value):
    """Return a zip archive with one field of a header changed."""
    changed = bytearray(data)
    struct.pack_into(form, changed, data.index(signature) + offset, value)
    return bytes(changed)


def sized(data, size):
    """Return a tar archive whose first header has another size, and the right checksum."""
    changed = bytearray(data)
    changed[124:136] = b"%011o\0" % size if size >= 0 else b"\xff" * 4 + struct.pack(">q", size)
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def pax(*records, kind=tarfile.XHDTYPE):
    """Return a tar archive with one member after an extended header with these records."""
    body = b""
    for key, value in records:
        size = len(key) + len(value) + 5  # two digits, a blank, "=" and the end of the line
        body += b"%d %s=%s\n" % (size, key, value)
    header = tarfile.TarInfo("PaxHeader")
    header.type, header.size = kind, len(body)
    return header.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512) + tar_of("a")


def flipped(data, at=None):
    changed = bytearray(data)
    changed[len(data) // 2 if at is None else at] ^= 0x55
    return bytes(changed)


LINK = {"kind": tarfile.SYMTYPE, "data": b""}
OUTSIDE = member("l", linkname="..", **LINK)
HARD = {"kind": tarfile.LNKTYPE, "data": b""}
NOISE = random.Random(1).randbytes(50_000)
SOUND = tar_of("a", "b")
LARGE = tar(member("noise", data=NOISE), member("b", data=NOISE))
ZIP = zip_of("aaaa", "bbbb")
LARGE_ZIP = zip_of("noise", "more", data=NOISE)
LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
BROKEN = "a valid archive"

# Names, of files in tar and in zip archives, by what the error says was found.
NAMES = {
    r"'\.\.'": ("../up", "a/../../up", "a/..", "a/../b", "x/" * 10 + "../up"),
    "an absolute path": ("/absolute", "//absolute"),
    "not a file name": ("", ".", "./."),
    "control characters": ("a\nb", "\x1b[2Ja", "a\u202egnp.exe"),
    "'C:": ("C:/up", "C:up"),
    "'a": ("a.txt:stream", "a.", "a /b", *(f"a{character}b" for character in '<>"|?*')),
    r"\\": ("..\\up", "\\\\host\\share"),
    "more than 1,024 bytes": ("n/" * 4500 + "n",),
    "more than 32 nested folders": ("n/" * 100 + "n",),
    "'nnn": ("n" * 300,),
    "(?i)found '(con|nul|aux|com|lpt|prn)": (
        *("CON", "nul.txt", "b/Aux", "com1", "lpt9.tar.gz", "COM¹", "conin$", "prn .txt"),
    ),
}
# Pairs of names, and what the error expects of the second one.
PAIRS = {
    "no other 'b'": ("b", "b"),
    "no other 'b/c'": ("b/c", "b/./c"),
    "no other 'set/a'": ("set/A", "set/a"),
    "no other 'Set', in any case, found a folder 'set'": ("set/x/a", "Set/x/b"),
    "no other 'STRASSE'": ("straße", "STRASSE"),
    "no other 'e\u0301'": ("\xe9", "e\u0301"),
    "no other 'd', in any case, found a file 'd'": ("d", "d/e"),
    "no other 'f', in any case, found a folder 'f'": ("f/g", "f"),
}
TARS = {
    "up, a folder": (tar_of("../up", kind=tarfile.DIRTYPE), r"found '\.\.'"),
    "the root": (tar_of("/", kind=tarfile.DIRTYPE), "not a file name"),
    "not UTF-8": (tar((tarfile.TarInfo("a\udcff"), b""), form=tarfile.GNU_FORMAT), "not UTF-8"),
    "symlink": (tar(OUTSIDE), "found a symbolic link"),
    "symlink to a member": (tar(member("a"), member("l", linkname="a", **LINK)), "a symbolic"),
    "symlink, then through it": (tar(OUTSIDE, member("l/up")), "found a symbolic link"),
    "symlink, then its name": (tar(OUTSIDE, member("l")), "found a symbolic link"),
    "hard link": (tar(member("l", linkname="/etc/passwd", **HARD)), "a hard link"),
    "hard link to a member": (tar(member("a"), member("l", linkname="a", **HARD)), "hard link"),
    "character device": (tar_of("d", kind=tarfile.CHRTYPE, devmajor=1), "entry of type b'3'"),
    "block device": (tar_of("d", kind=tarfile.BLKTYPE, devmajor=8), "entry of type b'4'"),
    "FIFO": (tar_of("f", kind=tarfile.FIFOTYPE), "entry of type b'6'"),
    "contiguous file": (tar_of("c", kind=tarfile.CONTTYPE), "entry of type b'7'"),
    "unknown type": (tar_of("c", kind=b"Q"), "entry of type b'Q'"),
    "sparse": (tar_of("s", kind=tarfile.GNUTYPE_SPARSE), "found a sparse file"),
    "empty file": (b"", BROKEN),
    "text": (b"<!doctype html><title>404</title>" * 50, BROKEN),
    "broken header": (flipped(tar_of("a", "b", "c"), 1034), "no end marker, or a broken header"),
    "no end": (tar(member("a"), end=False), "no end marker, or a broken header"),
    "a second archive behind": (SOUND + tar_of("c"), "data after its end"),
    "claims 8 GB": (sized(tar_of("a"), 2**33 - 1), "at most 4,294,967,296 bytes"),
    "claims less than nothing": (sized(tar_of("a"), -512), "of -512 bytes"),
    "folder with contents": (sized(tar_of("d", kind=tarfile.DIRTYPE), 512), "of 512 bytes"),
    "PAX path": (pax((b"path", b"../up")), r"found '\.\.'"),
    "PAX path, absolute": (pax((b"path", b"/tmp/up")), "an absolute path"),
    "PAX path, NUL": (pax((b"path", b"abc\0d")), r"'abc\\x00d': .* control"),
    "PAX size": (pax((b"size", b"9999999")), "at most 200 bytes for each byte"),
    "PAX size, small": (pax((b"size", b"0099999")), BROKEN),
    "PAX size, negative": (pax((b"size", b"-512")), "of -512 bytes"),
    "PAX record of no length": (patched(pax((b"path", b"abc")), b"12 path", b"00 path"), BROKEN),
    "PAX sparse": (pax((b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.size", b"4")), "a sparse file"),
    "PAX global path": (pax((b"path", b"../up"), kind=tarfile.XGLTYPE), r"found '\.\.'"),
    "GNU long name": (
        tar(member("x/" * 60 + "../up"), form=tarfile.GNU_FORMAT),
        "32 nested folders",
    ),
    "1,000 extended headers in a row": (pax((b"comment", b"x"))[:1024] * 1000 + SOUND, BROKEN),
    **{f"cut at {at}": (LARGE[:at], BROKEN) for at in (1, 300, 512, 700, 51_000, 51_500, 52_000)},
}
ZIPS = {
    "up, a folder": (zip_of("../up/"), r"'\.\.'"),
    "NUL": (patched(zip_of("a@b"), b"a@b", b"a\0b"), r"'a\\x00b': .* control characters"),
    "symlink": (zip_of("l", data=b"..", mode=stat.S_IFLNK | 0o777), "a symbolic link"),
    "device": (zip_of("d", mode=stat.S_IFCHR | 0o666), "a special file"),
    "FIFO": (zip_of("f", mode=stat.S_IFIFO | 0o666), "a special file"),
    "socket": (zip_of("s", mode=stat.S_IFSOCK | 0o666), "a special file"),
    "unknown mode": (zip_of("s", mode=0o170000), "a special file"),
    "file that is a folder": (zip_of("d", mode=stat.S_IFDIR | 0o755), "folder named as a file"),
    "folder that is a file": (zip_of("d/", mode=stat.S_IFREG | 0o644), "file named as a folder"),
    "folder with contents": (patched(zip_of("dd"), b"dd", b"d/"), "a folder of 4 bytes"),
    "bomb in parts": (zip_of(*"abcdefghij", data=bytes(500_000)), "200 bytes for each byte"),
    "other name in the local header": (zip_patched(ZIP, LOCAL, 30, "<4s", b"zzzz"), BROKEN),
    "claims less": (zip_patched(ZIP, CENTRAL, 24, "<I", 2), BROKEN),
    "claims more": (zip_patched(ZIP, CENTRAL, 24, "<I", 9), "expected 9 bytes, found 4"),
    "claims 2 GB": (zip_patched(ZIP, CENTRAL, 24, "<I", 2**31), "200 bytes for each byte"),
    "encrypted": (zip_patched(ZIP, CENTRAL, 8, "<H", 1), "an encrypted file"),
    "wrong CRC": (zip_patched(ZIP, CENTRAL, 16, "<I", 1), BROKEN),
    "unknown compression": (zip_patched(ZIP, CENTRAL, 10, "<H", 99), "method 99"),
    "bzip2": (zip_of("a", compress_type=zipfile.ZIP_BZIP2), "method 12"),
    "overlapping": (zip_patched(ZIP, ZIP[ZIP.rindex(CENTRAL) :][:46], 42, "<I", 0), BROKEN),
    "directory of 4 GB": (zip_patched(ZIP, END, 12, "<I", 2**32 - 2), BROKEN),
    "directory beyond": (zip_patched(ZIP, END, 16, "<I", 2**31), BROKEN),
    "empty": (b"", BROKEN),
    "text": (b"<!doctype html>", BROKEN),
    "a tar": (tar_of("a"), BROKEN),
    "flipped": (flipped(LARGE_ZIP), BROKEN),
    **{f"cut at {part}": (LARGE_ZIP[: int(100_300 * part)], BROKEN) for part in (1e-4, 0.3, 0.99)},
}


def hostile():
    """Archives that must leave nothing, by what is wrong: suffix, bytes, words of the error."""
    cases = {f"tar: {name}": (".tar", *rest) for name, rest in TARS.items()}
    cases |= {f"zip: {name}": (".zip", *rest) for name, rest in ZIPS.items()}
    for suffix, pack in ((".tar", tar_of), (".zip", zip_of)):
        for words, names in NAMES.items():
            for name in names:
                if name not in (".", "./.") or suffix == ".tar":
                    cases[f"{suffix}: name {name[:9]!a}"] = (suffix, pack(name), words)
        for words, names in PAIRS.items():
            cases[f"{suffix}: {names!a}"] = (suffix, pack(*names), words)
    zeros = tar(member("zeros", data=bytes(1_000_000)))
    for suffix, pack in PACKERS.items():
        if suffix != ".tar":
            packed = pack(LARGE)
            contents = {
                "up": (pack(tar_of("../up")), r"'\.\.'"),
                "symlink": (pack(tar(OUTSIDE)), "a symbolic link"),
                "bomb": (pack(zeros), "at most 200 bytes for each byte"),
                "empty": (b"", BROKEN),
                "not packed": (SOUND, BROKEN),
                "zeros without end": (pack(SOUND + bytes(8 << 20)), "data after its end"),
                "cut at the start": (packed[:500], BROKEN),
                "cut in the middle": (packed[: len(packed) // 2], BROKEN),
                "cut by a byte": (packed[:-1], BROKEN),
                "flipped": (flipped(packed), BROKEN),
            }
            cases |= {f"{suffix}: {what}": (suffix, *rest) for what, rest in contents.items()}
    return cases


HOSTILE = hostile()


def listing(folder):
    return sorted(
        (str(path.relative_to(folder)), path.lstat().st_mode, path.lstat().st_size)
        for path in folder.rglob("*")
    )


def refused(tmp_path, suffix, data, words, **caps):
    """Extract, and check that this one error comes and nothing else changes."""
    archive = tmp_path / "in" / f"hostile{suffix}"
    archive.parent.mkdir()
    archive.write_bytes(data)
    (tmp_path / "a").write_text("not to be touched")
    before = listing(tmp_path)
    with pytest.raises(DatasetCorruptError) as caught:
        extract(archive, tmp_path / "in" / "out", **caps)
    assert listing(tmp_path) == before
    assert isinstance(caught.value, CorruptError)
    assert caught.match(rf"(?s)hostile{suffix}.*expected.*found")
    assert caught.match(words)
    lines = str(caught.value).split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() and len(line) < 500 for line in lines)


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_archive_is_one_error_and_leaves_nothing(tmp_path, case):
    refused(tmp_path, *HOSTILE[case])


def test_there_are_enough_of_them_and_no_check_is_an_assertion():
    assert len(HOSTILE) >= 160
    assert "assert" not in inspect.getsource(module)  # python -O would leave it out


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize(
    ("names", "caps", "words"),
    [
        ("abcd", {"max_entries": 3}, "at most 3 files and folders, found more"),
        (["a/b/c/d/e"], {"max_entries": 3}, "at most 3 files and folders, found more"),
        ("abcd", {"max_bytes": 15}, "at most 15 bytes in all, found more"),
    ],
)
def test_caps_hold(tmp_path, suffix, names, caps, words):
    refused(tmp_path, suffix, (tar_of if suffix == ".tar" else zip_of)(*names), words, **caps)


def packed(suffix, contents, form=tarfile.PAX_FORMAT):
    if suffix != ".zip":
        members = [member(name, data=data) for name, data in contents.items()]
        folders = [member(name, tarfile.DIRTYPE, b"") for name in ("./", "./set", "./set")]
        return PACKERS[suffix](tar(*folders, *members, form=form))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir("set")
        for name, data in contents.items():
            file.writestr(name, data)
    return buffer.getvalue()


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_sound_archive_comes_out_byte_for_byte(tmp_path, suffix, form):
    archive = tmp_path / f"good{suffix}"
    archive.write_bytes(packed(suffix, CONTENTS, form))
    stale = tmp_path / f".good.{os.getpid()}.tmp"  # of a killed process that had our number
    stale.mkdir()
    (stale / "half").write_text("half")
    extract(archive, tmp_path / "good")
    assert files(tmp_path / "good") == CONTENTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", archive.name]


def test_the_systems_own_tar_is_understood(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(20):
        (tmp_path / "set" / f"{number}.bin").write_bytes(random.Random(number).randbytes(3000))
    try:
        subprocess.run(["tar", "-czf", "set.tgz", "set"], cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("no tar")
    extract(tmp_path / "set.tgz", tmp_path / "out")
    assert files(tmp_path / "out" / "set") == files(tmp_path / "set")


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_modes_are_those_of_new_files(tmp_path, suffix):
    mode = 0o6777
    data = tar_of("s", mode=mode) if suffix == ".tar" else zip_of("s", mode=stat.S_IFREG | mode)
    (tmp_path / f"a{suffix}").write_bytes(data)
    extract(tmp_path / f"a{suffix}", tmp_path / "a")
    (tmp_path / "new").touch()
    assert (tmp_path / "a" / "s").stat().st_mode == (tmp_path / "new").stat().st_mode
    assert not (tmp_path / "a" / "s").stat().st_mode & 0o7111


@pytest.mark.parametrize("names", ["", "abcd"])
def test_empty_archives_and_those_at_their_caps_are_accepted(tmp_path, names):
    (tmp_path / "a.tar").write_bytes(tar_of(*names))
    (tmp_path / "b.zip").write_bytes(zip_of(*names))
    for name in ("a.tar", "b.zip"):
        extract(tmp_path / name, tmp_path / stem(name), max_entries=4, max_bytes=16)
        assert len(list((tmp_path / stem(name)).iterdir())) == len(names)


@pytest.mark.parametrize("there", ["file", "folder", "dangling link"])
def test_what_is_there_is_not_touched(tmp_path, there):
    (tmp_path / "a.tar").write_bytes(tar_of("a"))
    folder = tmp_path / "out"
    make = {"file": folder.touch, "folder": folder.mkdir}
    make.get(there, lambda: folder.symlink_to("nowhere"))()
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="out: already exists"):
        extract(tmp_path / "a.tar", folder)
    assert listing(tmp_path) == before


def test_misuse_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.rar").touch()
    with pytest.raises(UsageError, match=r"a\.rar: expected the name of an archive"):
        extract(tmp_path / "a.rar", tmp_path / "a")
    with pytest.raises(DatasetMissingError, match="found no file"):
        extract(tmp_path / "none.zip", tmp_path / "a")
    (tmp_path / "a.tar").write_bytes(tar_of("a"))
    with pytest.raises(UsageError, match=r"found no .*missing"):
        extract(tmp_path / "a.tar", tmp_path / "missing" / "a")
    monkeypatch.delattr("tarfile.data_filter")
    with pytest.raises(UsageError, match=r"Python 3\.11\.4"):
        extract(tmp_path / "a.tar", tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.tar.gz", "a"), ("a.b.ZIP", "a.b"), ("a.tar", "a"), ("a.tgz", "a"), (".x.tar.xz", ".x")],
)
def test_stems(name, expected):
    assert stem(name) == expected


@pytest.mark.parametrize("name", ["a", ".tar", "...tar", "a.gz", ""])
def test_what_has_no_stem_is_refused(name):
    with pytest.raises(UsageError):
        stem(name)


@pytest.mark.parametrize(
    ("function", "raised", "error"),
    [
        ("tarfile.TarFile.makefile", OSError(28, "as the test wants it"), ResourceError),
        ("tarfile.TarFile.makefile", OSError(13, "as the test wants it"), PermissionError),
        ("tarfile.TarFile.makefile", OSError(5, "as the test wants it"), OSError),
        ("tarfile.TarFile.makefile", KeyboardInterrupt(), KeyboardInterrupt),
        ("os.rename", KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_disk_that_fails_or_an_interrupt_leaves_nothing(
    tmp_path, monkeypatch, function, raised, error
):
    (tmp_path / "a.tar").write_bytes(tar_of("a", "b"))

    def fail(*_, **__):
        raise raised

    monkeypatch.setattr(function, fail)
    with pytest.raises(error):
        extract(tmp_path / "a.tar", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def fuzz_archives(tmp_path, count):
    """Mutate sound archives: nothing but the one error, nothing but whole folders."""
    contents = {"set/a": b"some data", "set/b/c": b"more data" * 20}
    sound = {suffix: packed(suffix, contents) for suffix in SUFFIXES}

    def case(rng, number):
        suffix = SUFFIXES[number % len(SUFFIXES)]
        return tmp_path / f"fuzz{suffix}", mutated(rng, sound[suffix])

    def read(path, number):
        out = tmp_path / f"out{number}"
        try:
            extract(path, out)
        finally:
            left = {p.name for p in tmp_path.iterdir() if not p.name.startswith("fuzz")}
            assert left <= {f"out{n}" for n in range(number + 1)}
            assert all(not p.is_symlink() for p in out.rglob("*"))
        return out.is_dir()

    check(fuzz(count, case, read), count, read=0, refused=1 / 2)


def test_600_mutated_archives_raise_nothing_else(tmp_path):
    fuzz_archives(tmp_path, 600)


@pytest.mark.slow
def test_20000_mutated_archives_raise_nothing_else(tmp_path):
    fuzz_archives(tmp_path, 20_000)
