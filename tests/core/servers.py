"""A server of files for tests of downloads, which answers rightly or wrongly."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import re
import tarfile
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cnn_core.data.fetching.download import Remote

LARGE = random.Random(0).randbytes(400_000)


def archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for number in range(40):
            info = tarfile.TarInfo(f"set/{number}.bin")
            info.size = 8000
            file.addfile(info, io.BytesIO(random.Random(number).randbytes(8000)))
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves the server's files; the first folder of an address says how."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        _, how, name = self.path.split("/")
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found and how != "deaf" else 0
        self.server.asked.append((how, name, start))
        data = self.server.files.get(name)
        if how == "none" or data is None:
            self.send_error(404)
        elif how == "elsewhere":
            self.redirect(self.server.elsewhere)
        elif start and start >= len(data):
            self.send_error(416)
        else:
            data = b"something else" if how == "bad" else data
            self.answer(how, data, start)
        self.close_connection = True

    def redirect(self, address):
        self.send_response(302)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, how, data, start):
        end = min(self.server.drop.pop(0), len(data)) if self.server.drop else len(data)
        if start:
            first = start + 1 if how == "shifted" else start
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if how == "unsized":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.send(how, data[start:end])

    def send(self, how, data):
        for at in range(0, len(data), 20_000):
            self.wfile.write(data[at : at + 20_000])
            self.wfile.flush()
            self.server.sent += len(data[at : at + 20_000])
            time.sleep(0.01 if how == "slow" else 0)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"a.gz": b"contents", "large": LARGE, "set.tgz": archive()}
        self.asked = []
        self.drop = []  # bytes of the file after which the connection ends, by answer
        self.sent = 0
        self.elsewhere = ""

    def remote(self, *mirrors, name="a.gz", **fields):
        md5 = {name: hashlib.md5(self.files[name]).hexdigest()}
        return Remote(mirrors=[self.mirror(how) for how in mirrors], **{"md5": md5, **fields})

    def mirror(self, how):
        return f"http://127.0.0.1:{self.server_port}/{how}/"
