"""Fetching published weights: verified, resumed, and one error for whatever goes wrong."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import socket
import subprocess
import sys

import pytest

from cnn_core import registry
from cnn_core.data.fetching import download
from cnn_core.errors import ResourceError, WeightsMissingError
from cnn_core.weights.published import find_weights, locate
from servers import LARGE

PUBLISHER = "https://127.0.0.1:1/large"  # nobody listens there


@pytest.fixture
def entry():
    """Weights with the server's large file."""
    like = find_weights("resnet18")
    digest = hashlib.sha256(LARGE).hexdigest()[:8]
    spec = dataclasses.replace(like.spec, url=PUBLISHER, sha256=digest, bytes=len(LARGE))
    return registry.Entry(spec, like.plugin)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def mirror(server, monkeypatch):
    def use(how: str) -> None:
        monkeypatch.setenv("CNNZOO_WEIGHTS_MIRROR", server.mirror(how).rstrip("/"))

    return use


def kept(cache) -> list[str]:
    """Return the names in the cache, without the lock files, which stay."""
    return sorted(p.name for p in cache.glob("*") if p.suffix != ".lock")


def test_a_file_is_fetched_once_and_verified(entry, cache, mirror, server, capsys):
    mirror("good")
    assert locate(entry, download=True).read_bytes() == LARGE
    assert locate(entry, download=True) == locate(entry) == cache / "large"
    assert server.asked == [("good", "large", 0)]
    assert capsys.readouterr().err.startswith("downloading large (0.4 MB) from 127.0.0.1")


def test_without_permission_nothing_is_asked_for(entry, cache, mirror, server):
    mirror("good")
    with pytest.raises(
        WeightsMissingError, match=r"--download \(in Python: download=True\) fetches it once"
    ):
        locate(entry)
    assert server.asked == []


def test_a_damaged_file_is_replaced_where_that_is_allowed(entry, cache, mirror):
    mirror("good")
    cache.mkdir(parents=True)
    (cache / "large").write_bytes(LARGE[:-1])
    assert locate(entry, download=True).read_bytes() == LARGE


FAULTS = {
    "bad": "SHA-256",  # other contents
    "none": "HTTP Error 404",
    "page": "SHA-256",  # a login page instead of the file
    "cut": "the connection ended after 100,000 of 400,000 bytes",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_server_does_there_is_one_error_and_no_file(
    fault, entry, cache, mirror, server
):
    mirror(fault if fault in ("bad", "none") else "good")
    if fault == "page":
        server.files["large"] = b"<!doctype html><html>log in</html>"
    if fault == "cut":
        server.drop = [100_000]
    with pytest.raises(WeightsMissingError) as caught:
        locate(entry, download=True)
    assert FAULTS[fault] in str(caught.value)
    assert kept(cache) == (["large.part"] if fault == "cut" else [])
    # What was right is kept: the next call goes on there.
    server.files["large"] = LARGE
    mirror("good")
    assert locate(entry, download=True).read_bytes() == LARGE
    assert server.asked[-1] == ("good", "large", 100_000 if fault == "cut" else 0)


def test_a_server_that_stalls_is_given_up(entry, cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("CNNZOO_WEIGHTS_MIRROR", address)
        with pytest.raises(WeightsMissingError, match="timed out"):
            locate(entry, download=True)
    assert kept(cache) == []


def test_a_full_disk_is_named_and_what_came_is_kept(entry, cache, mirror, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    mirror("good")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match=r"large\.part: no space left"):
        locate(entry, download=True)
    assert kept(cache) == ["large.part"]


def test_a_cache_that_cannot_be_written_is_named(entry, cache, mirror):
    mirror("good")
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(WeightsMissingError, match="set CNNZOO_CACHE to a folder"):
        locate(entry, download=True)


def test_a_cache_that_is_only_read_serves_its_files(entry, cache, server, mirror):
    mirror("none")
    cache.mkdir(parents=True)
    (cache / "large").write_bytes(LARGE)
    cache.chmod(0o555)
    assert locate(entry, download=True) == cache / "large"
    assert [*cache.iterdir()] == [cache / "large"]
    assert server.asked == []


CODE = """
import dataclasses, sys
from cnn_core import registry
from cnn_core.weights.published import find_weights, locate
like = find_weights("resnet18")
spec = dataclasses.replace(like.spec, url=sys.argv[1], sha256=sys.argv[2])
print(locate(registry.Entry(spec, like.plugin), download=True).stat().st_size)
"""


def test_of_two_processes_one_fetches(entry, cache, mirror, server):
    mirror("slow")
    command = [sys.executable, "-c", CODE, PUBLISHER, entry.spec.sha256]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == [f"{len(LARGE)}\n"] * 2
    assert server.asked == [("slow", "large", 0)]
    assert kept(cache) == ["large"]
