"""An encoder-decoder over HTTP: completions and chat, streams, adapters that come and go while requests run."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapters.package.archive import pack
from tests.server.api.support import error_of, events
from tests.server.live import Live, live_server
from tests.server.model.seq2seq import support

ADAPTERS = ("lora-qv", "ia3", "prefix-5", "prompt-7")
QUESTION = "translate English to French: who are you?"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return support.make_seq2seq_base(tmp_path_factory.mktemp("bases") / "flan", **support.BASES["flan-t5"])


@pytest.fixture(scope="module")
def packages(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packages")
    return {name: support.make_seq2seq_adapter(base, root / name, name, seed=i) for i, name in enumerate(ADAPTERS)}


@pytest.fixture(scope="module")
def server(base: Path, packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    adapters = tuple((name, str(path)) for name, path in packages.items())
    engine = {"dtype": "float32", "block_size": 4}
    with live_server(base, tmp_path_factory.mktemp("data"), adapters=adapters, engine=engine) as live:
        yield live
        live.wait_idle()


def ask(server: Live, model: str, text: str = QUESTION, **options: Any) -> Any:
    body = {"model": model, "prompt": text, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **options}
    response = server.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    return response.json()


def expected(server: Live, base: Path, package: Path | None, text: str = QUESTION, count: int = 8) -> str:
    source = server.context.text.encode(text, add_special_tokens=True)
    assert source[-1] == support.EOS
    return server.context.text.decode(support.greedy(base, package, source, count), skip_special_tokens=True)


@pytest.mark.parametrize("name", ["flan", *ADAPTERS])
def test_completions_and_chat(name: str, server: Live, base: Path, packages: dict[str, Path]) -> None:
    want = expected(server, base, packages.get(name))
    completion = ask(server, name)
    assert completion["choices"][0]["text"] == want
    assert completion["usage"]["prompt_tokens"] == len(QUESTION) + 1
    assert completion["usage"]["completion_tokens"] == 8
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": QUESTION}]
    body = {"model": name, "messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    chat = server.post("/v1/chat/completions", body).json()
    assert chat["choices"][0]["message"]["content"] == want
    assert chat["usage"] == completion["usage"]


def test_all_adapters_at_once(server: Live, base: Path, packages: dict[str, Path]) -> None:
    rows = [(name, f"{QUESTION} {i}" * (1 + i % 3)) for i, name in enumerate(["flan", *ADAPTERS] * 3)]
    with ThreadPoolExecutor(len(rows)) as pool:
        answers = list(pool.map(lambda row: ask(server, *row)["choices"][0]["text"], rows))
    for (name, text), answer in zip(rows, answers, strict=True):
        assert answer == expected(server, base, packages.get(name), text)


def test_streams_say_what_the_whole_answer_says(server: Live) -> None:
    body: dict[str, Any] = {"model": "lora-qv", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    whole = ask(server, "lora-qv", max_tokens=12)["choices"][0]["text"]
    chunks = events(server, "/v1/completions", {**body, "prompt": QUESTION})
    assert "".join(c["choices"][0]["text"] for c in chunks) == whole
    chunks = events(server, "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": QUESTION}]})
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == whole


def test_several_choices_stops_seeds_and_logprobs(server: Live) -> None:
    sampled = [ask(server, "ia3", n=3, temperature=1.0, seed=5, max_tokens=20)["choices"] for _ in range(2)]
    assert [c["text"] for c in sampled[0]] == [c["text"] for c in sampled[1]]
    assert len({c["text"] for c in sampled[0]}) == 3
    whole = ask(server, "ia3", max_tokens=20)["choices"][0]["text"]
    stop = whole[5:7]
    stopped = ask(server, "ia3", max_tokens=20, stop=stop)["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    told = ask(server, "ia3", logprobs=2)["choices"][0]["logprobs"]
    assert len(told["token_logprobs"]) == 8
    assert all(value <= 0 for value in told["token_logprobs"])


def test_what_has_no_meaning_is_refused_in_words(server: Live) -> None:
    body = {"model": "flan", "prompt": QUESTION, "max_tokens": 4}
    assert ask(server, "flan", echo=True)["choices"][0]["text"].startswith(QUESTION)
    response = server.post("/v1/completions", {**body, "echo": True, "logprobs": 1})
    assert response.status_code == 400
    assert "encoder-decoder" in response.json()["error"]["message"]
    response = server.post("/v1/completions", {**body, "prompt_logprobs": 1})
    assert response.status_code == 400
    assert "encoder-decoder" in response.json()["error"]["message"]
    messages = [{"role": "system", "content": "be brief"}]
    response = server.post("/v1/chat/completions", {"model": "flan", "messages": messages})
    assert response.status_code == 400
    assert "last user message" in response.json()["error"]["message"]
    response = server.post("/v1/completions", {**body, "prompt": "x" * 3000})
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_conversation_without_a_template(server: Live) -> None:
    parts = [{"type": "text", "text": "who are"}, {"type": "text", "text": "you?"}]
    tokens = server.post("/tokenize", {"messages": [{"role": "user", "content": parts}]}).json()["tokens"]
    assert tokens == server.post("/tokenize", {"prompt": "who are\nyou?"}).json()["tokens"]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    for path in ("/tokenize", "/v1/chat/completions"):
        body = {"model": "flan", "messages": messages, "continue_final_message": True}
        error = error_of(server.post(path, body))
        assert "no answer can be continued" in error["message"]


def test_tokenize_says_what_the_encoder_reads(server: Live) -> None:
    messages = [{"role": "user", "content": "hi"}]
    tokens = server.post("/tokenize", {"messages": messages}).json()["tokens"]
    assert tokens == server.post("/tokenize", {"prompt": "hi"}).json()["tokens"]
    assert tokens[-1] == support.EOS


def test_adapters_come_and_go_while_requests_run(
    server: Live, base: Path, packages: dict[str, Path], tmp_path: Path
) -> None:
    better = support.make_seq2seq_adapter(base, tmp_path / "better", "lora-r4", seed=50)
    running, answers = threading.Event(), []

    def keep_asking() -> None:
        while not running.is_set():
            answers.append(ask(server, "prefix-5", max_tokens=16)["choices"][0]["text"])

    with ThreadPoolExecutor(2) as pool, server.http() as http:
        tasks = [pool.submit(keep_asking) for _ in range(2)]
        for package, make in ((packages["lora-qv"], http.post), (better, http.put)):
            pack(package, tmp_path / "package.tar")
            path = "/v1/adapters" if make == http.post else "/v1/adapters/task"
            files = {"file": ("p.tar", (tmp_path / "package.tar").read_bytes())}
            response = make(path, params={"name": "task"} if make == http.post else {}, files=files)
            assert response.status_code in (200, 201), response.text
            assert ask(server, "task")["choices"][0]["text"] == expected(server, base, package)
        assert http.delete("/v1/adapters/task").status_code == 200
        running.set()
        for task in tasks:
            task.result()
    assert set(answers) == {expected(server, base, packages["prefix-5"], count=16)}
    assert server.post("/v1/completions", {"model": "task", "prompt": "x"}).status_code == 404


def test_an_adapter_of_a_decoder_is_refused(server: Live, packages: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((packages["lora-qv"] / "adapter_config.json").read_text())
    files = {
        "adapter_config.json": json.dumps({**config, "task_type": "CAUSAL_LM"}).encode(),
        "adapter_model.safetensors": (packages["lora-qv"] / "adapter_model.safetensors").read_bytes(),
    }
    with server.http() as http:
        sent = {name: (name, data) for name, data in files.items()}
        response = http.post("/v1/adapters", params={"name": "wrong"}, files=sent)
    assert response.status_code in (400, 409, 422), response.text
    assert "decoder-only" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["flan", *ADAPTERS])
def test_outputs_follow_a_grammar(name: str, server: Live) -> None:
    answer = ask(server, name, guided_regex="[a-z]{2,6}!", max_tokens=20, n=3, temperature=1.0, seed=1)
    for choice in answer["choices"]:
        assert re.fullmatch("[a-z]{2,6}!", choice["text"]), choice
        assert choice["finish_reason"] == "stop"
