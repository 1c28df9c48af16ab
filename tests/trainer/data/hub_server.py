"""A server that speaks as much of the hub's protocol as listing and downloading a data set takes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class _Handler(BaseHTTPRequestHandler):
    """``owner/open`` for all, ``owner/gated`` with TOKEN only, ``owner/broken`` never."""

    files: ClassVar[Mapping[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_args: object) -> None:
        """Tests say enough."""

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        name = path.removeprefix("/api").removeprefix("/datasets/")
        if name.startswith("owner/broken"):
            return self._error(500, "")
        if name.startswith("owner/gated") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._error(403, "GatedRepo")
        if not name.startswith(("owner/open", "owner/gated")):
            return self._error(401, "RepoNotFound")
        revision, _, file = name.split("/", 3)[3].partition("/")
        if revision not in COMMITS:
            return self._error(404, "RevisionNotFound")
        if path.startswith("/api"):
            listed = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in self.files.items()
            ]
            return self._send(json.dumps(listed).encode(), with_body, {"Content-Type": "application/json"})
        if file not in self.files:
            return self._error(404, "EntryNotFound")
        data = self.files[file]
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self._send(data, with_body, {"X-Repo-Commit": COMMITS[revision], "ETag": etag})

    def _send(self, data: bytes, with_body: bool, headers: Mapping[str, str]) -> None:
        self.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def hub(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub whose data sets hold ``files``, and the requests it has got."""
    asked: list[str] = []
    handler = type("Handler", (_Handler,), {"files": files, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
