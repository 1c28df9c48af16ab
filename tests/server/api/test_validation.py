"""No words of pydantic reach a client: every mistake is a short, plain sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from server.api.admin import ChangeBody, RollbackBody
from server.api.validation import first_fault, json_fault
from server.api.wire import ChatCompletionBody, CompletionBody, DetokenizeBody, TokenizeBody
from server.api.wire_fields import Wire
from tests.server.api.support import error_of
from tests.server.live import Live

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    TEXT: {"prompt": "x", "max_tokens": 1},
}
LONG = "x" * 50_000
SENTENCES: list[tuple[str, dict[str, Any], str]] = [
    (TEXT, {"n": "x"}, "n: must be an integer"),
    (TEXT, {"n": LONG}, "n: must be an integer"),
    (TEXT, {"n": 1.5}, "n: must be an integer"),
    (TEXT, {"n": 0}, "n: must be at least 1"),
    (TEXT, {"n": 129}, "n: must be at most 128"),
    (TEXT, {"temperature": "x"}, "temperature: must be a number"),
    (TEXT, {"temperature": 3}, "temperature: must be at most 2"),
    (TEXT, {"stream": 1}, "stream: must be true or false"),
    (TEXT, {"stop": 5}, "stop: must be a text or a list"),
    (TEXT, {"stop": [5]}, "stop[0]: must be a text"),
    (TEXT, {"stop": [[LONG]]}, "stop[0]: must be a text"),
    (TEXT, {"stream_options": 5}, "stream_options: must be an object"),
    (TEXT, {"logit_bias": [5]}, "logit_bias: must be an object"),
    (TEXT, {"model": 5}, "model: must be a text"),
    (TEXT, {"model": LONG}, "model: must have at most 512 characters"),
    (TEXT, {"prompt": [-1]}, "prompt[0]: must be at least 0"),
    (TEXT, {"prompt": [1.5]}, "prompt[0]: must be a text or an integer or a list"),
    (TEXT, {"stop_token_ids": [1] * 257}, "stop_token_ids: must have at most 256 entries"),
    (TEXT, {"stop_token_ids": [1, -1]}, "stop_token_ids[1]: must be at least 0"),
    (CHAT, {"messages": []}, "`messages` must have at least 1 entry, unless there are `prompt_token_ids`"),
    (CHAT, {"messages": [5]}, "messages[0]: must be an object"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role: is missing"),
    (CHAT, {"messages": [{"role": LONG, "content": "x"}]}, "messages[0].role: must have at most 64 characters"),
    (CHAT, {"response_format": LONG}, "response_format: must be an object"),
]


@pytest.mark.parametrize(("path", "change", "message"), SENTENCES, ids=lambda value: str(value)[:40])
def test_sentences(server: Live, path: str, change: dict[str, Any], message: str) -> None:
    assert error_of(server.post(path, {**GOOD[path], **change}))["message"] == message


def test_a_body_that_is_no_object(server: Live) -> None:
    assert error_of(server.post(TEXT, [1]))["message"] == "body: must be an object"
    assert error_of(server.post(TEXT, {}))["message"] == "`prompt` is missing"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": ', "the body is not valid JSON: it breaks off or is malformed (at line 1, column 6)"),
        (b'{\n"n": ' + b"9" * 6000 + b"}", "the body is not valid JSON: a number has too many digits (at line 2"),
    ],
)
def test_malformed_json(server: Live, content: bytes, message: str) -> None:
    with server.http() as http:
        assert error_of(http.post(TEXT, content=content))["message"].startswith(message)


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("POST", "/v1/adapters?name=x&replace=perhaps", "replace: must be true or false"),
        ("PUT", f"/v1/adapters/x?activate={LONG[:5000]}", "activate: must be true or false"),
        ("DELETE", "/v1/adapters/lora?mode=gently", "mode: must be 'drain' or 'force'"),
        ("DELETE", "/v1/adapters/lora/versions/1?mode=", "mode: must be 'drain' or 'force'"),
    ],
)
def test_query_parameters(server: Live, method: str, path: str, message: str) -> None:
    with server.http() as http:
        error = error_of(http.request(method, path))
    assert (error["message"], error["param"]) == (message, message.partition(":")[0])


@pytest.mark.parametrize("version", ["x", 1.5, 0, 2**64, 10**4000, True, None])
def test_bodies_of_the_admin_api(server: Live, version: Any) -> None:
    with server.http() as http:
        for path, method in (("/v1/adapters/lora", "PATCH"), ("/v1/adapters/lora/rollback", "POST")):
            if version is None and method == "POST":
                continue
            error = error_of(http.request(method, path, json={"version": version}))
            assert error["message"].startswith("version: must be ")
            assert len(error["message"]) < 100
        whole = http.patch("/v1/adapters/lora", json={"version": 1.0, "expected_live": 1.0})
    assert whole.json()["version"] == 1


NASTY: list[Any] = [
    *(
        "x",
        LONG,
        "",
        None,
        True,
        -1,
        0,
        1.5,
        -0.5,
        1e308,
        2**63,
        10**4000,
        -(10**4000),
        [],
        {},
        [LONG],
        [[LONG]],
        [10**4000],
    ),
    *(
        [1.5],
        [True],
        [{}],
        [None],
        [[[]]],
        {LONG: LONG},
        {"x": {}},
        {"1": LONG},
        {"type": LONG},
        {"include_usage": LONG},
    ),
    *([{"role": LONG, "content": [{"type": LONG}]}], [{"role": "user", "content": {LONG: 1}}], [{"role": 10**4000}]),
]


@pytest.mark.parametrize(
    "model", [ChatCompletionBody, CompletionBody, TokenizeBody, DetokenizeBody, ChangeBody, RollbackBody]
)
def test_whatever_a_field_holds_the_words_are_ours_and_few(model: type[Wire]) -> None:
    good = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "tokens": [1], "version": 1, "stream": True}
    base = {name: value for name, value in good.items() if name in model.model_fields}
    if model is TokenizeBody:
        del base["messages"]
    for name in model.model_fields:
        for value in NASTY:
            if (error := fault(model, {**base, name: value})) is not None:
                message, param = first_fault(error)
                assert json_fault(error) is None
                assert len(message) < 250, message
                assert param is not None
                assert param.partition("[")[0].partition(".")[0] in {name, *base, "adapter_id", "lora_path"}, message
                for word in ("Input", "valid", "parse", "Value", "https", "not possible"):
                    assert word not in message, message


def fault(model: type[Wire], body: dict[str, Any]) -> ValidationError | None:
    try:
        model.model_validate_json(json.dumps(body))
    except ValidationError as error:
        return error
    return None
