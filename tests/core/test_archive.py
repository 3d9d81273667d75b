"""Archives under fire: what is sound comes out byte for byte, of what is not, nothing does."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import importlib.util
import io
import json
import lzma
import os
import random
import stat
import struct
import subprocess
import sys
import tarfile
import textwrap
import zipfile

import pytest

from cnn_core.data.fetching.archive import SUFFIXES, extract, stem
from cnn_core.errors import (
    CorruptError,
    DatasetCorruptError,
    DatasetMissingError,
    ResourceError,
    UsageError,
)

TARS = [suffix for suffix in SUFFIXES if suffix != ".zip"]
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


def patched(data, *changes):
    """Return the bytes with some replaced by as many others, all of which must be there."""
    for old, new in changes:
        assert old in data
        assert len(old) == len(new)
        data = data.replace(old, new)
    return data


def zip_patched(data, name, signature, offset, form, value):
    """Return a zip archive with one field of a header changed."""
    assert name in data
    at = data.index(signature) + offset
    changed = bytearray(data)
    struct.pack_into(form, changed, at, value)
    return bytes(changed)


def header_only(name, size):
    """Return a tar header that claims a size, and nothing after it."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def raw_pax(records, name="a", data=b"data"):
    """Return a tar archive with one member after extended records as they are given."""
    body = b"".join(record(*pair) for pair in records)
    header = tarfile.TarInfo("PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(body)
    padded = body + bytes(-len(body) % 512)
    return header.tobuf(tarfile.USTAR_FORMAT) + padded + tar(member(name, data=data))


def record(key, value):
    size = len(key) + len(value) + 3
    while len(f"{size}") + len(key) + len(value) + 3 != size:
        size = len(f"{size}") + len(key) + len(value) + 3
    return f"{size} ".encode() + key + b"=" + value + b"\n"


def broken_second_header():
    data = bytearray(tar_of("a", "b", "c"))
    data[1024 + 10] ^= 0xFF
    return bytes(data)


def hostile():
    """Archives that must leave nothing, by what is wrong: suffix, bytes, words of the error."""
    link = {"kind": tarfile.SYMTYPE, "data": b""}
    outside = member("l", linkname="..", **link)
    zeros = bytes(1_000_000)
    sound, noise = tar_of("a", "b"), random.Random(1).randbytes(50_000)
    large = tar(member("noise", data=noise), member("b", data=noise))
    tars = {
        "up": (tar_of("../up"), r"'\.\./up': .* '\.\.'"),
        "up in the middle": (tar_of("a/../../up"), r"found '\.\.'"),
        "up at the end": (tar_of("a/.."), r"found '\.\.'"),
        "up, a folder": (tar_of("../up", kind=tarfile.DIRTYPE), r"found '\.\.'"),
        "up, and inside again": (tar_of("a/../b"), r"found '\.\.'"),
        "absolute": (tar_of("/tmp/absolute"), "found an absolute path"),
        "absolute, two slashes": (tar_of("//tmp/absolute"), "found an absolute path"),
        "the root": (tar_of("/", kind=tarfile.DIRTYPE), "found an empty name"),
        "no name": (tar_of(""), "found an empty name"),
        "a file called .": (tar_of("."), "name of a folder"),
        "a file called a/": (tar_of("a/"), "name of a folder"),
        "drive": (tar_of("C:/up"), "character :"),
        "drive, relative": (tar_of("C:up"), "character :"),
        "hidden stream": (tar_of("a.txt:stream"), "character :"),
        "backslash": (tar_of("..\\up"), r"character \\"),
        "share": (tar_of("\\\\host\\share"), r"character \\"),
        "newline": (tar_of("a\nb"), "control characters"),
        "escape sequence": (tar_of("\x1b[2Ja"), "control characters"),
        "right to left": (tar_of("a\u202egnp.exe"), "control characters"),
        "not UTF-8": (
            tar((tarfile.TarInfo("a\udcff"), b""), form=tarfile.GNU_FORMAT),
            "not UTF-8",
        ),
        "trailing dot": (tar_of("a."), "ends in a dot"),
        "trailing space": (tar_of("a /b"), "ends in a dot or a space"),
        "name of 300 bytes": (tar_of("n" * 300), "more than 255 bytes"),
        "path of 9,000 bytes": (tar_of("n/" * 4500 + "n"), "more than 1,024 bytes"),
        "100 folders deep": (tar_of("n/" * 100 + "n"), "more than 32 folders"),
        "symlink": (tar(outside), "found a symbolic link"),
        "symlink to a member": (tar(member("a"), member("l", linkname="a", **link)), "a symbolic"),
        "symlink, then through it": (tar(outside, member("l/up")), "found a symbolic link"),
        "symlink, then its name": (tar(outside, member("l")), "found a symbolic link"),
        "hard link": (tar(member("l", tarfile.LNKTYPE, b"", linkname="/etc/passwd")), "hard link"),
        "hard link to a member": (
            tar(member("a"), member("l", tarfile.LNKTYPE, b"", linkname="a")),
            "hard link",
        ),
        "character device": (tar_of("d", kind=tarfile.CHRTYPE, devmajor=1), "found a device"),
        "block device": (tar_of("d", kind=tarfile.BLKTYPE, devmajor=8), "found a device"),
        "FIFO": (tar_of("f", kind=tarfile.FIFOTYPE), "found a FIFO"),
        "contiguous file": (tar_of("c", kind=tarfile.CONTTYPE), "found type 7"),
        "unknown type": (tar_of("c", kind=b"Q"), "found type Q"),
        "sparse": (tar_of("s", kind=tarfile.GNUTYPE_SPARSE), "found a sparse file"),
        "duplicate": (tar_of("a", "b", "a"), "each name once"),
        "duplicate by another way": (tar_of("a/b", "a/./b"), "each name once"),
        "duplicate folder": (tar_of("a", "a", kind=tarfile.DIRTYPE), "each name once"),
        "case": (tar_of("set/A", "set/a"), "'set/a': .* differ in more than case, found 'set/A'"),
        "case of a folder": (tar_of("set/x/a", "Set/x/b"), "found 'set' as well"),
        "case, sharp s": (tar_of("straße", "STRASSE"), "more than case"),
        "composed and not": (tar_of("\xe9", "e\u0301"), "more than case"),
        "through a file": (tar_of("a", "a/b"), "expected a folder 'a'"),
        "a folder's name": (tar_of("a/b", "a"), "expected a file 'a'"),
        "empty tar file": (b"", "a sound archive, found empty file"),
        "text": (b"<!doctype html><title>404</title>" * 50, "a sound archive"),
        "broken header": (broken_second_header(), "no end, or a broken header"),
        "no end": (tar(member("a"), end=False), "no end, or a broken header"),
        "a second archive behind": (sound + tar_of("c"), "something after its end"),
        "claims 8 GB": (header_only("a", 2**33 - 1) + bytes(512), "unexpected end"),
        "claims less than nothing": (header_only("a", -512) + bytes(1024), "of -512 bytes"),
        "folder with contents": (
            patched_size(tar_of("d", kind=tarfile.DIRTYPE), 512) + bytes(512),
            "a folder of 512 bytes",
        ),
        "PAX path": (raw_pax([(b"path", b"../up")]), r"found '\.\.'"),
        "PAX path, absolute": (raw_pax([(b"path", b"/tmp/up")]), "an absolute path"),
        "PAX path, NUL": (raw_pax([(b"path", b"a\0b")]), r"'a\\x00b': .* control"),
        "PAX size": (raw_pax([(b"size", b"99999999")]), "unexpected end"),
        "PAX size, negative": (raw_pax([(b"size", b"-512")]), "of -512 bytes"),
        "PAX record of no length": (
            patched(raw_pax([(b"path", b"abc")]), (b"12 path", b"00 path")),
            "a sound archive",
        ),
        "PAX sparse 0.1": (
            raw_pax([(b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.size", b"4")]),
            "found a sparse file",
        ),
        "PAX sparse 1.0": (
            raw_pax(
                [
                    (b"GNU.sparse.major", b"1"),
                    (b"GNU.sparse.minor", b"0"),
                    (b"GNU.sparse.name", b"../up"),
                    (b"GNU.sparse.realsize", b"99999999999"),
                ],
                data=b"1\n0\n4\n".ljust(512, b"\0") + b"data",
            ),
            r"found '\.\.'",
        ),
        "PAX global path": (
            tar(*global_pax(b"path", b"../up"), member("a"), form=tarfile.USTAR_FORMAT),
            r"found '\.\.'",
        ),
        "GNU long name": (
            tar(member("x/" * 60 + "../up"), form=tarfile.GNU_FORMAT),
            "more than 32 folders",
        ),
        "1,000 extended headers in a row": (nested_headers(1_000), "a sound archive"),
        "5 MB of extended header": (
            raw_pax([(b"comment", bytes(5 << 20))]),
            "headers without end",
        ),
    }
    for name in ("CON", "nul.txt", "Aux", "com1", "lpt9.tar.gz", "COM¹", "conin$", "prn .txt"):
        tars[f"Windows, {name}"] = (tar_of(f"a/{name}"), "a device on Windows")
    for character in '<>"|?*':
        tars[f"Windows, {character}"] = (tar_of(f"a{character}b"), "found the character")
    cases = {f"tar: {name}": (".tar", *rest) for name, rest in tars.items()}
    for suffix in TARS[1:]:
        pack = PACKERS[suffix]
        cases[f"{suffix}: up"] = (suffix, pack(tar_of("../up")), r"'\.\.'")
        cases[f"{suffix}: symlink"] = (suffix, pack(tar(outside)), "a symbolic link")
        cases[f"{suffix}: bomb"] = (
            suffix,
            pack(tar(member("zeros", data=zeros))),
            "at most 200 bytes for each byte",
        )
        cases[f"{suffix}: empty"] = (suffix, b"", "a sound archive")
        cases[f"{suffix}: not packed"] = (suffix, sound, "a sound archive")
        cases[f"{suffix}: zeros without end"] = (
            suffix,
            pack(sound + bytes(8 << 20)),
            "headers without end",
        )
        for part in (0.02, 0.3, 0.6, 0.9):
            cut = pack(large)[: int(len(pack(large)) * part)]
            cases[f"{suffix}: cut at {part}"] = (suffix, cut, "a sound archive")
        cases[f"{suffix}: cut by a byte"] = (suffix, pack(large)[:-1], "a sound archive")
        cases[f"{suffix}: flipped"] = (suffix, flipped(pack(large)), "a sound archive")
    for at in (1, 300, 512, 700, 51_000, 51_500, 52_000, 100_000):
        cases[f"tar: cut at {at}"] = (".tar", large[:at], "a sound archive")
    return cases | {f"zip: {name}": (".zip", *rest) for name, rest in hostile_zips(noise).items()}


def patched_size(data, size):
    """Return a tar archive whose first header has another size, and the right checksum."""
    changed = bytearray(data)
    changed[124:136] = b"%011o\0" % size
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def global_pax(key, value):
    body = record(key, value)
    info = tarfile.TarInfo("GlobalHeader")
    info.type, info.size = tarfile.XGLTYPE, len(body)
    return [(info, body)]


def nested_headers(count):
    body = record(b"comment", b"x")
    header = tarfile.TarInfo("PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, len(body)
    one = header.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)
    return one * count + tar_of("a")


def flipped(data):
    changed = bytearray(data)
    changed[len(data) // 2] ^= 0x55
    return bytes(changed)


def hostile_zips(noise):
    local, central, end = b"PK\3\4", b"PK\1\2", b"PK\5\6"
    sound = zip_of("aaaa", "bbbb")
    large = zip_of("noise", "more", data=noise)
    cases = {
        "up": (zip_of("../up"), r"'\.\./up': .* '\.\.'"),
        "up in the middle": (zip_of("a/../../up"), r"'\.\.'"),
        "up, a folder": (zip_of("../up/"), r"'\.\.'"),
        "absolute": (zip_of("/tmp/absolute"), "an absolute path"),
        "drive": (zip_of("C:/up"), "character :"),
        "backslash": (zip_of("..\\up"), r"character \\"),
        "NUL": (patched(zip_of("a@b"), (b"a@b", b"a\0b")), r"'a\\x00b': .* control characters"),
        "newline": (zip_of("a\nb"), "control characters"),
        "no name": (zip_of(""), "an empty name"),
        "symlink": (zip_of("l", data=b"..", mode=stat.S_IFLNK | 0o777), "a symbolic link"),
        "device": (zip_of("d", mode=stat.S_IFCHR | 0o666), "a device"),
        "FIFO": (zip_of("f", mode=stat.S_IFIFO | 0o666), "a FIFO"),
        "socket": (zip_of("s", mode=stat.S_IFSOCK | 0o666), "a socket"),
        "unknown mode": (zip_of("s", mode=0o170000), "an unknown kind of file"),
        "file that is a folder": (
            zip_of("d", mode=stat.S_IFDIR | 0o755),
            "folder named as a file",
        ),
        "folder that is a file": (zip_of("d/", mode=stat.S_IFREG | 0o644), "file named as a"),
        "folder with contents": (
            patched(zip_of("dd"), (b"dd", b"d/")),
            "a folder of 4 bytes",
        ),
        "duplicate": (zip_of("a", "a"), "each name once"),
        "case": (zip_of("set/A", "set/a"), "more than case"),
        "through a file": (zip_of("a", "a/b"), "expected a folder 'a'"),
        "Windows": (zip_of("a/NUL.txt"), "a device on Windows"),
        "bomb": (zip_of("zeros", data=bytes(1_000_000)), "200 bytes for each byte"),
        "bomb in parts": (zip_of(*"abcdefghij", data=bytes(500_000)), "200 bytes for each byte"),
        "other name in the local header": (
            zip_patched(sound, b"aaaa", local, 30, "<4s", b"zzzz"),
            "sound archive",
        ),
        "claims less": (zip_patched(sound, b"aaaa", central, 24, "<I", 2), "sound archive"),
        "claims more": (
            zip_patched(sound, b"aaaa", central, 24, "<I", 2**31),
            r"expected 2,147,483,648 bytes, found 4",
        ),
        "encrypted": (zip_patched(sound, b"aaaa", central, 8, "<H", 1), "an encrypted file"),
        "wrong CRC": (zip_patched(sound, b"aaaa", central, 16, "<I", 1), "sound archive"),
        "unknown compression": (zip_patched(sound, b"aaaa", central, 10, "<H", 99), "method 99"),
        "bzip2": (zip_of("a", compress_type=zipfile.ZIP_BZIP2), "method 12"),
        "overlapping": (
            zip_patched(sound, b"aaaa", sound[sound.rindex(central) :][:46], 42, "<I", 0),
            "sound archive",
        ),
        "directory of 4 GB": (
            zip_patched(sound, b"aaaa", end, 12, "<I", 2**32 - 2),
            "sound archive",
        ),
        "directory beyond": (zip_patched(sound, b"aaaa", end, 16, "<I", 2**31), "sound archive"),
        "empty": (b"", "sound archive"),
        "text": (b"<!doctype html>", "sound archive"),
        "a tar": (tar_of("a"), "sound archive"),
        "flipped": (flipped(large), "sound archive"),
    }
    for part in (0.0001, 0.3, 0.6, 0.9, 0.9999):
        cases[f"cut at {part}"] = (large[: int(len(large) * part)], "sound archive")
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
    with pytest.raises(DatasetCorruptError, match=rf"(?s)hostile{suffix}.*{words}") as caught:
        extract(archive, tmp_path / "in" / "out", **caps)
    assert listing(tmp_path) == before
    assert str(caught.value).count("\n") == 1
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    assert max(map(len, str(caught.value).splitlines())) < 500
    assert "expected" in str(caught.value)
    assert "found" in str(caught.value)
    assert isinstance(caught.value, CorruptError)


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_archive_is_one_error_and_leaves_nothing(tmp_path, case):
    refused(tmp_path, *HOSTILE[case])


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
@pytest.mark.parametrize(
    ("caps", "words"),
    [
        ({"max_entries": 3}, "at most 3 entries, found more"),
        ({"max_bytes": 15}, "at most 15 bytes in all, found more"),
    ],
)
def test_caps_hold(tmp_path, suffix, caps, words):
    data = (tar_of if suffix == ".tar" else zip_of)("a", "b", "c", "d")
    refused(tmp_path, suffix, data, words, **caps)


def test_folders_that_only_paths_name_count_as_well(tmp_path):
    refused(tmp_path, ".tar", tar_of("a/b/c/d/e"), "3 files and folders", max_entries=3)


def test_as_many_as_the_caps_say_are_accepted(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of("a", "b", "c", "d"))
    extract(tmp_path / "a.tar", tmp_path / "a", max_entries=4, max_bytes=16)
    assert len(list((tmp_path / "a").iterdir())) == 4


def test_a_directory_of_a_zip_that_is_too_large_is_not_read(tmp_path):
    data = zip_of(*(f"{number:0100}" for number in range(60_000)), data=b"")
    refused(tmp_path, ".zip", data, "a directory of .* bytes", max_entries=10)


def packed(suffix, contents, form=tarfile.PAX_FORMAT):
    if suffix != ".zip":
        members = [member(name, data=data) for name, data in contents.items()]
        folders = [member("./", tarfile.DIRTYPE, b""), member("./set", tarfile.DIRTYPE, b"")]
        return PACKERS[suffix](tar(*folders, *members, form=form))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.mkdir("set") if hasattr(file, "mkdir") else file.writestr("set/", b"")
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
    extract(archive, tmp_path / "good")
    assert files(tmp_path / "good") == CONTENTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", archive.name]


def test_the_systems_own_tar_is_understood(tmp_path):
    (tmp_path / "set").mkdir()
    for number in range(20):
        (tmp_path / "set" / f"{number}.bin").write_bytes(random.Random(number).randbytes(3000))
    command = ["tar", "-czf", "set.tgz", "set"]
    try:
        subprocess.run(command, cwd=tmp_path, check=True)
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


def test_empty_archives_make_empty_folders(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar())
    (tmp_path / "b.zip").write_bytes(zip_of())
    for name in ("a.tar", "b.zip"):
        extract(tmp_path / name, tmp_path / stem(name))
        assert list((tmp_path / stem(name)).iterdir()) == []


@pytest.mark.parametrize("there", ["file", "folder", "dangling link"])
def test_what_is_there_is_not_touched(tmp_path, there):
    (tmp_path / "a.tar").write_bytes(tar_of("a"))
    folder = tmp_path / "out"
    make = {"file": folder.touch, "folder": folder.mkdir}
    make.get(there, lambda: folder.symlink_to("nowhere"))()
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="out: expected nothing there"):
        extract(tmp_path / "a.tar", folder)
    assert listing(tmp_path) == before


def test_misuse_is_named(tmp_path):
    (tmp_path / "a.rar").touch()
    with pytest.raises(UsageError, match=r"a\.rar: expected the name of an archive"):
        extract(tmp_path / "a.rar", tmp_path / "a")
    with pytest.raises(DatasetMissingError, match="found no file"):
        extract(tmp_path / "none.zip", tmp_path / "a")
    (tmp_path / "a.tar").write_bytes(tar_of("a"))
    with pytest.raises(UsageError, match=r"found no .*missing"):
        extract(tmp_path / "a.tar", tmp_path / "missing" / "a")


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


def test_what_a_dead_process_left_is_no_obstacle(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_of("a"))
    stale = tmp_path / f".out.{os.getpid()}.tmp"
    stale.mkdir()
    (stale / "half").write_text("half")
    extract(tmp_path / "a.tar", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "out"]
    assert files(tmp_path / "out") == {"a": b"data"}


@pytest.mark.parametrize(
    ("number", "error"), [(28, ResourceError), (13, PermissionError), (5, OSError)]
)
def test_a_disk_that_fails_is_not_the_archives_fault(tmp_path, monkeypatch, number, error):
    (tmp_path / "a.tar").write_bytes(tar_of("a", "b"))

    def fail(self, *_, **__):
        raise OSError(number, "as the test wants it")

    monkeypatch.setattr("pathlib.Path.open", fail)
    with pytest.raises(error):
        extract(tmp_path / "a.tar", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(tar_of("a", "b"))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(tmp_path / "a.tar", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


CHILD = """
    import json, sys, types
    from pathlib import Path
    data = types.ModuleType("cnn_core.data")  # without torch, which this has no need of
    data.__path__ = [sys.argv[1]]
    sys.modules["cnn_core.data"] = data
    from cnn_core.data.fetching.archive import extract
    from cnn_core.errors import DatasetCorruptError
    outcomes = {"optimised": not __debug__}
    for archive in sorted(Path().iterdir()):
        try:
            extract(archive, Path(f"{archive.name} out"))
            outcomes[archive.name] = "accepted"
        except DatasetCorruptError:
            outcomes[archive.name] = "refused"
    print(json.dumps(outcomes))
"""


def test_python_without_assertions_refuses_the_same(tmp_path):
    for number, case in enumerate(sorted(HOSTILE)):
        suffix, data, _ = HOSTILE[case]
        (tmp_path / f"{number}{suffix}").write_bytes(data)
    (tmp_path / "good.tar").write_bytes(tar_of("a"))
    source = os.path.dirname(importlib.util.find_spec("cnn_core.data").origin)
    done = subprocess.run(
        [sys.executable, "-O", "-c", textwrap.dedent(CHILD), source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    outcomes = json.loads(done.stdout)
    assert outcomes.pop("optimised") is True
    assert outcomes.pop("good.tar") == "accepted"
    assert set(outcomes.values()) == {"refused"}
    assert len(outcomes) == len(HOSTILE)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["good.tar out"]


def fuzz(tmp_path, count):
    """Change bytes of sound archives: nothing but the one error, nothing but whole folders."""
    rng = random.Random(0)
    contents = {"set/a": b"some data", "set/b/c": b"more data" * 20}
    sound = {suffix: packed(suffix, contents) for suffix in SUFFIXES}
    accepted = 0
    for number in range(count):
        suffix = SUFFIXES[number % len(SUFFIXES)]
        data = bytearray(sound[suffix])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        archive = tmp_path / f"fuzz{suffix}"
        archive.write_bytes(data)
        out = tmp_path / f"out{number}"
        with contextlib.suppress(DatasetCorruptError):
            extract(archive, out)
            accepted += 1
        left = {path.name for path in tmp_path.iterdir() if not path.name.startswith("fuzz")}
        assert left <= {f"out{n}" for n in range(number + 1)}
        assert all(not path.is_symlink() for path in out.rglob("*"))
    assert 0 < accepted < count / 2


def test_600_mutated_archives_raise_nothing_else(tmp_path):
    fuzz(tmp_path, 600)


@pytest.mark.slow
def test_20000_mutated_archives_raise_nothing_else(tmp_path):
    fuzz(tmp_path, 20_000)
