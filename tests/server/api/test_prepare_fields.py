"""Bodies to jobs, over HTTP: adapters named as other servers do, tokens allowed or forbidden, prompts cut."""

from __future__ import annotations

import string
from typing import Any

import pytest

from tests.server.api.support import BASE, MAX_LEN, error_of
from tests.server.live import Live

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 40}


def text_of(server: Live, **body: Any) -> str:
    response = server.post(TEXT, {"prompt": "once", **GREEDY, **body})
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def ids_of(server: Live, text: str) -> list[int]:
    ids: list[int] = server.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"]
    return ids


# ---- adapters ----


SAME_ADAPTER: list[dict[str, Any]] = [
    {"adapter_id": "lora"},
    {"adapter_id": "lora@1"},
    {"adapter_id": "lora", "lora_path": "lora"},
    {"lora_path": "lora"},
    {"lora_path": ["lora", "lora"], "model": None},
    {"lora_path": ["lora"], "model": BASE},
    {"adapter_id": "lora", "model": "lora"},
    {"adapter_id": "lora", "model": f"{BASE}:lora@1"},
]


@pytest.mark.parametrize("named", SAME_ADAPTER, ids=str)
def test_an_adapter_beside_the_base(server: Live, named: dict[str, Any]) -> None:
    assert text_of(server, **named) == text_of(server, model="lora") != text_of(server)
    answer = server.post(CHAT, {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **named})
    assert answer.headers["x-hotswap-adapter"] == "lora@1"
    assert server.post("/tokenize", {"prompt": "x", **named}).status_code == 200


def test_the_answer_says_which_model(server: Live) -> None:
    answer = server.post(TEXT, {"prompt": "x", "max_tokens": 1, "model": BASE, "adapter_id": "lora"})
    assert answer.json()["model"] == "lora"


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize"])
@pytest.mark.parametrize(
    ("named", "param"),
    [
        ({"model": "prefix", "adapter_id": "lora"}, "adapter_id"),
        ({"model": "prefix", "lora_path": ["lora"]}, "lora_path"),
        ({"model": "lora", "adapter_id": BASE}, "adapter_id"),
        ({"adapter_id": "lora", "lora_path": "prefix"}, "lora_path"),
        ({"lora_path": ["lora", "prefix"]}, "lora_path"),
        ({"lora_path": ["lora", None]}, "lora_path"),
        ({"adapter_id": 5}, "adapter_id"),
        ({"adapter_id": "x" * 600}, "adapter_id"),
        ({"lora_path": "x" * 600}, "lora_path"),
    ],
    ids=str,
)
def test_adapters_that_contradict_each_other(server: Live, path: str, named: dict[str, Any], param: str) -> None:
    body = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x"}
    error = error_of(server.post(path, {**body, **named}))
    assert error["param"] == param
    assert len(error["message"]) < 200


@pytest.mark.parametrize("named", [{"adapter_id": "nobody"}, {"lora_path": ["nobody"]}, {"adapter_id": "../../etc"}])
def test_an_unknown_adapter(server: Live, named: dict[str, Any]) -> None:
    for model in ({}, {"model": BASE}, {"model": "lora"}):
        error = error_of(server.post(TEXT, {"prompt": "x", **model, **named}), 404)
        assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize(
    "number", ["01", "+1", "1 ", " 1", "\uff11", "\u0661", "1_0", "1.0", "0", "-1", "", "9" * 5000]
)
def test_one_way_to_write_a_version(server: Live, number: str) -> None:
    error = error_of(server.post(TEXT, {"prompt": "x", "model": f"lora@{number}"[:512]}), 404)
    assert len(error["message"]) < 300
    with server.http() as http:
        gone = http.delete(f"/v1/adapters/lora/versions/{number or ' '}")
    assert error_of(gone)["param"] == "version"


# ---- tokens allowed and forbidden ----


@pytest.fixture(scope="module")
def letters(server: Live) -> list[int]:
    """The ids of the small letters, each a token of its own."""
    ids = ids_of(server, string.ascii_lowercase)
    assert len(ids) == 26
    return ids


@pytest.mark.parametrize("sampling", [{}, {"temperature": 2, "seed": 3}, {"temperature": 1, "top_k": 3, "seed": 4}])
def test_allowed_tokens(server: Live, letters: list[int], sampling: dict[str, Any]) -> None:
    free = text_of(server, **sampling)
    assert not set(free) <= set(string.ascii_lowercase)
    assert set(text_of(server, **sampling, allowed_token_ids=letters)) <= set(string.ascii_lowercase)
    assert text_of(server, **sampling, allowed_token_ids=letters[3:4]) == "d" * 40
    everything = text_of(server, **sampling, allowed_token_ids=list(range(320)))
    assert everything == free


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("model", [BASE, "lora"])
def test_bad_words(server: Live, letters: list[int], length: int, model: str) -> None:
    common = {"model": model, "allowed_token_ids": letters}
    free = text_of(server, **common)
    word = free[5 : 5 + length]
    found = text_of(server, **common, bad_words=[word])
    same = free.index(word) + length - 1  # up to the word's last letter nothing changes
    assert found[:same] == free[:same]
    assert word not in found
    assert text_of(server, **common, bad_words=["0", word, f" {word}"]) == found


def test_bad_words_in_every_choice_of_a_chat(server: Live, letters: list[int]) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "n": 8, "max_tokens": 60, "temperature": 2, "seed": 1}
    few = {"allowed_token_ids": letters[:2], "bad_words": ["aa", "bbb"]}
    choices = server.post(CHAT, {**body, **few}).json()["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert {len(text) for text in texts} == {60}
    assert not any("aa" in text or "bbb" in text for text in texts)


def test_what_would_forbid_everything_forbids_nothing(server: Live, letters: list[int]) -> None:
    assert text_of(server, allowed_token_ids=letters[:1], bad_words=["a"]) == "a" * 40
    assert text_of(server, allowed_token_ids=letters[:1], stop_token_ids=letters[:1], min_tokens=3) == "a" * 3


# ---- prompts that are cut ----


def test_the_end_of_a_prompt_is_kept(server: Live) -> None:
    whole = server.post(TEXT, {"prompt": "xyz", **GREEDY}).json()
    for prompt in ("abc xyz", ids_of(server, "abc xyz")):
        cut = server.post(TEXT, {"prompt": prompt, "truncate_prompt_tokens": 3, **GREEDY}).json()
        assert cut["usage"]["prompt_tokens"] == 3
        assert cut["choices"] == whole["choices"]
    echoed = server.post(TEXT, {"prompt": "abc xyz", "truncate_prompt_tokens": 3, "echo": True, "max_tokens": 0})
    assert echoed.json()["choices"][0]["text"] == "xyz"
    untouched = server.post(TEXT, {"prompt": "xyz", "truncate_prompt_tokens": 50, **GREEDY}).json()
    assert untouched["choices"] == whole["choices"]


@pytest.mark.parametrize("model", [BASE, "prefix"])
@pytest.mark.parametrize("prompt", ["x" * 5000, [5] * 5000], ids=["text", "ids"])
def test_as_many_tokens_as_fit(server: Live, model: str, prompt: Any) -> None:
    virtual = 5 if model == "prefix" else 0
    body = {"model": model, "prompt": prompt, "max_tokens": 7, "ignore_eos": True}
    error_of(server.post(TEXT, body))
    usage = server.post(TEXT, {**body, "truncate_prompt_tokens": -1}).json()["usage"]
    assert usage["prompt_tokens"] == MAX_LEN - virtual - 7
    error_of(server.post(TEXT, {**body, "truncate_prompt_tokens": MAX_LEN + 1}))


def test_a_conversation_is_cut(server: Live) -> None:
    messages = [{"role": "user", "content": "x" * 3000}]
    answer = server.post(CHAT, {"messages": messages, "truncate_prompt_tokens": 10, "max_tokens": 1}).json()
    assert answer["usage"]["prompt_tokens"] == 10
    fits = server.post(CHAT, {"messages": messages, "truncate_prompt_tokens": -1, "max_tokens": 1}).json()
    assert fits["usage"]["prompt_tokens"] == MAX_LEN - 1
    whole = server.post("/tokenize", {"prompt": "x" * (MAX_LEN + 9), "truncate_prompt_tokens": -1}).json()
    assert whole["count"] == MAX_LEN
    assert server.post("/tokenize", {"prompt": "abc xyz", "truncate_prompt_tokens": 3}).json()["tokens"] == ids_of(
        server, "xyz"
    )


def test_a_text_that_is_cut_is_bounded(server: Live) -> None:
    long = {"prompt": "x" * (2**20 + 1), "truncate_prompt_tokens": 3, "max_tokens": 1}
    assert error_of(server.post(TEXT, long))["param"] == "prompt"
    assert server.post(TEXT, long | {"prompt": "x" * 2**17}).json()["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize("skip", [True, False])
def test_a_stop_string_that_is_a_special_token(server: Live, skip: bool) -> None:
    hidden = {"logit_bias": {"256": 100}, "skip_special_tokens": skip, "max_tokens": 4}
    for ignore in ({}, {"ignore_eos": True}):
        body = {"prompt": "x", "stop": ["never", "<|endoftext|>"], **hidden, **ignore}
        choice = server.post(TEXT, body).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    assert server.post(TEXT, {"prompt": "x", **hidden}).json()["choices"][0]["finish_reason"] == "length"


def test_no_more_is_kept_than_ever_fits(server: Live) -> None:
    for path, body in ((TEXT, {"prompt": "x"}), ("/v1/embeddings", {"input": "x"})):
        error = error_of(server.post(path, {**body, "truncate_prompt_tokens": MAX_LEN + 1}))
        assert error["param"] == "truncate_prompt_tokens"
        assert server.post(path, {**body, "truncate_prompt_tokens": MAX_LEN}).status_code == 200
