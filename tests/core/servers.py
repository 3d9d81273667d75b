"""Servers for tests of downloads and uploads, which answer rightly or wrongly."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
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


COMMIT = "0123456789abcdef0123456789abcdef{:08x}"  # 40 digits, the last ones count commits


class HubHandler(BaseHTTPRequestHandler):
    """The part of the Hugging Face Hub's interface that cnnzoo and huggingface_hub use.

    `server.faults` maps a part of an address to (status, X-Error-Code), or to a number of bytes
    after which the connection ends.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if self.refused(path):
            return
        if match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)(/revision/.*|/tree/.*)?", path):
            self.describe(match[1], match[2] or "")
        elif match := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/[^/]+/(.+)", path):
            self.send_file(match[1], match[2], self.server.faults.get("cut"))
        else:
            self.answer(404, {}, **{"X-Error-Code": "EntryNotFound"})

    def refused(self, path):
        for part, fault in self.server.faults.items():
            if part in path and isinstance(fault, tuple):
                self.answer(fault[0], {"error": "refused"}, **{"X-Error-Code": fault[1]})
                return True
        return False

    def describe(self, name, what):
        repository = self.server.repositories.get(name)
        if repository is None:
            self.answer(404, {"error": "not found"}, **{"X-Error-Code": "RepoNotFound"})
        elif what.startswith("/tree/"):
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": git_id(data)}
                for path, data in repository["files"].items()
            ]
            self.answer(200, entries)
        else:
            siblings = [{"rfilename": p, "size": len(d)} for p, d in repository["files"].items()]
            card = {"license": repository["licence"]} if repository["licence"] else None
            facts = {"id": name, "private": repository["private"], "cardData": card}
            sha = COMMIT.format(repository["commits"])
            self.answer(200, {**facts, "sha": sha, "siblings": siblings})

    def send_file(self, name, path, cut):
        repository = self.server.repositories[name]
        data = repository["files"].get(path)
        if data is None:
            self.answer(404, {}, **{"X-Error-Code": "EntryNotFound"})
            return
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", COMMIT.format(repository["commits"]))
        self.send_header("ETag", f'"{git_id(data)}"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            end = len(data) if cut is None else min(cut, len(data))
            self.wfile.write(data[start:end])
            self.close_connection = end < len(data)

    def do_POST(self):
        self.server.asked.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refused(self.path):
            return
        if self.path == "/api/validate-yaml":
            faults = self.server.faults.get("yaml", [])
            errors = [{"message": fault} for fault in faults]
            self.answer(400 if errors else 200, {"errors": errors, "warnings": []})
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/commit/main", self.path):
            self.commit(match[1], [json.loads(line) for line in body.splitlines()])

    def create(self, wanted):
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        address = {"url": f"{self.server.address}/{name}"}
        if name in self.server.repositories:
            self.answer(409, {**address, "error": "You already created this model repo"})
            return
        private = wanted.get("visibility") == "private"
        self.server.add(name, {".gitattributes": b""}, private=private)
        self.answer(200, address)

    def commit(self, name, lines):
        repository = self.server.repositories[name]
        for line in lines:
            if line["key"] == "file":
                value = line["value"]
                repository["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del repository["files"][line["value"]["path"]]
        repository["commits"] += 1
        oid = COMMIT.format(repository["commits"])
        self.answer(200, {"commitUrl": f"{self.server.address}/{name}", "commitOid": oid})

    def answer(self, status, content, **headers):
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def git_id(data):
    return hashlib.sha1(data).hexdigest()


class Hub(ThreadingHTTPServer):
    """A small Hugging Face Hub on this machine."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories = {}
        self.faults = {}
        self.asked = []

    def add(self, name, files, *, licence=None, private=False):
        facts = {"files": files, "licence": licence, "private": private, "commits": 1}
        self.repositories[name] = facts
