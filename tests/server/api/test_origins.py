"""Web pages, and who lets them in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.settings import ServerConfig
from tests.server.api.raw import answer, connect
from tests.server.api.support import BASE, error_of
from tests.server.live import Live, live_server

PAGE = "https://app.example"
CHAT = "/v1/chat/completions"
HELLO = {"model": BASE, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def paged(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server without keys that pages of one origin may use."""
    with live_server(base, tmp_path_factory.mktemp("paged"), cors_origin=PAGE + "/") as live:
        yield live


FROM = [
    ({}, 200),
    ({"Origin": "http://localhost:3000"}, 200),
    ({"Origin": "http://127.0.0.1"}, 200),
    ({"Origin": "http://[::1]:3000"}, 200),
    ({"Host": "localhost:8000"}, 200),
    ({"Host": "LOCALHOST."}, 200),
    ({"Host": "[::1]:8000"}, 200),
    ({"Host": "[::ffff:127.0.0.1]"}, 200),
    ({"Host": "127.0.0.1"}, 200),
    ({"Origin": PAGE}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "file://"}, 400),
    ({"Origin": "http://localhost.evil.example"}, 403),
    ({"Origin": "http://localhost@evil.example"}, 400),
    ({"Origin": "http://evil.example#localhost"}, 400),
    ({"Origin": "http://[::2]"}, 403),
    ({"Origin": "http://["}, 400),
    ({"Host": "evil.example:8000"}, 403),
    ({"Host": "localhost.evil.example"}, 403),
    ({"Host": "app.example"}, 403),
    ({"Host": "10.0.0.1"}, 403),
    ({"Host": "["}, 400),
    ({"Host": "local host"}, 400),
    ({"Host": "evil.example", "Origin": "http://localhost"}, 403),
]


@pytest.mark.parametrize(("headers", "status"), FROM)
def test_who_may_use_a_server_without_keys(server: Live, headers: dict[str, str], status: int) -> None:
    with server.http(**headers) as http:
        answers = [
            http.post(CHAT, json=HELLO),
            http.post("/tokenize", json={"prompt": "x"}),
            http.get("/v1/models"),
            http.get("/metrics"),
            http.get("/v1/adapters"),
        ]
    assert [one.status_code for one in answers] == [status] * len(answers)
    for refused in answers if status != 200 else ():
        error_of(refused, status)


@pytest.mark.parametrize("path", ["/health", "/v1/nothing", "/ready"])
def test_a_host_that_is_none_is_refused_everywhere(server: Live, path: str) -> None:
    with server.http(Host="[") as http:
        assert error_of(http.get(path), 400)["code"] == "invalid_header"


def test_a_second_origin_does_not_hide_the_first(server: Live) -> None:
    with server.http() as http:
        headers = [("Origin", "http://localhost"), ("Origin", "https://evil.example")]
        assert http.get("/v1/models", headers=headers).status_code == 403


def test_a_host_is_needed_by_http_1_1_alone(server: Live) -> None:
    with connect(server) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    with connect(server) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.1\r\n\r\n")
        assert answer(sock)[0] == 400


def test_an_allowed_page_uses_it(paged: Live) -> None:
    with paged.http(Origin=PAGE) as http:
        for body in (HELLO, {**HELLO, "stream": True}):
            response = http.post(CHAT, json=body)
            assert response.status_code == 200
            check_cors(response)
        large = http.post(CHAT, content=b"x" * (9 << 20), headers={"content-type": "application/json"})
        for refused in (http.post(CHAT, json={}), http.get("/v1/nothing"), large):
            assert refused.status_code in (400, 404, 413)
            check_cors(refused)
        assert http.get("/v1/models", headers={"Host": "app.example"}).status_code == 200
        error_of(http.get("/v1/adapters"), 403)


def check_cors(response: httpx.Response) -> None:
    assert response.headers["access-control-allow-origin"] == PAGE
    exposed = response.headers["access-control-expose-headers"]
    assert "x-request-id" in exposed
    assert "x-hotswap-adapter" in exposed
    assert "Origin" in response.headers["vary"]
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize("origin", ["https://evil.example", PAGE + ":8443", "http://app.example", "null"])
def test_another_page_does_not(paged: Live, origin: str) -> None:
    with paged.http(Origin=origin) as http:
        response = http.post(CHAT, json=HELLO)
        error_of(response, 403)
        assert "access-control-allow-origin" not in response.headers
        asked = http.options(CHAT, headers=preflight("POST"))
        assert json.loads(asked.content)["error"]["code"] == "origin_not_allowed"
        assert asked.status_code == 403
        assert "access-control-allow-origin" not in asked.headers


def preflight(method: str) -> dict[str, str]:
    return {
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization, content-type, x-request-id",
    }


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "PATCH", "DELETE"])
def test_preflights_are_answered(paged: Live, method: str) -> None:
    with paged.http(Origin=PAGE) as http:
        response = http.options(CHAT, headers=preflight(method))
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert method in response.headers["access-control-allow-methods"]
    assert "authorization" in response.headers["access-control-allow-headers"]


def test_without_the_setting_there_is_no_cors(server: Live) -> None:
    with server.http(Origin="http://localhost:3000") as http:
        assert "access-control-allow-origin" not in http.get("/v1/models").headers
        assert http.options(CHAT, headers=preflight("POST")).status_code == 405


def test_with_keys_any_page_may_ask_and_any_origin_be_allowed(base: Path, tmp_path: Path) -> None:
    with live_server(base, tmp_path, api_key="sk", cors_origin="*") as live:
        headers = {"Origin": "https://evil.example", "Host": "llm.example"}
        with live.http(**headers) as http:
            refused = http.get("/v1/models")
            served = http.get("/v1/models", headers={"Authorization": "Bearer sk"})
    for response, status in ((refused, 401), (served, 200)):
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "*"


def test_a_page_with_a_key_is_no_foreign_one(base: Path, tmp_path: Path) -> None:
    """As the console of a server that asks for a key only where something is changed."""
    headers = {"Origin": "https://llm.example", "Host": "llm.example"}
    with live_server(base, tmp_path, admin_key="root") as live, live.http(**headers) as http:
        assert error_of(http.post(CHAT, json=HELLO), 403)["code"] == "origin_not_allowed"
        assert http.post(CHAT, json=HELLO, headers={"Authorization": "Bearer root"}).status_code == 200


def test_behind_a_prefix(base: Path, tmp_path: Path) -> None:
    with live_server(base, tmp_path, root_path="llm/", docs=True, max_upload_mb=16) as live, live.http() as http:
        for path in ("/llm/v1/models", "/v1/models"):  # whether or not the proxy takes the prefix off
            assert http.get(path).status_code == 200
        assert http.get("/llm/console").status_code == http.get("/llm/console/app.js").status_code == 200
        assert http.get("/llm/console/").headers["location"] == "../console"
        assert http.get("/llmx/v1/models").status_code == 404
        large = http.put("/llm/v1/adapters/x", files={"f": b"x" * (9 << 20)})
        assert "archive" in error_of(large)["message"], "an upload has the limit of uploads"
        assert http.get("/openapi.json").json()["servers"] == [{"url": "/llm"}]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cors_origin": "*"}, "give --api-key, or name the origins"),
        ({"cors_origin": "*", "admin_key": "root"}, "give --api-key"),
        ({"cors_origin": "app.example"}, "wants an origin"),
        ({"cors_origin": "null"}, "wants an origin"),
        ({"cors_origin": "https://app.example/path"}, "wants an origin"),
        ({"cors_origin": "https://*.example"}, "wants an origin"),
        ({"root_path": "http://x"}, "--root-path"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("*", r"\*")):
        ServerConfig.model_validate(settings)


def test_settings_that_can() -> None:
    config = ServerConfig.model_validate({"cors_origin": ["HTTPS://App.Example/", "http://[::1]:3000"]})
    assert config.cors_origin == ("https://app.example", "http://[::1]:3000")
    paths = {given: ServerConfig.model_validate({"root_path": given}).root_path for given in ("", "/", "a/b/", "/a")}
    assert paths == {"": "", "/": "", "a/b/": "/a/b", "/a": "/a"}
