"""Keys of some adapters: the others do not exist for them, and tenants share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.api.keys.calls import ROOT, call, completion, create
from tests.server.api.support import BASE, archive, error_of
from tests.server.live import Live, live_server


@pytest.mark.parametrize("model", ["team-b-x", "team-b-x@1", f"{BASE}:team-b-x", f"{BASE}:team-b-x@1", "team-b-x@9"])
def test_others_are_as_if_they_did_not_exist(keyed: Live, model: str) -> None:
    key = create(keyed, adapters=["team-a-*"])["key"]

    def answers(name: str) -> list[tuple[int, str]]:
        asked = model.replace("team-b-x", name)
        found = [
            completion(keyed, key, model=asked),
            completion(keyed, key, model=asked, stream=True),
            completion(keyed, key, adapter_id=asked),
            completion(keyed, key, model=BASE, lora_path=asked),
            completion(keyed, key, model="team-a-x", adapter_id=asked),
            call(
                keyed,
                key,
                "POST",
                "/v1/chat/completions",
                json={"model": asked, "messages": [{"role": "user", "content": "x"}]},
            ),
            call(keyed, key, "POST", "/tokenize", json={"model": asked, "prompt": "x"}),
            call(keyed, key, "POST", "/detokenize", json={"model": asked, "tokens": [1]}),
            call(keyed, key, "GET", f"/v1/models/{asked}"),
        ]
        assert {error_of(response, 404)["code"] for response in found} == {"model_not_found"}
        return [(response.status_code, response.text.replace(name, "NAME")) for response in found]

    assert answers("team-b-x") == answers("team-c-x"), "nothing tells them from names that nobody has"


def test_what_a_limited_key_sees(keyed: Live) -> None:
    made = create(keyed, adapters=["team-a-*"])
    models = call(keyed, made["key"], "GET", "/v1/models").json()["data"]
    assert [model["id"] for model in models] == [BASE, "team-a-x"]
    assert completion(keyed, made["key"], model=f"{BASE}:team-a-x@1").status_code == 200
    without = create(keyed, adapters=["team-a-*"], base=False)
    models = call(keyed, without["key"], "GET", "/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["team-a-x"]
    for body in ({}, {"model": BASE}):
        assert error_of(completion(keyed, without["key"], **body), 404)["code"] == "model_not_found"
    nothing = create(keyed, adapters=[], base=False)
    assert call(keyed, nothing["key"], "GET", "/v1/models").json()["data"] == []


def test_a_refused_name_does_not_count_under_the_adapter(keyed: Live) -> None:
    key = create(keyed, adapters=["team-a-*"])["key"]

    def errors() -> list[str]:
        lines = call(keyed, ROOT, "GET", "/metrics").text.splitlines()
        return [line for line in lines if line.startswith("hotswap_errors_total") and "team-b" in line]

    before = errors()
    completion(keyed, key, model="team-b-x")
    assert errors() == before


def test_metrics_tell_of_all_adapters_and_are_for_keys_of_all(keyed: Live) -> None:
    for scopes in (["read-only"], ["admin"]):
        limited = create(keyed, scopes=scopes, adapters=["team-a-*"])["key"]
        assert error_of(call(keyed, limited, "GET", "/metrics"), 403)["code"] == "insufficient_permissions"


@pytest.mark.parametrize("scopes", [["read-only"], ["admin"]])
def test_limited_readers(keyed: Live, scopes: list[str]) -> None:
    key = create(keyed, scopes=scopes, adapters=["team-a-*"])["key"]
    listed = call(keyed, key, "GET", "/v1/adapters").json()["data"]
    assert [adapter["name"] for adapter in listed] == ["team-a-x"]
    assert call(keyed, key, "GET", "/v1/adapters/team-a-x").status_code == 200
    missing = [call(keyed, key, "GET", f"/v1/adapters/{name}") for name in ("team-b-x", "team-c-x")]
    texts = {response.text.replace("team-b", "T").replace("team-c", "T") for response in missing}
    assert {response.status_code for response in missing} == {404}
    assert len(texts) == 1


def test_limited_admins_change_what_is_theirs(keyed: Live, packages: dict[str, Path], tmp_path: Path) -> None:
    key = create(keyed, scopes=["admin"], adapters=["team-a-*", "team-d-*"])["key"]
    files = {"f": archive(packages["lora-2"], tmp_path)}
    assert call(keyed, key, "POST", "/v1/adapters?name=team-d-new", files=files).status_code == 201
    assert call(keyed, key, "POST", "/v1/adapters", data={"name": "team-d-form"}, files=files).status_code == 201
    assert call(keyed, key, "DELETE", "/v1/adapters/team-d-form").status_code == 200
    assert call(keyed, key, "PUT", "/v1/adapters/team-d-new", files=files).status_code == 200
    for name in ("team-b-x", "team-c-x"):  # whether it exists or not
        refused = [
            call(keyed, key, "POST", f"/v1/adapters?name={name}", files=files),
            call(keyed, key, "POST", "/v1/adapters", data={"name": name}, files=files),
            call(keyed, key, "PUT", f"/v1/adapters/{name}", files=files),
        ]
        assert {error_of(response, 403)["code"] for response in refused} == {"insufficient_permissions"}
        gone = [
            call(keyed, key, "PATCH", f"/v1/adapters/{name}", json={"version": 1}),
            call(keyed, key, "POST", f"/v1/adapters/{name}/rollback"),
            call(keyed, key, "DELETE", f"/v1/adapters/{name}"),
            call(keyed, key, "DELETE", f"/v1/adapters/{name}/versions/1", params={"mode": "force"}),
        ]
        assert {error_of(response, 404)["code"] for response in gone} == {"model_not_found"}
    assert call(keyed, ROOT, "GET", "/v1/adapters/team-b-x").json()["version"] == 1
    assert call(keyed, key, "DELETE", "/v1/adapters/team-d-new").status_code == 200


def test_limited_admins_are_not_told_whose_candidates_there_are(
    base: Path, packages: dict[str, Path], tmp_path: Path
) -> None:
    files = {"f": archive(packages["lora"], tmp_path)}
    with live_server(base, tmp_path / "data", admin_key=ROOT, max_candidates=1) as live:
        call(live, ROOT, "PUT", "/v1/adapters/team-b-secret?activate=false", files=files)
        key = create(live, scopes=["admin"], adapters=["team-a-*"])["key"]
        for who, words in ((key, "activate or delete some"), (ROOT, "team-b-secret@1")):
            refused = error_of(call(live, who, "PUT", "/v1/adapters/team-a-x?activate=false", files=files), 409)
            assert words in refused["message"]
            assert ("team-b" in refused["message"]) == (who == ROOT)


def test_limited_admins_make_no_keys(keyed: Live) -> None:
    limited = create(keyed, scopes=["admin"], adapters=["team-a-*"])
    for method, path, body in (
        ("POST", "/v1/keys", {"name": "n", "scopes": ["admin"]}),
        ("GET", "/v1/keys", None),
        ("PATCH", f"/v1/keys/{limited['id']}", {"adapters": None}),
        ("POST", f"/v1/keys/{limited['id']}/rotate", {}),
        ("DELETE", f"/v1/keys/{limited['id']}", None),
    ):
        assert error_of(call(keyed, limited["key"], method, path, json=body), 403)["code"] == "insufficient_permissions"


# ---- tenants ----


def test_keys_share_no_cached_prompts_and_keep_theirs_when_rotated(keyed: Live) -> None:
    def cached(key: str, salt: str | None = None) -> int:
        body = {"prompt": "tenants of keys " * 30, **({"cache_salt": salt} if salt is not None else {})}
        tokens: int = completion(keyed, key, **body).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return tokens

    one, other = create(keyed), create(keyed)
    assert cached(one["key"]) == 0
    assert cached(other["key"]) == 0
    assert cached(other["key"], f"{one['id']}/") == 0
    rotated = call(keyed, ROOT, "POST", f"/v1/keys/{one['id']}/rotate").json()["key"]
    assert cached(rotated) > 0
