"""Downloads, against a server of our own: verified, resumed, from the first right mirror."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
import time

import pytest

from cnn_core.data.fetching import download
from cnn_core.data.fetching.download import Remote, fetch, fetch_and_extract
from cnn_core.errors import (
    DatasetCorruptError,
    DatasetMissingError,
    ResourceError,
    SpecError,
    UnknownNameError,
    UsageError,
)
from cnn_core.files import write_atomically, write_text
from servers import LARGE


def names(folder):
    """Return the names in a folder, without the lock files, which stay."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize(
    "mirrors", [("good",), ("none", "good"), ("bad", "good"), ("deaf",), ("unsized",)]
)
def test_a_file_comes_from_the_first_mirror_that_has_it_right(server, tmp_path, mirrors):
    fetch(server.remote(*mirrors), tmp_path / "to")
    assert names(tmp_path / "to") == ["a.gz"]
    assert (tmp_path / "to" / "a.gz").read_bytes() == b"contents"


def test_a_wrong_file_is_never_kept_and_each_mirror_is_named(server, tmp_path):
    with pytest.raises(DatasetMissingError) as caught:
        fetch(server.remote("none", "bad"), tmp_path / "to")
    assert "/none/a.gz: HTTP Error 404" in str(caught.value)
    assert "/bad/a.gz: MD5" in str(caught.value)
    assert names(tmp_path / "to") == []
    assert len(server.asked) == 2


def test_what_is_there_and_right_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.gz").write_bytes(b"contents")
    fetch(server.remote("good"), tmp_path)
    assert server.asked == []
    (tmp_path / "a.gz").write_bytes(b"damaged")
    fetch(server.remote("good"), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == b"contents"


def sums(data):
    return {
        "md5": {"a.gz": hashlib.md5(data).hexdigest()},
        "sha256": {"a.gz": hashlib.sha256(data).hexdigest().upper()},
        "size": {"a.gz": len(data)},
    }


@pytest.mark.parametrize("wrong", ["md5", "sha256", "size"])
def test_whatever_is_given_is_verified(server, tmp_path, wrong):
    right, other = sums(b"contents"), sums(b"others")
    fetch(server.remote("good", **right), tmp_path / "right")
    fetch(server.remote("good", md5={}, sha256=right["sha256"]), tmp_path / "right" / "sha256")
    with pytest.raises(DatasetMissingError, match=r"a\.gz: .* expected"):
        fetch(server.remote("good", **{**right, wrong: other[wrong]}), tmp_path / "to")
    assert names(tmp_path / "to") == []
    assert names(tmp_path / "right") == ["a.gz", "sha256"]
    assert names(tmp_path / "right" / "sha256") == ["a.gz"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"size": {"a": 1}}, "file 'a': expected an MD5 or SHA-256, found neither"),
        ({"md5": {"../a": ""}}, r"file '\.\./a': expected a plain name"),
        ({"md5": {"..": ""}}, "expected a plain name"),
        ({"sha256": {"a\\b": ""}}, "expected a plain name"),
        ({"mirrors": ["file:" + "///tmp/"]}, "expected an http or https address"),
        ({"mirrors": ["ftp://127.0.0.1/"]}, "expected an http or https address"),
        ({"mirrors": ["/tmp/"]}, "expected an http or https address"),
    ],
)
def test_a_remote_that_could_not_be_verified_or_fetched_is_refused(fields, words):
    with pytest.raises(SpecError, match=words):
        Remote(**{"mirrors": [], **fields})


def test_no_redirect_leaves_http(server, tmp_path):
    (tmp_path / "secret").write_bytes(b"contents")
    for address in ((tmp_path / "secret").as_uri(), "ftp://127.0.0.1/a.gz", "data:,contents"):
        server.elsewhere = address
        with pytest.raises(DatasetMissingError, match="elsewhere"):
            fetch(server.remote("elsewhere"), tmp_path / "to")
    server.elsewhere = server.mirror("good") + "a.gz"
    fetch(server.remote("elsewhere"), tmp_path / "to")
    assert names(tmp_path / "to") == ["a.gz"]


def test_no_more_than_the_size_is_taken(server, tmp_path, monkeypatch):
    server.files["large"] = b"x" * 40_000_000
    sizes = {"size": {"large": 1000}}
    written = []
    monkeypatch.setattr(download, "_read", recorded(download._read, written))
    with pytest.raises(DatasetMissingError, match="40,000,000 bytes, expected 1,000"):
        fetch(server.remote("good", name="large", **sizes), tmp_path)
    assert written == []
    with pytest.raises(DatasetMissingError, match="more than 1,000 bytes"):
        fetch(server.remote("unsized", name="large", **sizes), tmp_path)
    assert sum(written) == 1001
    monkeypatch.setattr(download, "MAX_BYTES", 70_000)
    with pytest.raises(DatasetMissingError, match="more than 70,000 bytes"):
        fetch(server.remote("unsized", name="large"), tmp_path)
    with pytest.raises(DatasetMissingError, match="40,000,000 bytes, expected at most 70,000"):
        fetch(server.remote("good", name="large"), tmp_path)
    assert sum(written) == 1001 + 70_001
    assert names(tmp_path) == []


def recorded(read, sizes):
    def reading(answer, size):
        block = read(answer, size)
        sizes.append(len(block))
        return block

    return reading


def test_a_download_goes_on_where_it_stopped(server, tmp_path):
    remote = server.remote("good", name="large")
    server.drop = [150_000]
    with pytest.raises(DatasetMissingError, match="ended after 150,000 of 400,000 bytes"):
        fetch(remote, tmp_path)
    assert names(tmp_path) == ["large.part"]
    fetch(remote, tmp_path)
    assert server.asked == [("good", "large", 0), ("good", "large", 150_000)]
    assert server.sent == 400_000
    assert names(tmp_path) == ["large"]
    assert (tmp_path / "large").read_bytes() == LARGE


def test_the_next_mirror_goes_on_where_the_first_stopped(server, tmp_path):
    server.drop = [150_000]
    fetch(server.remote("good", "slow", name="large"), tmp_path)
    assert server.asked == [("good", "large", 0), ("slow", "large", 150_000)]
    assert (tmp_path / "large").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("how", "part", "asked"),
    [
        ("deaf", LARGE[:1000], [0]),  # asked for a range, it sends everything
        ("shifted", LARGE[:1000], [1000, 0]),  # another range than that
        ("good", b"something else", [14, 0]),
        ("good", LARGE + b"too much", [400_008, 0]),
        ("good", LARGE[:-1] + b"?", [400_000, 0]),
        ("good", LARGE, []),  # killed before it was renamed
        ("good", LARGE[:-1], [399_999]),
        ("good", b"", [0]),
    ],
)
@pytest.mark.parametrize("sized", [False, True])
def test_whatever_part_is_there_the_file_is_right(server, tmp_path, how, part, asked, sized):
    (tmp_path / "large.part").write_bytes(part)
    sizes = {"size": {"large": len(LARGE)}} if sized else {}
    fetch(server.remote(how, name="large", **sizes), tmp_path)
    assert (tmp_path / "large").read_bytes() == LARGE
    assert names(tmp_path) == ["large"]
    hopeless = sized and len(part) >= len(LARGE)
    assert [start for _, _, start in server.asked] == (asked[1:] if hopeless else asked)


def test_a_wrong_file_is_not_asked_for_twice_where_ranges_are_ignored(server, tmp_path):
    (tmp_path / "a.gz.part").write_bytes(b"co")
    remote = Remote(mirrors=[server.mirror("deaf")], md5={"a.gz": "0" * 32})
    with pytest.raises(DatasetMissingError, match="MD5"):
        fetch(remote, tmp_path)
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_a_part_survives_a_mirror_that_has_another_file(server, tmp_path):
    (tmp_path / "large.part").write_bytes(LARGE[:1000])
    sizes = {"size": {"large": len(LARGE)}}
    with pytest.raises(DatasetMissingError, match="14 bytes, expected 400,000"):
        fetch(server.remote("none", "bad", name="large", **sizes), tmp_path)
    server.drop = [1000]
    with pytest.raises(DatasetMissingError, match="after 1,000 of 400,000"):
        fetch(server.remote("good", name="large", **sizes), tmp_path)
    assert (tmp_path / "large.part").read_bytes() == LARGE[:1000]


def interrupt(server, tmp_path, positions, how="good"):
    """Drop the connection there, one call after the other; then let it come to its end."""
    remote = server.remote(how, name="large")
    for number, position in enumerate(positions):
        server.drop = [position]
        with pytest.raises(DatasetMissingError):
            fetch(remote, tmp_path)
        found = (tmp_path / "large.part").read_bytes()
        reached = position if how == "deaf" else max(positions[: number + 1])
        assert found == LARGE[:reached]
    fetch(remote, tmp_path)
    assert (tmp_path / "large").read_bytes() == LARGE
    assert names(tmp_path) == ["large"]


@pytest.mark.parametrize("position", [0, 1, 19_999, 20_000, 65_535, 65_536, 65_537, 399_999])
@pytest.mark.parametrize("how", ["good", "deaf"])
def test_the_call_after_an_interruption_recovers(server, tmp_path, position, how):
    interrupt(server, tmp_path, [position], how)


def test_fifty_interruptions_in_a_row_lose_and_repeat_nothing(server, tmp_path):
    positions = sorted(random.Random(1).sample(range(len(LARGE)), 50))
    interrupt(server, tmp_path, positions)
    assert server.sent == len(LARGE)
    assert [start for _, _, start in server.asked] == [0, *positions]


@pytest.mark.slow
def test_2000_interruptions_are_recovered_from(server, tmp_path):
    for position in random.Random(9).sample(range(len(LARGE)), 2000):
        interrupt(server, tmp_path, [position])
        (tmp_path / "large").unlink()


def test_a_server_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(DatasetMissingError, match="timed out"):
            fetch(Remote(mirrors=[mirror], md5={"a": "0" * 32}), tmp_path)
    with pytest.raises(DatasetMissingError, match="refused"):
        fetch(Remote(mirrors=[mirror], md5={"a": "0" * 32}), tmp_path)
    assert names(tmp_path) == []


def test_a_full_disk_keeps_the_part(server, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(ResourceError, match=r"large\.part: no space left after 400,000"):
            fetch(server.remote("good", name="large"), tmp_path)
    assert names(tmp_path) == ["large.part"]
    fetch(server.remote("none", name="large"), tmp_path)
    assert (tmp_path / "large").read_bytes() == LARGE


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_full_while_writing_is_named(server, tmp_path):
    (tmp_path / "large.part").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match="no space left"):
        fetch(server.remote("good", name="large"), tmp_path)


def test_a_folder_that_cannot_be_written_is_not_the_mirrors_fault(server, tmp_path):
    (tmp_path / "large.part").mkdir()
    with pytest.raises(IsADirectoryError):
        fetch(server.remote("good", name="large"), tmp_path)
    assert names(tmp_path) == ["large.part"]


def test_a_pipe_gets_one_line_for_each_file(server, tmp_path, capsys):
    fetch(server.remote("none", "bad", "good"), tmp_path)
    fetch(server.remote("good", name="large"), tmp_path)
    fetch(server.remote("good", name="large"), tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    host = f"127.0.0.1:{server.server_port}"
    assert err.splitlines() == [
        f"downloading a.gz (0.0 MB) from {host}",
        f"downloading large (0.4 MB) from {host}",
    ]


def test_a_terminal_gets_a_bar(server, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal)
    fetch(server.remote("bad", "slow", name="large"), tmp_path)
    assert "large" in terminal.getvalue()
    assert "\x1b[" in terminal.getvalue()
    assert "downloading" not in terminal.getvalue()


def test_without_stderr_it_downloads_all_the_same(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr", None)
    fetch(server.remote("good"), tmp_path)
    assert names(tmp_path) == ["a.gz"]
    assert capsys.readouterr().out == ""


CHILD = """
    import sys, types
    from pathlib import Path
    data = types.ModuleType("cnn_core.data")  # without torch, which this has no need of
    data.__path__ = [sys.argv[1]]
    sys.modules["cnn_core.data"] = data
    from cnn_core.data.fetching import archive, download
    _, _, mirror, name, md5, root, what = sys.argv
    remote = download.Remote(mirrors=[mirror], md5={name: md5})
    if what == "fetch":
        download.fetch(remote, Path(root))
    else:
        print(download.fetch_and_extract(remote, name, Path(root)))
"""


def start(server, how, name, root, what="fetch", before=""):
    """Start a process that downloads; `before` is code that it runs first."""
    source = os.path.dirname(importlib.util.find_spec("cnn_core.data").origin)
    md5 = hashlib.md5(server.files[name]).hexdigest()
    parts = textwrap.dedent(CHILD).split("_, _, mirror", 1)
    code = f"{parts[0]}{textwrap.dedent(before)}\n_, _, mirror{parts[1]}"
    arguments = [source, server.mirror(how), name, md5, str(root), what]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("bytes_first", [1, 100_000, 200_000, 300_000])
def test_a_process_that_is_killed_leaves_what_the_next_completes(server, tmp_path, bytes_first):
    process = start(server, "slow", "large", tmp_path)
    part = tmp_path / "large.part"
    wait_for(lambda: part.is_file() and part.stat().st_size >= bytes_first)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = part.stat().st_size
    assert names(tmp_path) == ["large.part"]
    assert (tmp_path / ".large.lock").is_file()
    assert part.read_bytes() == LARGE[:kept]
    fetch(server.remote("good", name="large"), tmp_path)
    assert server.asked[-1] == ("good", "large", kept)
    assert (tmp_path / "large").read_bytes() == LARGE
    assert names(tmp_path) == ["large"]


@pytest.mark.parametrize("what", ["fetch", "fetch_and_extract"])
def test_of_several_processes_one_downloads(server, tmp_path, what):
    name = "large" if what == "fetch" else "set.tgz"
    processes = [start(server, "slow", name, tmp_path, what) for _ in range(4)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, ends
    assert server.asked == [("slow", name, 0)]
    assert server.sent == len(server.files[name])
    assert sum(err.count("downloading") for _, err in ends) == 1
    assert names(tmp_path) == (["large"] if what == "fetch" else ["set", "set.tgz"])


def test_of_several_threads_one_downloads(server, tmp_path):
    remote = server.remote("slow", name="large")
    threads = [threading.Thread(target=fetch, args=(remote, tmp_path)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1
    assert names(tmp_path) == ["large"]


def check_set(folder):
    found = {path.name: path.read_bytes() for path in (folder / "set").iterdir()}
    assert found == {f"{n}.bin": random.Random(n).randbytes(8000) for n in range(40)}


def test_an_archive_is_fetched_and_unpacked_once(server, tmp_path):
    remote = server.remote("good", name="set.tgz")
    for _ in range(2):
        assert fetch_and_extract(remote, "set.tgz", tmp_path / "to") == tmp_path / "to" / "set"
        check_set(tmp_path / "to" / "set")
    assert names(tmp_path / "to") == ["set", "set.tgz"]
    assert len(server.asked) == 1


KILL = """
    import itertools, os
    count, before = itertools.count(), {function}
    def kill(*arguments):
        if next(count) == {calls}:
            os.kill(os.getpid(), 9)
        return before(*arguments)
    {function} = kill
"""


@pytest.mark.parametrize(
    ("function", "calls"), [("os.replace", 0), ("os.rename", 0), ("archive._Rules.admit", 20)]
)
def test_a_process_killed_at_any_moment_is_recovered_from(server, tmp_path, function, calls):
    """Before the archive, or the folder, gets its name, and in the midst of unpacking."""
    before = KILL.format(function=function, calls=calls)
    process = start(server, "good", "set.tgz", tmp_path, "fetch_and_extract", before)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (f".set.{process.pid}.tmp" in names(tmp_path)) is (function != "os.replace")
    (tmp_path / ".set.more.tmp").mkdir()  # of another name: not to be touched
    check_set(fetch_and_extract(server.remote("good", name="set.tgz"), "set.tgz", tmp_path))
    assert names(tmp_path) == [".set.more.tmp", "set", "set.tgz"]
    assert len(server.asked) == 1


def test_a_hostile_archive_is_not_unpacked_however_right_its_checksum(server, tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("../up"))
    server.files["set.tgz"] = buffer.getvalue()
    with pytest.raises(DatasetCorruptError, match="up"):
        fetch_and_extract(server.remote("good", name="set.tgz"), "set.tgz", tmp_path / "to")
    assert names(tmp_path) == ["to"]
    assert names(tmp_path / "to") == ["set.tgz"]


def test_what_is_no_archive_of_the_remote_is_refused(server, tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown file 'a\.g', did you mean 'a\.gz'"):
        fetch_and_extract(server.remote("good"), "a.g", tmp_path)
    with pytest.raises(UsageError, match=r"a\.gz: expected the name of an archive"):
        fetch_and_extract(server.remote("good"), "a.gz", tmp_path)
    assert names(tmp_path) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail():
        with write_atomically(path) as file:
            file.write(b"half of the new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
