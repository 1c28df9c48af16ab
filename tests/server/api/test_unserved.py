"""What clients of other servers send and is not served is refused by name; what asks for nothing is let pass."""

from __future__ import annotations

from typing import Any

import pytest

from server.api.unserved import UNSERVED, UNSERVED_IN_TEXT
from tests.server.api.support import error_of
from tests.server.live import Live

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES, "max_tokens": 1},
    TEXT: {"prompt": "x", "max_tokens": 1},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
}
CHAT_ONLY = {"add_special_tokens": True, "suffix": "x"}
TEXT_ONLY: dict[str, Any] = {
    "chat_template_kwargs": {"x": 1},
    "top_logprobs": 3,
    "max_completion_tokens": 5,
    **{name: {"x": 1} for name in UNSERVED_IN_TEXT},
}


def assert_refused(server: Live, path: str, fields: dict[str, Any]) -> None:
    with server.http() as http:
        for name, value in fields.items():
            error = error_of(http.post(path, json={**BODIES[path], name: value}))
            assert error["param"] == name
            assert error["message"].startswith(f"`{name}` is not supported: ")
            assert len(error["message"]) < 200


@pytest.mark.parametrize("path", BODIES)
def test_every_field_is_refused_by_name(server: Live, path: str) -> None:
    served = {CHAT: "prompt_token_ids", TEXT: "prompt_embeds"}.get(path)
    assert_refused(server, path, {name: {"x": 1} for name in UNSERVED if name != served})


def test_fields_of_the_other_endpoint(server: Live) -> None:
    assert_refused(server, CHAT, CHAT_ONLY)
    assert_refused(server, TEXT, TEXT_ONLY)


@pytest.mark.parametrize("path", BODIES)
def test_other_names_of_adapters_and_forms(server: Live, path: str) -> None:
    names = ("lora_names", "loraName", "adapter-path", "active_adapters", "prompt_adapter_request", "peft_model",
             "adapterVersion", "LORA_SCALE", "guided_something", "grammar_file", "ebnf_grammar")  # fmt: skip
    assert_refused(server, path, dict.fromkeys(names, "x"))
    harmless = {
        "exploration": "x",
        "collaborator": 1,
        "lora_names": [],
        "adapterName": None,
        "lora" * 40: 1,
        "é_lora": 1,
    }
    assert server.post(path, {**harmless, **BODIES[path]}).status_code == 200


ON: dict[str, Any] = {
    "lora": [{"id": 0, "scale": 1.0}],
    "modalities": ["text", "audio"],
    "do_sample": False,
    "web_search_options": {},
    "n_predict": -1,
    "max_new_tokens": 0,
    "repeat_penalty": 1.1,
    "mirostat": 2,
    "typical_p": 0.2,
    "chat_template": "{{ 'a' * 10**10 }}",
    "priority": 1,
    "best_of": 3,
    "audio": {"format": "wav", "voice": "alloy"},
}


@pytest.mark.parametrize("name", ON)
def test_a_value_that_asks_for_something(server: Live, name: str) -> None:
    for path in (CHAT, TEXT):
        error = error_of(server.post(path, {**BODIES[path], name: ON[name]}))
        assert error["param"] == name
        assert error["message"].startswith(f"`{name}` is not supported")


OFF: dict[str, Any] = {
    "modalities": ["text"],
    "audio": {"format": "wav", "voice": "alloy"},
    "do_sample": True,
    "length_penalty": 1.0,
    "early_stopping": False,
    "use_beam_search": False,
    "best_of": 0,
    "typical_p": 1.0,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "xtc_probability": 0,
    "top_n_sigma": -1,
    "dynatemp_range": 0.0,
    "repeat_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "priority": 0,
    "tool_choice": "none",
    "tools": [],
    "functions": [],
    "function_call": "auto",
    "reasoning_effort": "none",
    "lora": [],
    "grammar": "",
    "json_schema": {},
    "response_format": {"type": "text"},
    "truncation_side": "left",
    "echo": False,
    "suffix": "",
    "adapter_id": "",
    "lora_path": [None],
    "bad_words": [],
    "allowed_token_ids": [],
    "logit_bias": [],
    "logprobs": False,
}
BOOKKEEPING: dict[str, Any] = {
    "user": 5,
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "parallel_tool_calls": True,
    "request_id": "x",
    "cache_prompt": True,
    "nobody_knows_this": {"x": 10**30},
}


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_values_that_ask_for_nothing(server: Live, path: str) -> None:
    for body in (OFF, BOOKKEEPING, dict.fromkeys(UNSERVED)):
        answer = server.post(path, {**body, **BODIES[path]})
        assert answer.status_code == 200, answer.text


def test_two_names_of_one_field(server: Live) -> None:
    both = {
        "max_tokens": 1,
        "max_new_tokens": 1,
        "stop": ["x"],
        "stopping_strings": ["x"],
        "seed": 3,
        "sampler_seed": 3,
    }
    assert server.post(TEXT, {"prompt": "x", **both}).status_code == 200
    error = error_of(server.post(TEXT, {"prompt": "x", **both, "max_new_tokens": 2}))
    assert error["message"] == "`max_new_tokens` is not supported: use `max_tokens`"


def test_tools_that_may_not_be_called(server: Live) -> None:
    for switch in ({"tool_choice": "none"}, {"function_call": "none", "functions": [{"name": "f"}]}):
        tools = {} if "functions" in switch else {"tools": [{"type": "function", "function": {"name": "f"}}]}
        assert server.post(CHAT, {**BODIES[CHAT], **tools, **switch}).status_code == 200


def test_fields_of_a_message(server: Live) -> None:
    for name in ("prefix", "partial", "images", "audio"):
        message = {"role": "assistant", "content": "x", name: ["x"]}
        error = error_of(server.post(CHAT, {"messages": [*MESSAGES, message]}))
        assert f"`{name}` is not supported" in error["message"]
        assert error["param"] == "messages[1]"
    harmless = {"role": "user", "content": "x", "name": "me", "cache_control": {"type": "ephemeral"}, "prefix": False}
    assert server.post(CHAT, {"messages": [harmless], "max_tokens": 1}).status_code == 200
