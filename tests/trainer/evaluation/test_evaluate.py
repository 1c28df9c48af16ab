"""Evaluation against a real server of a tiny base: over a socket, with the engine behind it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bases.tool_text import template_tool
from tests.factory import make_tokenizer
from tests.server.live import Live, live_server
from trainer.data.messages import Message, Question
from trainer.errors import EvaluationError
from trainer.evaluation.evaluate import TOO_LONG, chat_fields, evaluate
from trainer.evaluation.scoring import compare
from trainer.serving.client import Endpoint, InferenceClient

PROMPTS = ("hello", "what is red", "1 2 3", "some more words here")


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    adapters = (("lora", str(tiny_adapters["lora-r8"])),)
    with live_server(
        tiny_base, tmp_path_factory.mktemp("data"), engine={"dtype": "float32"}, adapters=adapters
    ) as live:
        yield live


def base_of(server: Live) -> Endpoint:
    return Endpoint(server.url, str(server.context.base_name))


def chat(text: str, reference: str = "x") -> Question:
    return Question((Message("user", text),), None, reference)


def asked(server: Live, model: str, text: str, most: int) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": most}
    return str(server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"])


def test_answers_are_those_that_any_client_gets(server: Live) -> None:
    answers = [asked(server, "lora", text, 6) for text in PROMPTS]
    questions = [chat(text, answer) for text, answer in zip(PROMPTS, answers, strict=True)]
    questions[1] = chat(PROMPTS[1], "something else")
    seen: list[tuple[int, int]] = []
    endpoint = Endpoint(server.url + "/v1/", "lora")
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    found = evaluate(endpoint, questions, ["exact_match"], max_tokens=6, concurrency=3, progress=progress)
    assert [answer.text for answer in found.answers] == answers
    assert [answer.per_row for answer in found.answers] == [{"exact_match": hit} for hit in (1.0, 0.0, 1.0, 1.0)]
    assert found.scores["exact_match"].value == 0.75
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.cut == sum(answer.finish_reason == "length" for answer in found.answers) > 0
    assert found.tokens_per_second > 0


CALL = '{"name": "f", "arguments": {"x": 1}}'
CALLED = (Message("user", "a"), Message("assistant", "", calls=(CALL,)), Message("tool", "b"), Message("user", "c"))


def test_tools_are_sent_beside_messages(server: Live) -> None:
    question = Question(CALLED, None, CALL, tools=(template_tool({"name": "f"}),))
    answers = evaluate(base_of(server), [question], ["perplexity"], max_tokens=3).answers
    assert answers[0].per_row["perplexity"] > 1
    sent = chat_fields(question)
    (call,) = sent["messages"][1]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"x": 1}
    assert call["id"] == sent["messages"][2]["tool_call_id"]
    spoken = Question((Message("user", "a"), Message("assistant", "", calls=("f(1)",))), None, "x")
    assert chat_fields(spoken)["messages"][1] == {"role": "assistant", "content": "f(1)"}


def test_a_plain_prompt_is_sent_as_it_is(server: Live) -> None:
    body = {"model": "lora", "prompt": "red and", "temperature": 0, "max_tokens": 5}
    wanted = server.post("/v1/completions", body).json()["choices"][0]["text"]
    found = evaluate(Endpoint(server.url, "lora"), [Question(None, "red and", wanted)], ["exact_match"], max_tokens=5)
    assert found.answers[0].text == wanted


def test_max_tokens_follows_the_longest_reference(server: Live) -> None:
    questions = [chat("a", "four"), chat("b", "ten bytes!")]  # one token a byte
    default, given = (
        evaluate(base_of(server), questions, ["exact_match"], max_tokens=most) for most in (None, 10 * 3 // 2 + 16)
    )
    assert default.answers == given.answers
    assert given.cut == 2  # a random base rambles
    assert evaluate(base_of(server), questions, ["exact_match"], max_tokens=400).answers != given.answers


@pytest.mark.parametrize("model", ["base", "lora"])
def test_perplexity_is_that_of_a_forward_pass(
    server: Live, tiny_base: Path, tiny_adapters: Mapping[str, Path], model: str
) -> None:
    from peft import PeftModel

    tokenizer = make_tokenizer()
    network: Any = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    if model == "lora":
        network = PeftModel.from_pretrained(network, tiny_adapters["lora-r8"])
    network.eval()
    questions = [chat(text, f"answer {text}") for text in PROMPTS] + [Question(None, "plain text", " and more")]
    questions.append(Question(None, "", "a text alone"))
    total, count, each = 0.0, 0, []
    for question in questions:
        if question.messages:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": question.messages[0].content}], add_generation_prompt=True, tokenize=False
            )
            ids = tokenizer(prompt, add_special_tokens=False).input_ids
        else:
            ids = tokenizer(question.prompt, add_special_tokens=True).input_ids
        reference = tokenizer(question.reference, add_special_tokens=False).input_ids
        with torch.no_grad():
            logprobs = network(torch.tensor([ids + reference])).logits[0].double().log_softmax(-1)
        places = [at for at in range(len(ids), len(ids) + len(reference)) if at > 0]
        nll = -sum(float(logprobs[at - 1, (ids + reference)[at]]) for at in places)
        total, count = total + nll, count + len(places)
        each.append(math.exp(nll / len(places)))
    name = base_of(server).model if model == "base" else model
    found = evaluate(Endpoint(server.url, name), questions, ["perplexity"], max_tokens=1)
    assert found.scores["perplexity"].value == pytest.approx(math.exp(total / count), rel=1e-4)
    assert [answer.per_row["perplexity"] for answer in found.answers] == pytest.approx(each, rel=1e-4)


def test_two_models_on_the_same_rows_can_be_compared(server: Live) -> None:
    questions = [chat(text, asked(server, "lora", text, 4)) for text in PROMPTS]
    ours, theirs = (
        evaluate(Endpoint(server.url, model), questions, ["exact_match", "perplexity"], max_tokens=4)
        for model in ("lora", base_of(server).model)
    )
    found = compare(ours, theirs).differences
    assert found["exact_match"].candidate == 1.0
    assert found["exact_match"].difference == 1.0 - theirs.scores["exact_match"].value
    assert found["perplexity"].difference == ours.scores["perplexity"].value - theirs.scores["perplexity"].value != 0
    assert not found["perplexity"].higher_is_better


def test_a_prompt_beyond_the_context_counts_as_an_empty_answer(server: Live) -> None:
    found = evaluate(base_of(server), [chat("a" * 600), chat("b")], ["exact_match", "perplexity"], max_tokens=4)
    assert [answer.finish_reason == TOO_LONG for answer in found.answers] == [True, False]
    assert found.scores["exact_match"].count == 2
    assert found.scores["perplexity"].count == 1
    with pytest.raises(EvaluationError, match="no question fits the context"):
        evaluate(base_of(server), [chat("a" * 600)], ["exact_match"], max_tokens=4)


def test_an_answer_takes_what_room_the_context_has(server: Live) -> None:
    found = evaluate(base_of(server), [chat("a" * 450)], ["exact_match"], max_tokens=400)
    assert found.answers[0].finish_reason in ("stop", "length")


def test_an_unknown_model_is_told_in_the_server_s_words(server: Live) -> None:
    with pytest.raises(EvaluationError, match=r"the server refused \(404\): .*'lara'"):
        evaluate(Endpoint(server.url, "lara"), [chat("a")], ["exact_match"], max_tokens=4)


def test_no_rows_are_refused(server: Live) -> None:
    with pytest.raises(EvaluationError, match="there are no rows"):
        evaluate(base_of(server), [], ["exact_match"], max_tokens=4)


def test_a_key_that_is_missing_or_wrong_is_told_with_where_to_give_it(tiny_base: Path, tmp_path: Path) -> None:
    with live_server(tiny_base, tmp_path, api_key="right") as live:
        for key in (None, "wrong"):
            endpoint = Endpoint(live.url, str(live.context.base_name), key)
            with pytest.raises(EvaluationError, match=r"\(401\).*give a key with --api-key or HOTSWAP_API_KEY"):
                evaluate(endpoint, [chat("a")], ["exact_match"], max_tokens=2)
        endpoint = Endpoint(live.url, str(live.context.base_name), "right")
        assert len(evaluate(endpoint, [chat("a")], ["exact_match"], max_tokens=2).answers) == 1


def test_a_server_that_is_not_there_is_told(unused_tcp_port: int) -> None:
    with pytest.raises(EvaluationError, match="cannot be reached"):
        evaluate(Endpoint(f"http://127.0.0.1:{unused_tcp_port}", "m"), [chat("a")], ["exact_match"], max_tokens=2)
    for url in ("localhost:80", "ftp://x", "http://"):
        with pytest.raises(EvaluationError, match=r"not a server address|cannot be reached"):
            evaluate(Endpoint(url, "m"), [chat("a")], ["exact_match"], max_tokens=2)


def test_a_full_queue_is_waited_for(tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "server.requests")
    engine = {"max_num_seqs": 1}
    with live_server(tiny_base, tmp_path, engine=engine, max_waiting_requests=1) as live:
        questions = [chat(f"question {i}") for i in range(6)]
        endpoint = Endpoint(live.url, str(live.context.base_name))
        found = evaluate(endpoint, questions, ["exact_match"], max_tokens=40, concurrency=6)
        assert all(answer.finish_reason in ("stop", "length") for answer in found.answers)
    statuses = [record.fields["status"] for record in caplog.records if hasattr(record, "fields")]
    assert 429 in statuses  # the queue was full indeed


class _Scripted(BaseHTTPRequestHandler):
    """A server that answers as ``script`` says, one entry a request, the last for ever: what ours does in trouble."""

    script: list[tuple[int, dict[str, str], bytes]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, headers, body = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def scripted() -> Iterator[tuple[Endpoint, list[tuple[int, dict[str, str], bytes]]]]:
    script: list[tuple[int, dict[str, str], bytes]] = []
    handler = type("Handler", (_Scripted,), {"script": script})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Endpoint(f"http://127.0.0.1:{server.server_address[1]}", "m"), script
        server.shutdown()
        thread.join()


def error(status: int, message: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": message, "code": "x"}}).encode()


GOOD = {
    "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}],
    "usage": {"completion_tokens": 1},
}
FINE: tuple[int, dict[str, str], bytes] = (200, {}, json.dumps(GOOD).encode())


def test_what_passes_is_tried_again(scripted: tuple[Endpoint, list[Any]]) -> None:
    endpoint, script = scripted
    script += [error(429, "busy", Retry_After="0"), error(503, "restarting", Retry_After="later"), (0, {}, b""), FINE]
    assert evaluate(endpoint, [chat("a")], ["exact_match"], max_tokens=2).scores["exact_match"].value == 1.0
    assert script == [FINE]


def test_an_answer_that_calls_is_read_as_text(scripted: tuple[Endpoint, list[Any]]) -> None:
    endpoint, answers = scripted
    calls = [{"function": {"name": "f", "arguments": said}} for said in ('{"x":1}', '{"x')]
    choice = {"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}
    body = json.dumps({"choices": [choice], "usage": {"completion_tokens": 3}}).encode()
    answers.append((200, {}, body))
    found = evaluate(endpoint, [Question(CALLED, None, CALL)], ["exact_match"], max_tokens=3)
    assert found.answers[0].text == f'{CALL}\n{{"name": "f", "arguments": "{{\\"x"}}'


def test_what_stays_is_told(scripted: tuple[Endpoint, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InferenceClient, "busy_seconds", 0.2)
    endpoint, script = scripted
    for answer, words in [
        (error(503, "the server is shutting down", Retry_After="0"), r"refused \(503\): the server is shutting down"),
        (error(500, "internal error"), r"refused \(500\): internal error"),
        ((0, {}, b""), "broke off"),
        ((200, {}, b"<html>"), "not like a hotswap server"),
        ((200, {}, b'{"choices": []}'), "not like a hotswap server"),
        ((502, {}, b"Bad Gateway"), "not like a hotswap server: 502"),
    ]:
        script[:] = [answer]
        with pytest.raises(EvaluationError, match=words) as caught:
            evaluate(endpoint, [chat("a"), chat("b")], ["exact_match"], max_tokens=2)
        assert "\n" not in str(caught.value)


def test_an_answer_that_takes_too_long_is_told(server: Live) -> None:
    with pytest.raises(EvaluationError, match=r"did not answer within 0\.001 s; .*--timeout"):
        evaluate(base_of(server), [chat("a")], ["exact_match"], max_tokens=400, timeout=0.001)
