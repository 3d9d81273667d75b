"""Downloads, against a server of our own: verified, from the first mirror that is right."""

from __future__ import annotations

import functools
import hashlib
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cnn_core.data.download import Remote, fetch
from cnn_core.errors import DatasetMissingError
from cnn_core.files import write_atomically, write_text


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    for name in ("good", "bad"):
        (folder / name).mkdir(parents=True)
    (folder / "good" / "a.gz").write_bytes(b"contents")
    (folder / "bad" / "a.gz").write_bytes(b"something else")
    handler = functools.partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def remote(server, *mirrors):
    md5 = hashlib.md5(b"contents").hexdigest()
    return Remote(mirrors=[f"{server}/{mirror}/" for mirror in mirrors], md5={"a.gz": md5})


@pytest.mark.parametrize("mirrors", [("good",), ("none", "good"), ("bad", "good")])
def test_a_file_comes_from_the_first_mirror_that_has_it_right(server, tmp_path, mirrors):
    fetch(remote(server, *mirrors), tmp_path / "to")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["a.gz"]
    assert (tmp_path / "to" / "a.gz").read_bytes() == b"contents"


def test_a_wrong_file_is_never_kept_and_each_mirror_is_named(server, tmp_path):
    with pytest.raises(DatasetMissingError) as caught:
        fetch(remote(server, "none", "bad"), tmp_path / "to")
    assert "/none/a.gz: HTTP Error 404" in str(caught.value)
    assert "/bad/a.gz: MD5" in str(caught.value)
    assert list((tmp_path / "to").iterdir()) == []


def test_what_is_there_and_right_is_not_fetched_again(server, tmp_path):
    (tmp_path / "a.gz").write_bytes(b"contents")
    fetch(remote("http://127.0.0.1:9", "none"), tmp_path)
    (tmp_path / "a.gz").write_bytes(b"damaged")
    fetch(remote(server, "good"), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == b"contents"


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
