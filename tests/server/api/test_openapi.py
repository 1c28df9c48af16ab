"""The description says what the routes take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from server.app import ROUTERS
from tests.server.api.support import BASE
from tests.server.live import Live, live_server


@pytest.fixture(scope="module")
def described(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that describes itself."""
    with live_server(base, tmp_path_factory.mktemp("described"), docs=True, api_key="sk", admin_key="root") as live:
        yield live


@pytest.fixture(scope="module")
def schema(described: Live) -> dict[str, Any]:
    """The description, which needs no key."""
    with described.http() as http:
        document: dict[str, Any] = http.get("/openapi.json").json()
    return document


def test_every_route_is_described(schema: dict[str, Any]) -> None:
    routes = {
        (route.path_format, method.lower())
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods or ()
    }
    assert {(path, method) for path, operations in schema["paths"].items() for method in operations} == routes


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    for name in re.findall(r"'\$ref': '#/components/schemas/([^']+)'", str(schema)):
        assert name in schema["components"]["schemas"], name


WITHOUT_BODY = ("/ping", "/cancel", "/pause", "/resume", "/permissions")


def test_what_takes_a_body_says_so(schema: dict[str, Any]) -> None:
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            takes = method in ("post", "put", "patch") and not path.endswith(WITHOUT_BODY)
            assert ("requestBody" in operation) == takes, path
            assert "422" not in operation["responses"]
    chat = schema["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["2XX"]["content"]) == {"application/json", "text/event-stream"}
    fields = schema["components"]["schemas"]["ChatCompletionBody"]
    assert "messages" in fields["required"]
    assert {"model", "messages", "temperature", "stream"} <= set(fields["properties"])
    upload = schema["paths"]["/v1/adapters"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"file", "name", "replace", "activate", "allow_noop"} == set(upload["properties"])


def test_a_request_by_the_description_is_served(schema: dict[str, Any], described: Live) -> None:
    given = {"model": BASE, "prompt": "x", "tokens": [72], "messages": [{"role": "user", "content": "x"}]}
    with described.http(Authorization="Bearer sk") as http:
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
            reference = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            needed = schema["components"]["schemas"][reference.rsplit("/", 1)[1]].get("required", ["prompt"])
            response = http.post(path, json={name: given[name] for name in needed})
            assert response.status_code == 200, response.text


def test_errors_are_as_described(schema: dict[str, Any], described: Live) -> None:
    reference = schema["paths"]["/v1/models"]["get"]["responses"]["default"]["content"]["application/json"]["schema"]
    error = schema["components"]["schemas"][reference["$ref"].rsplit("/", 1)[1]]["properties"]["error"]
    with described.http() as http:
        assert set(http.get("/v1/models").json()["error"]) == set(error["required"])


def test_what_needs_no_key_says_so(schema: dict[str, Any]) -> None:
    for path in ("/health", "/ready", "/version"):
        assert "security" not in schema["paths"][path]["get"]
    assert schema["paths"]["/v1/models"]["get"]["security"]


def test_the_page_loads_nothing(described: Live, schema: dict[str, Any]) -> None:
    with described.http() as http:
        page = http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(r"<script|<link|src=|https?://", page.text)
    for path in schema["paths"]:
        assert path in page.text
    assert "max_completion_tokens" in page.text
