from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from server.catalog.keys import KeyRing
from tests.server.api.support import BASE, error_of
from tests.server.live import Live, live_server

ROUTES = [
    ("GET", "/v1/models", "inference"),
    ("GET", f"/v1/models/{BASE}", "inference"),
    ("POST", "/v1/chat/completions", "inference"),
    ("POST", "/v1/completions", "inference"),
    ("POST", "/tokenize", "inference"),
    ("POST", "/detokenize", "inference"),
    ("GET", "/metrics", "inference"),
    ("GET", "/v1/adapters", "admin"),
    ("GET", "/v1/adapters/x", "admin"),
    ("POST", "/v1/adapters", "admin"),
    ("PUT", "/v1/adapters/x", "admin"),
    ("DELETE", "/v1/adapters/x", "admin"),
    ("PATCH", "/v1/adapters/x", "admin"),
    ("POST", "/v1/adapters/x/rollback", "admin"),
    ("POST", "/v1/adapters/x/promote", "admin"),
    ("POST", "/v1/adapters/x/abort", "admin"),
    ("POST", "/v1/adapters/x/scores", "admin"),
    ("GET", "/v1/adapters/x/versions/{version}", "admin"),
    ("DELETE", "/v1/adapters/x/versions/{version}", "admin"),
    ("DELETE", f"/v1/models/{BASE}", "admin"),
    ("POST", "/v1/load_lora_adapter", "admin"),
    ("POST", "/v1/unload_lora_adapter", "admin"),
    ("GET", "/v1/events", "admin"),
    ("POST", "/invocations", "inference"),
    ("POST", "/v1/files", "inference"),
    ("GET", "/v1/files", "inference"),
    ("GET", "/v1/files/{file_id}", "inference"),
    ("DELETE", "/v1/files/{file_id}", "inference"),
    ("GET", "/v1/files/{file_id}/content", "inference"),
    ("POST", "/v1/uploads", "inference"),
    ("POST", "/v1/uploads/{upload_id}/parts", "inference"),
    ("POST", "/v1/uploads/{upload_id}/complete", "inference"),
    ("POST", "/v1/uploads/{upload_id}/cancel", "inference"),
    ("POST", "/v1/batches", "inference"),
    ("GET", "/v1/batches", "inference"),
    ("GET", "/v1/batches/{batch_id}", "inference"),
    ("POST", "/v1/batches/{batch_id}/cancel", "inference"),
    ("POST", "/v1/fine_tuning/jobs", "admin"),
    ("GET", "/v1/fine_tuning/jobs", "admin"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}", "admin"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel", "admin"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/pause", "admin"),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/resume", "admin"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events", "admin"),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints", "admin"),
    ("GET", "/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions", "admin"),
    ("POST", "/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions", "admin"),
    ("DELETE", "/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions/{permission_id}", "admin"),
    ("GET", "/v1/keys", "admin"),
    ("POST", "/v1/keys", "admin"),
    ("GET", "/v1/keys/x", "admin"),
    ("PATCH", "/v1/keys/x", "admin"),
    ("DELETE", "/v1/keys/x", "admin"),
    ("POST", "/v1/keys/x/rotate", "admin"),
    ("GET", "/v1/responses", "inference"),
    ("POST", "/v1/responses", "inference"),
    ("POST", "/v1/responses/compact", "inference"),
    ("POST", "/v1/responses/input_tokens", "inference"),
    ("GET", "/v1/responses/{response_id}", "inference"),
    ("DELETE", "/v1/responses/{response_id}", "inference"),
    ("GET", "/v1/responses/{response_id}/input_items", "inference"),
    ("POST", "/v1/responses/{response_id}/cancel", "inference"),
    ("POST", "/v1/conversations", "inference"),
    ("GET", "/v1/conversations/{conversation_id}", "inference"),
    ("POST", "/v1/conversations/{conversation_id}", "inference"),
    ("DELETE", "/v1/conversations/{conversation_id}", "inference"),
    ("GET", "/v1/conversations/{conversation_id}/items", "inference"),
    ("POST", "/v1/conversations/{conversation_id}/items", "inference"),
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}", "inference"),
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}", "inference"),
    ("POST", "/v1/messages", "inference"),
    ("POST", "/v1/messages/count_tokens", "inference"),
    ("GET", "/v1/chat/completions", "inference"),
    ("POST", "/v1/chat/completions/batch", "inference"),
    ("GET", "/v1/chat/completions/{completion_id}", "inference"),
    ("POST", "/v1/chat/completions/{completion_id}", "inference"),
    ("DELETE", "/v1/chat/completions/{completion_id}", "inference"),
    ("GET", "/v1/chat/completions/{completion_id}/messages", "inference"),
    ("POST", "/v1/embeddings", "inference"),
    ("POST", "/v1/pooling", "inference"),
    ("POST", "/v1/classify", "inference"),
    ("POST", "/v1/score", "inference"),
    ("POST", "/v1/rerank", "inference"),
    ("POST", "/v2/rerank", "inference"),
    ("POST", "/v2/embed", "inference"),
    ("GET", "/v1/tokenizer_info", "inference"),
    ("GET", "/tokenizer_info", "inference"),
    ("GET", "/load", "inference"),
    ("GET", "/ping", "open"),
    ("POST", "/ping", "open"),
    ("GET", "/console", "open"),
    ("GET", "/console/{path:path}", "open"),
    ("GET", "/health", "open"),
    ("GET", "/ready", "open"),
    ("GET", "/version", "open"),
]
REFUSED = (401, 403)


@pytest.fixture(scope="module")
def locked(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with two keys of each scope."""
    folder = tmp_path_factory.mktemp("locked")
    with live_server(base, folder, api_key="sk-1,sk-2", admin_key="root-1,root-2") as live:
        yield live


def call(server: Live, method: str, path: str, key: str | None, **headers: str) -> httpx.Response:
    with server.http(**headers) as http:
        return http.request(method, path, headers={"Authorization": f"Bearer {key}"} if key is not None else {})


def test_every_route_states_its_scope(locked: Live) -> None:
    """A route that forgets its dependency would answer without a key: compare with the application's own list."""
    from fastapi.routing import APIRoute

    from server.app import ROUTERS

    found = {
        (method, route.path)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    listed = {
        (
            method,
            path.replace(f"/{BASE}", "/{model:path}")
            .replace("keys/x", "keys/{id}")
            .replace("models/x", "models/{model:path}")
            .replace("/x", "/{name}"),
        )
        for method, path, _ in ROUTES
    }
    assert found == listed | {("POST", "/v1/tokenize"), ("POST", "/v1/detokenize")}
    for method, path in found:
        concrete = path.replace("{model:path}", BASE).replace("{name}", "x").replace("{id}", "x")
        refused = call(locked, method, concrete, None).status_code in REFUSED
        assert refused == (path not in ("/health", "/ready", "/version", "/ping", "/console", "/console/{path:path}"))


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_who_gets_in(locked: Live, method: str, path: str, scope: str) -> None:
    wrong = {"sk-3", "sk-1x", "SK-1", "root", "x" * 5000}
    for key in (None, *wrong):
        status = call(locked, method, path, key).status_code
        assert (status == 401) == (scope != "open"), key
    for key in ("root-1", "root-2"):
        assert call(locked, method, path, key).status_code not in REFUSED
    for key in ("sk-1", "sk-2"):
        assert (call(locked, method, path, key).status_code == 403) == (scope == "admin")


def test_the_form_of_refusals(locked: Live) -> None:
    response = call(locked, "POST", "/v1/completions", "wrong")
    error = error_of(response, 401)
    assert error["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"
    assert error_of(call(locked, "GET", "/v1/adapters", "sk-1"), 403)["code"] == "insufficient_permissions"


@pytest.mark.parametrize("header", ["sk-1", "Basic sk-1", "Bearer", "bearer sk-1 sk-2", "Bearer sk-1,sk-2"])
def test_other_authorization_headers(locked: Live, header: str) -> None:
    with locked.http(Authorization=header) as http:
        assert http.get("/v1/models").status_code == 401


def test_a_key_may_have_any_case_of_scheme(locked: Live) -> None:
    with locked.http(Authorization="bearer sk-1") as http:
        assert http.get("/v1/models").status_code == 200


def test_bytes_that_are_no_text_are_a_wrong_key(locked: Live) -> None:
    with locked.http() as http:
        response = http.get("/v1/models", headers=[(b"Authorization", b"Bearer \xff\xfe")])
    error_of(response, 401)


def test_the_official_clients_error_classes(locked: Live) -> None:
    client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0)
    with client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key="sk-2", max_retries=0) as client:
        assert client.completions.create(model=BASE, prompt="x", max_tokens=1).choices
        with pytest.raises(openai.PermissionDeniedError):
            client.get("/adapters", cast_to=object)


def test_tenants_do_not_share_the_prefix_cache(locked: Live) -> None:
    def cached(key: str) -> int:
        body = {"model": BASE, "prompt": "tenants " * 30, "max_tokens": 1}
        with locked.http(Authorization=f"Bearer {key}") as http:
            usage = http.post("/v1/completions", json=body).json()["usage"]
        tokens: int = usage["prompt_tokens_details"]["cached_tokens"]
        return tokens

    assert cached("sk-1") == 0
    assert cached("sk-2") == 0
    assert cached("sk-1") > 0


def test_with_inference_keys_only_the_admin_api_is_off(base: Path, tmp_path: Path) -> None:
    with live_server(base, tmp_path, api_key="sk-1", public_metrics=True) as live:
        for key in (None, "sk-1"):
            assert error_of(call(live, "GET", "/v1/adapters", key), 403)["code"] == "admin_disabled"
        assert call(live, "GET", "/metrics", None).status_code == 200


def test_with_admin_keys_only_inference_is_open(base: Path, tmp_path: Path) -> None:
    with live_server(base, tmp_path, admin_key="root-1") as live:
        assert call(live, "GET", "/v1/models", None).status_code == 200
        assert call(live, "GET", "/v1/adapters", None).status_code == 401
        assert call(live, "GET", "/metrics", None).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "localhost:8000"}, 200),
    ],
)
def test_web_pages_cannot_use_an_open_admin_api(server: Live, headers: dict[str, str], status: int) -> None:
    with server.http(**headers) as http:
        assert http.get("/v1/adapters").status_code == status


def test_before_the_keys_are_read_nobody_is_told_that_his_is_wrong(
    locked: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that starts may not know yet whether one is needed at all."""
    monkeypatch.setattr(locked.context.keys, "ring", KeyRing())
    response = call(locked, "GET", "/v1/models", "hs-somebody")
    assert error_of(response, 503)["code"] == "engine_unavailable"
    assert "retry-after" in response.headers
    assert call(locked, "GET", "/v1/models", "sk-1").status_code == 200
