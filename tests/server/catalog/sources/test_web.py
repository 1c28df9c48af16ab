"""Archives of web servers: from where they may come, and how far they are followed."""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from server.catalog.sources import web as web_module
from server.catalog.sources.errors import SourceError
from server.catalog.sources.web import WebRules, fetch_archive, is_public
from tests.server.catalog.sources.web_server import Web

HERE = WebRules(("127.0.0.1",), 1000)
ANYWHERE = WebRules((), 1000)


def fetch(url: str, rules: WebRules = HERE, stop: threading.Event | None = None) -> bytes:
    out = io.BytesIO()
    found = fetch_archive(url, out, rules, stop or threading.Event())
    assert found == hashlib.sha256(out.getvalue()).hexdigest()
    return out.getvalue()


def refused(url: str, rules: WebRules = HERE) -> SourceError:
    with pytest.raises(SourceError) as caught:
        fetch(url, rules)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_there(web: Web) -> None:
    web.pages["/a.tar"] = b"bytes"
    assert fetch(f"{web.url}/a.tar?signature=x") == b"bytes"
    assert web.asked == [f"{web.host}/a.tar?signature=x"]


def test_as_it_lies_there_and_not_unpacked_on_the_way(web: Web) -> None:
    packed = gzip.compress(b"x" * 5000)

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(packed)))
        handler.end_headers()
        handler.wfile.write(packed)

    web.pages["/a.tgz"] = send
    assert fetch(f"{web.url}/a.tgz") == packed


def test_redirects_are_followed_as_far_as_each_is_allowed(web: Web) -> None:
    web.pages |= {"/a": "/b", "/b": f"{web.url}/c", "/c": b"bytes", "/loop": "/loop"}
    web.pages |= {"/out": "http://localhost:1/x", "/file": "file:///etc/passwd", "/odd": "http://["}
    assert fetch(f"{web.url}/a") == b"bytes"
    assert "more than 5 times" in str(refused(f"{web.url}/loop"))
    for path in ("/out", "/file"):
        assert refused(f"{web.url}{path}").code == "source_not_allowed"
    refused(f"{web.url}/odd")


def test_a_host_may_be_allowed_with_one_port(web: Web) -> None:
    web.pages["/a"] = b"x"
    assert fetch(f"{web.url}/a", WebRules((web.host,), 10)) == b"x"
    assert refused(f"{web.url}/a", WebRules(("127.0.0.1:1", "example.org"), 10)).code == "source_not_allowed"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "localhost.", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::1]", "[::]",
     "[::ffff:127.0.0.1]", "10.0.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "100.64.0.1"],
)  # fmt: skip
def test_inside_is_not_asked(web: Web, host: str) -> None:
    url = f"http://{host}:{web.host.partition(':')[2]}/a"
    web.pages["/a"] = b"secret"
    assert refused(url, ANYWHERE).code in ("source_not_allowed", "source_unavailable")
    assert web.asked == []


def test_a_name_whose_address_changes_is_looked_up_once(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    port = int(web.host.partition(":")[2])
    answers = iter(["93.184.216.34", "127.0.0.1"])

    def lookup(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    asked: list[str] = []

    def connect(address: tuple[str, int], *args: Any, **options: Any) -> None:
        asked.append(address[0])
        raise OSError("no such network here")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert refused(f"http://rebinding.example:{port}/a", ANYWHERE).code == "source_unavailable"
    assert asked == ["93.184.216.34"]


@pytest.mark.parametrize(
    "address",
    ["64:ff9b::7f00:1", "2002:7f00:1::", "::ffff:10.0.0.1", "224.0.0.1", "ff02::1", "240.0.0.1", "192.0.2.1", "::"],
)
def test_addresses_that_lead_inside_in_other_forms(address: str) -> None:
    assert not is_public(address)


def test_addresses_of_the_internet() -> None:
    assert all(map(is_public, ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"]))


@pytest.mark.parametrize("url", ["http://user:secret@127.0.0.1/x", "ftp://127.0.0.1/x", "http:///x", "http://["])
def test_addresses_that_are_none(url: str) -> None:
    assert "secret" not in str(refused(url))


def test_no_more_than_is_allowed(web: Web) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(b"x" * 100)

    def lying(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "999999999")
        handler.end_headers()

    web.pages |= {"/large": b"x" * 1001, "/endless": endless, "/lying": lying, "/all": b"x" * 1000}
    for path in ("/large", "/endless", "/lying"):
        assert refused(f"{web.url}{path}").code == "source_too_large"
    assert len(fetch(f"{web.url}/all")) == 1000


def test_servers_that_do_not_do_their_part(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"short")

    def slow(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    web.pages |= {"/short": short, "/slow": slow}
    assert "404" in str(refused(f"{web.url}/none"))
    assert refused(f"{web.url}/short").code == "source_unavailable"
    monkeypatch.setattr(web_module, "GRACE_SECONDS", 0.2)
    assert "too slow" in str(refused(f"{web.url}/slow"))
    stop = threading.Event()
    stop.set()
    with pytest.raises(SourceError):
        fetch(f"{web.url}/slow", HERE, stop)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert refused(f"http://127.0.0.1:{port}/x").code == "source_unavailable"
