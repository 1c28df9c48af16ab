"""Every mistake gets one clear error in OpenAI's form, and disturbs nothing else."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.server.api.support import BASE, MAX_LEN, STEADY, error_of
from tests.server.live import Live, slow_steps

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


TOO_MANY_STOPS = [str(i) for i in range(17)]
CASES: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": None}, "messages"),
    (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    (CHAT, {"temperature": 2.1}, "temperature"),
    (CHAT, {"temperature": "hot"}, "temperature"),
    (CHAT, {"top_p": -0.1}, "top_p"),
    (CHAT, {"n": 0}, "n"),
    (CHAT, {"n": 129}, "n"),
    (CHAT, {"n": 10**30}, "n"),
    (CHAT, {"n": "2"}, "n"),
    (CHAT, {"n": 1.5}, "n"),
    (CHAT, {"max_tokens": 0}, "max_tokens"),
    (CHAT, {"max_completion_tokens": -5}, "max_completion_tokens"),
    (CHAT, {"stop": TOO_MANY_STOPS}, "stop"),
    (CHAT, {"stop": ["x"] * 100_000}, "stop"),
    (CHAT, {"stop": [1]}, "stop[0]"),
    (CHAT, {"stop": ""}, "stop"),
    (CHAT, {"stop": "x" * 257}, "stop"),
    (CHAT, {"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    (CHAT, {"logit_bias": {"x": 1}}, "logit_bias"),
    (CHAT, {"logit_bias": {"-1": 1}}, "logit_bias"),
    (CHAT, {"logit_bias": {"5": 101}}, "logit_bias"),
    (CHAT, {"logit_bias": {"999999": 1}}, "logit_bias"),
    (CHAT, {"presence_penalty": 3}, "presence_penalty"),
    (CHAT, {"frequency_penalty": -3}, "frequency_penalty"),
    (CHAT, {"repetition_penalty": 0}, "repetition_penalty"),
    (CHAT, {"min_p": 2}, "min_p"),
    (CHAT, {"top_k": -2}, "top_k"),
    (CHAT, {"seed": 2**70}, "seed"),
    (CHAT, {"stop_token_ids": [99999]}, "stop_token_ids"),
    (CHAT, {"stop_token_ids": [1] * 257}, "stop_token_ids"),
    (CHAT, {"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    (CHAT, {"logprobs": 5}, "logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"stream": "yes"}, "stream"),
    (CHAT, {"speculation": "auto"}, "speculation"),
    (TEXT, {"speculation": 1}, "speculation"),
    (CHAT, {"response_format": "json_object"}, "response_format"),
    (CHAT, {"bad_words": [""]}, "bad_words"),
    (CHAT, {"bad_words": ["x" * 65]}, "bad_words"),
    (CHAT, {"bad_words": ["x"] * 129}, "bad_words"),
    (CHAT, {"bad_words": "x"}, "bad_words"),
    (CHAT, {"allowed_token_ids": [320]}, "allowed_token_ids"),
    (CHAT, {"allowed_token_ids": [1] * 4097}, "allowed_token_ids"),
    (CHAT, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    (CHAT, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    (CHAT, {"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"conversations": 1}}, "chat_template_kwargs"),
    (TEXT, {"prompt": None}, "prompt"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": 5}, "prompt"),
    (TEXT, {"prompt": [True, False]}, "prompt"),
    (TEXT, {"prompt": ["x", 1]}, "prompt"),
    (TEXT, {"prompt": [[1, "x"]]}, "prompt[0][1]"),
    (TEXT, {"prompt": [[]]}, "prompt"),
    (TEXT, {"prompt": [-1]}, "prompt[0]"),
    (TEXT, {"prompt": [320]}, "prompt"),
    (TEXT, {"prompt": ["x"] * 257}, "prompt"),
    (TEXT, {"prompt": ["x"] * 100, "n": 3}, "prompt"),
    (TEXT, {"best_of": 5}, "best_of"),
    (TEXT, {"logprobs": 21}, "logprobs"),
    (TEXT, {"logprobs": -1}, "logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    (CHAT, {"prompt_logprobs": -1}, "prompt_logprobs"),
    (CHAT, {"logprob_token_ids": [1]}, "logprob_token_ids"),
    (TEXT, {"logprob_token_ids": [1]}, "logprob_token_ids"),
    (TEXT, {"logprobs": 1, "logprob_token_ids": []}, "logprob_token_ids"),
    (TEXT, {"logprobs": 1, "logprob_token_ids": [10**6]}, "logprob_token_ids"),
    (TEXT, {"stream_options": {}}, "stream_options"),
    (CHAT, {"logit_bias": {"a": 1, "b": 1}}, "logit_bias"),
    (TEXT, {"max_tokens": 0}, "max_tokens"),
    (TEXT, {"max_tokens": "many"}, "max_tokens"),
    (TEXT, {"echo": "yes"}, "echo"),
]


@pytest.mark.parametrize(("path", "change", "param"), CASES, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(server: Live, path: str, change: dict[str, Any], param: str) -> None:
    good = {"model": BASE, "messages": HELLO} if path == CHAT else {"model": BASE, "prompt": "x"}
    error = error_of(server.post(path, good | change))
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param.partition("[")[0] in error["message"] or "sequences" in error["message"]


def test_a_body_that_is_too_deep(server: Live) -> None:
    deep = b'{"prompt": "x", "metadata": ' + b'{"a":' * 300 + b"1" + b"}" * 301
    with server.http() as http:
        error = error_of(http.post(TEXT, content=deep))
    assert (error["code"], "nested too deeply" in error["message"]) == ("invalid_json", True)


@pytest.mark.parametrize("path", [CHAT, TEXT, "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not json", b"\xff\xfe", b'{"model": NaN', b"[" * 100_000, b'{"model": "\\ud800"}'],
    ids=["empty", "open", "words", "bytes", "nan", "deep", "surrogate"],
)
def test_malformed_json(server: Live, path: str, content: bytes) -> None:
    with server.http() as http:
        error = error_of(http.post(path, content=content))
    assert error["code"] == "invalid_json"
    assert "not valid JSON" in error["message"]


@pytest.mark.parametrize("content", [b"[]", b"5", b'"x"', b"null"])
def test_json_that_is_no_object(server: Live, content: bytes) -> None:
    with server.http() as http:
        assert "object" in error_of(http.post(CHAT, content=content))["message"]


def test_numbers_that_are_none(server: Live) -> None:
    with server.http() as http:
        for word in (b"NaN", b"Infinity", b"1e999"):
            content = b'{"model": "tiny", "prompt": "x", "temperature": ' + word + b"}"
            error_of(http.post(TEXT, content=content))


@pytest.mark.parametrize("model", [{}, {"model": None}])
def test_no_model_means_the_base(server: Live, model: dict[str, Any]) -> None:
    for path, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "x"})):
        answer = server.post(path, {**model, **body, "max_tokens": 1})
        assert answer.json()["model"] == BASE
        assert "x-hotswap-adapter" not in answer.headers


INTEGERS: list[tuple[str, str, dict[str, Any]]] = [
    *((CHAT, name, {}) for name in ("max_tokens", "max_completion_tokens", "n", "seed", "top_k", "min_tokens")),
    (CHAT, "top_logprobs", {"logprobs": True}),
    (CHAT, "truncate_prompt_tokens", {}),
    *((TEXT, name, {}) for name in ("max_tokens", "n", "best_of", "seed", "top_k", "min_tokens", "logprobs")),
    ("/tokenize", "truncate_prompt_tokens", {}),
]


@pytest.mark.parametrize(("path", "name", "more"), INTEGERS, ids=str)
def test_integers(server: Live, path: str, name: str, more: dict[str, Any]) -> None:
    good = {"messages": HELLO} if path == CHAT else {"prompt": "x"}
    body = {**good, "max_tokens": 2, **more} if path != "/tokenize" else good
    assert server.post(path, {**body, name: 1.0}).status_code == 200
    for wrong in (1.5, True, "1", [1], 2**63, -(2**63) - 1, 10**4000, 1e300):
        error = error_of(server.post(path, {**body, name: wrong}))
        assert (error["param"], len(error["message"]) < 100) == (name, True)
        assert error["message"].startswith(f"{name}: must be ")
    with server.http() as http:
        for digits in (b"1e999", b"-1e999", b"9" * 5000):
            content = json.dumps({**body, name: 0}).encode().replace(b'": 0}', b'": ' + digits + b"}")
            assert len(error_of(http.post(path, content=content))["message"]) < 200


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "prompt"])
def test_lists_of_integers(server: Live, name: str) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    assert server.post(TEXT, {**body, name: [5.0, 6]}).status_code == 200
    for wrong in ([5, 6.5], [2**64], [10**4000], [-1], [1e300], [300_000]):
        error = error_of(server.post(TEXT, {**body, name: wrong}))
        assert error["param"].partition("[")[0] == name
        assert len(error["message"]) < 100
    assert server.post("/detokenize", {"tokens": [72.0, 73]}).json() == {"prompt": "ij"}


@pytest.mark.parametrize("penalty", [1e-320, 1e-30, 1e-5, 0.0099])
def test_a_repetition_penalty_near_zero(server: Live, penalty: float) -> None:
    error = error_of(server.post(TEXT, {"prompt": "x", "repetition_penalty": penalty}))
    assert error["message"] == "repetition_penalty: must be at least 0.01"


FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


@pytest.mark.parametrize("name", FLOATS)
def test_floats(server: Live, name: str) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    assert server.post(TEXT, {**body, name: 1}).status_code == 200
    for wrong in (True, "1", [1], 1e308, -1e308, 10**400, 10**4000, -(10**4000)):
        error = error_of(server.post(TEXT, {**body, name: wrong}))
        assert (error["param"], len(error["message"]) < 100) == (name, True)
        assert error["message"].startswith(f"{name}: must be ")


@pytest.mark.parametrize("temperature", [0, 1e-320, 2])
@pytest.mark.parametrize("penalty", [0.01, 10])
def test_extreme_numbers_that_are_served(server: Live, temperature: float, penalty: float) -> None:
    body = {"prompt": "xyxyxy", "max_tokens": 20, "repetition_penalty": penalty, "temperature": temperature}
    extreme = {"top_k": 2**63 - 1, "top_p": 1e-320, "min_p": 1e-320, "frequency_penalty": -2, "logprobs": 3}
    for more in ({}, extreme):
        answer = server.post(TEXT, {**body, **more, "logit_bias": {"5": 100, "6": -100}})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("key", ["x" * 100_000, "01", "+1", "-1", "1.0", " 1", "\uff11", "9" * 5000, ""])
def test_a_wrong_logit_bias_names_its_key(server: Live, key: str) -> None:
    error = error_of(server.post(TEXT, {"prompt": "x", "logit_bias": {"5": 1, key: 1}}))
    assert error["param"] == "logit_bias"
    assert ascii(key)[:60] in error["message"]
    assert len(error["message"]) < 200


@pytest.mark.parametrize("value", ["x", None, [], True, 10**400, -101, "x" * 100_000])
def test_a_wrong_logit_bias_names_the_key_of_its_value(server: Live, value: Any) -> None:
    error = error_of(server.post(TEXT, {"prompt": "x", "logit_bias": {"5": 1, "77": value}}))
    assert error["message"] == "logit_bias: the value of the key '77' must be a number between -100 and 100"


@pytest.mark.parametrize("model", ["nobody", "nobody@1", "lora@2", "lora@x", "tiny:nobody", "", "x" * 512, "../../etc"])
def test_an_unknown_model(server: Live, model: str) -> None:
    for path, body in ((CHAT, {"messages": HELLO}), (TEXT, {"prompt": "x"})):
        error = error_of(server.post(path, {"model": model, **body}), 404 if model else 400)
        assert error["param"] == "model"
        assert error["code"] == ("model_not_found" if model else None)


def test_the_error_classes_of_the_official_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody", messages=HELLO)  # type: ignore[arg-type]
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=BASE, prompt="x", temperature=9)
    assert wrong.value.param == "temperature"


@pytest.mark.parametrize("model", [BASE, "lora", "prefix"])
def test_too_long_a_prompt_is_refused_in_openais_words(server: Live, model: str) -> None:
    error = error_of(server.post(TEXT, {"model": model, "prompt": [5] * MAX_LEN}))
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(
        f"This model's maximum context length is {MAX_LEN} tokens. However, your prompt resulted in {MAX_LEN} tokens"
    )
    long_chat = {"model": model, "messages": [{"role": "user", "content": "x" * (MAX_LEN + 1)}]}
    error = error_of(server.post(CHAT, long_chat))
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"


def test_prompt_and_completion_together_are_too_long(server: Live) -> None:
    error = error_of(server.post(TEXT, {"model": BASE, "prompt": [5] * 100, "max_tokens": MAX_LEN}))
    assert f"you requested {MAX_LEN + 100} tokens (100 in the prompt, {MAX_LEN} in the completion)" in error["message"]


def test_virtual_tokens_take_room(server: Live) -> None:
    fits = {"prompt": [5] * 100, "max_tokens": MAX_LEN - 100 - 5, "logit_bias": {"258": 100}}
    assert server.post(TEXT, {"model": "prefix", **fits}).status_code == 200
    error = error_of(server.post(TEXT, {"model": "prefix", **fits, "max_tokens": MAX_LEN - 100 - 4}))
    assert "the adapter itself takes 5" in error["message"]


def test_a_text_that_can_never_fit_is_not_even_tokenised(server: Live) -> None:
    error = error_of(server.post(TEXT, {"model": BASE, "prompt": "x" * 4_000_000}))
    assert "at least" in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_too_large_a_body(server: Live) -> None:
    body = json.dumps({"model": BASE, "prompt": "x" * (9 << 20)}).encode()
    with server.http() as http:
        announced = http.post(TEXT, content=body)
        chunked = http.post(TEXT, content=(body[i : i + 65536] for i in range(0, len(body), 65536)))
    for response in (announced, chunked):
        error = error_of(response, 413)
        assert error["code"] == "body_too_large"
        assert "8 MiB" in error["message"]


def test_a_form_where_json_belongs(server: Live) -> None:
    with server.http() as http:
        error_of(http.post(TEXT, files={"prompt": b"x"}), 415)


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nothing", "/v2/chat/completions", "/docs", "/openapi.json"])
def test_no_such_route(server: Live, path: str) -> None:
    with server.http() as http:
        assert error_of(http.get(path), 404)["code"] == "not_found"


def test_wrong_method(server: Live) -> None:
    with server.http() as http:
        response = http.get(TEXT)
        error = error_of(response, 405)
    assert error["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


def test_a_list_of_a_million_mistakes_makes_a_short_error(server: Live) -> None:
    response = server.post(TEXT, {"model": BASE, "prompt": [["x"]] * 500_000})
    error_of(response)
    assert len(response.content) < 1000
    response = server.post(CHAT, {"model": BASE, "messages": [{}] * 500_000})
    error_of(response)
    assert len(response.content) < 1000


def test_mistakes_leave_the_others_alone(server: Live, client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "lora", "prompt": "x", "max_tokens": 300, "seed": 1, "extra_body": STEADY}
    with slow_steps():
        stream = client.completions.create(stream=True, **asked)
        texts = [next(iter(stream)).choices[0].text]
        for path, change, _ in CASES[:12]:
            server.post(path, {"model": BASE, "messages": HELLO, "prompt": "x"} | change)
        assert server.stats.num_running == 1, "it still runs"
    texts += [chunk.choices[0].text for chunk in stream]
    alone = client.completions.create(**asked)
    assert "".join(texts) == alone.choices[0].text
    server.wait_idle()
    assert server.stats.num_waiting == 0
