"""Several adapters on one request, over HTTP: what answers, what is said and counted, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig

from tests import oracle
from tests.bounds import HIDDEN, LOGITS
from tests.combinations import peft_weighted
from tests.factory import make_adapter
from tests.server.api.pooling.classifiers import make_classifier, weighted_outputs
from tests.server.api.support import BASE, STEADY, archive, error_of, events
from tests.server.live import Live, live_server, slow_steps, wait_until

BOTH = "law:0.7+tone:-0.5"
BODY = {"prompt": "who?", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("combined")
    configs: dict[str, Any] = {
        "law": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        "tone": LoraConfig(r=2, use_rslora=True, target_modules=["v_proj", "down_proj"], task_type="CAUSAL_LM"),
        "law-2": LoraConfig(r=8, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"),
        "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
        "ia3": IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    }
    made = {
        name: make_adapter(base, root / name, config, seed=i, std=0.3)
        for i, (name, config) in enumerate(configs.items())
    }
    for seed, (name, labels) in enumerate({"mood": 3, "spam": 2}.items()):
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_CLS")
        made[name] = make_classifier(base, root / name, config, labels, seed=seed)
    return made


@pytest.fixture(scope="module")
def live(base: Path, made: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    adapters = [(name, str(made[name])) for name in ("law", "tone", "prefix", "ia3", "mood", "spam")]
    adapters.append(("tone-2", str(made["tone"])))
    settings: dict[str, Any] = {"max_combinations": 3, "max_combined": 3}
    with live_server(base, tmp_path_factory.mktemp("data"), adapters=adapters, **settings) as server:
        yield server
        server.wait_idle()
        server.on_loop(server.context.residency.check_integrity)


@pytest.fixture
def upload(live: Live, made: dict[str, Path], tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Upload a package under a name, which is gone after the test."""
    names = set()

    def put(name: str, package: str) -> None:
        with live.http() as http:
            answer = http.put(f"/v1/adapters/{name}", files={"f": archive(made[package], tmp_path)})
            assert answer.status_code in (200, 201), answer.text
        names.add(name)

    yield put
    with live.http() as http:
        for name in names:
            http.delete(f"/v1/adapters/{name}", params={"mode": "force"})


def ask(live: Live, model: str, **fields: Any) -> tuple[str, str]:
    """Which versions answered, and the text."""
    response = live.post("/v1/completions", {"model": model, **BODY, **fields})
    assert response.status_code == 200, response.text
    said = response.headers["x-hotswap-adapter"]
    assert response.json()["system_fingerprint"].endswith(f":{said}")
    return said, response.json()["choices"][0]["text"]


def wanted(live: Live, base: Path, made: dict[str, Path], path: Path, **weights: float) -> str:
    merged = peft_weighted(base, [(made[name], weight) for name, weight in weights.items()], path)
    text = live.context.text
    return text.decode(
        oracle.greedy(merged, None, text.encode("who?", add_special_tokens=True), 8), skip_special_tokens=True
    )


def test_it_answers_as_pefts_weighted_adapters_do_however_it_is_asked(
    live: Live, base: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    want = wanted(live, base, made, tmp_path / "want", law=0.7, tone=-0.5)
    assert ask(live, BOTH) == ("law@1:0.7+tone@1:-0.5", want)
    assert ask(live, f"{BASE}:law@1:0.7+tone:-0.5") == ("law@1:0.7+tone@1:-0.5", want)
    members = [{"name": "law", "weight": 0.7}, {"name": "tone", "weight": -0.5}]
    for model in ({}, {"model": BASE}, {"model": BOTH}):
        response = live.post("/v1/completions", {**BODY, **model, "adapters": members})
        assert response.headers["x-hotswap-adapter"] == "law@1:0.7+tone@1:-0.5"
        assert response.json()["model"] == BOTH
        assert response.json()["choices"][0]["text"] == want
    alone = ask(live, "law")
    assert alone[0] == "law@1"
    assert ask(live, "law:1") == alone
    assert ask(live, "law+tone:0")[1] == alone[1] != want
    assert ask(live, "law:0")[1] == live.post("/v1/completions", {"model": BASE, **BODY}).json()["choices"][0]["text"]


def test_it_is_mixed_with_everything_else(live: Live) -> None:
    models = [BOTH, "law", "prefix", "tone:2+law", "ia3", BOTH, "tone", "law+tone"]
    alone = [ask(live, model) for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        assert list(pool.map(lambda model: ask(live, model), models)) == alone
    assert len({text for _, text in alone}) == len(set(models))


def test_chats_streams_and_tokens(live: Live) -> None:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        settings: dict[str, Any] = {"messages": [{"role": "user", "content": "who?"}], "max_tokens": 6, "seed": 1}
        whole = client.chat.completions.create(model=BOTH, **settings)
        chunks = list(client.chat.completions.create(model=BOTH, stream=True, **settings))
        assert client.models.retrieve(BOTH).id == BOTH
    assert whole.model == chunks[0].model == BOTH
    assert whole.system_fingerprint == chunks[-1].system_fingerprint
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert live.post("/tokenize", {"model": BOTH, "prompt": "who?"}).json()["count"] > 0


CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "who?"}], "max_tokens": 6, "temperature": 0}
MEMBERS = [{"name": "law", "weight": 0.7}, {"name": "tone", "weight": -0.5}]
WRITING: dict[str, tuple[dict[str, Any], Callable[[Any], str]]] = {
    "/v1/chat/completions": (CHAT, lambda body: body["choices"][0]["message"]["content"]),
    "/v1/chat/completions/batch": (
        {**CHAT, "messages": [CHAT["messages"]] * 2},
        lambda body: body["choices"][1]["message"]["content"],
    ),
    "/v1/responses": (
        {"input": "who?", "max_output_tokens": 6, "temperature": 0},
        lambda body: body["output"][0]["content"][0]["text"],
    ),
    "/v1/messages": (CHAT, lambda body: body["content"][0]["text"]),
}


def test_every_endpoint_that_writes_takes_them(live: Live) -> None:
    alone = live.post("/v1/chat/completions", {**CHAT, "model": "law"}).json()["choices"][0]["message"]["content"]
    told = set()
    for path, (body, text) in WRITING.items():
        for named in ({"model": BOTH}, {"model": BASE, "adapters": MEMBERS}):
            answer = live.post(path, {**body, **named})
            assert answer.status_code == 200, answer.text
            assert answer.headers["x-hotswap-adapter"] == "law@1:0.7+tone@1:-0.5"
            told.add(text(answer.json()))
    assert len(told) == 1
    assert told != {alone}


def test_every_endpoint_that_counts_takes_them(live: Live) -> None:
    for named in ({"model": BOTH}, {"model": BASE, "adapters": MEMBERS}):
        assert live.post("/tokenize", {**named, "prompt": "who?"}).json()["count"] == 4
        assert live.post("/detokenize", {**named, "tokens": [65]}).json()["prompt"]
        counts = [
            live.post(path, {**named, **fields}).json()["input_tokens"]
            for path, fields in (
                ("/v1/messages/count_tokens", {"messages": CHAT["messages"]}),
                ("/v1/responses/input_tokens", {"input": "who?"}),
            )
        ]
        assert counts[0] == counts[1] > 4


def test_batches_take_them(live: Live) -> None:
    asked: list[dict[str, Any]] = [{"model": BOTH}, {"adapters": MEMBERS}, {"model": "law+prefix"}]
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": {**BODY, **named}}
        for i, named in enumerate(asked)
    ]
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        rows = "".join(json.dumps(line) + "\n" for line in lines).encode()
        file = client.files.create(file=("b.jsonl", rows), purpose="batch")
        id = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h").id
        wait_until(lambda: client.batches.retrieve(id).status == "completed", "the batch to end")
        done = client.batches.retrieve(id)
        answers = [json.loads(line) for line in client.files.content(done.output_file_id or "").text.splitlines()]
        errors = [json.loads(line) for line in client.files.content(done.error_file_id or "").text.splitlines()]
    texts = {answer["response"]["body"]["choices"][0]["text"] for answer in answers}
    assert (len(answers), texts) == (2, {ask(live, BOTH)[1]})
    assert [error["response"]["status_code"] for error in errors] == [400]


def test_embeddings_and_scores_are_those_of_pefts_weighted_adapter(
    live: Live, base: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    texts = ["who?", "a longer one"]
    ids = [live.context.text.encode(text, add_special_tokens=True) for text in texts]
    merged = peft_weighted(base, [(made["law"], 0.7), (made["tone"], -0.5)], tmp_path / "merged")
    want = torch.stack([oracle.hidden(merged, None, one)[-1] for one in ids])
    for named in ({"model": BOTH}, {"model": BASE, "adapters": MEMBERS}):
        answer = live.post("/v1/embeddings", {**named, "input": texts, "normalize": False}).json()
        found = torch.tensor([entry["embedding"] for entry in answer["data"]])
        torch.testing.assert_close(found, want, rtol=0, atol=HIDDEN)
        cosine = torch.nn.functional.cosine_similarity(want[0], want[1], dim=0)
        score = live.post("/v1/score", {**named, "text_1": texts[0], "text_2": texts[1]}).json()["data"][0]["score"]
        assert score == pytest.approx(float(cosine), abs=HIDDEN)
        ranked = live.post("/v1/rerank", {**named, "query": texts[0], "documents": texts}).json()["results"]
        assert [result["index"] for result in ranked] == [0, 1]


def test_one_of_them_may_have_a_head(live: Live, base: Path, made: dict[str, Path]) -> None:
    ids = live.context.text.encode("who?", add_special_tokens=True)
    want = weighted_outputs(base, (made["mood"], 0.5), [(made["law"], 1.0)], 3, ids)
    alone = weighted_outputs(base, (made["mood"], 1.0), [], 3, ids)
    assert float((want - alone).abs().max()) > 8 * LOGITS
    for model in ("mood:0.5+law", "law+mood:0.5"):
        body = {"model": model, "input": "who?", "use_activation": False}
        (entry,) = live.post("/v1/classify", body).json()["data"]
        torch.testing.assert_close(torch.tensor(entry["probs"]), want, rtol=0, atol=4 * LOGITS)
        assert entry["num_classes"] == 3
        data = live.post("/pooling", body).json()["data"][0]["data"]
        torch.testing.assert_close(torch.tensor(data), want, rtol=0, atol=4 * LOGITS)
    for path, fields in (("/v1/classify", {"input": "x"}), ("/v1/score", {"text_1": "a", "text_2": "b"})):
        error = error_of(live.post(path, {"model": "law+mood+spam", **fields}))
        assert "spam@1 cannot be combined" in error["message"]
        assert "has a head of its own, and so has mood@1" in error["message"]
    error = error_of(live.post("/v1/completions", {**BODY, "model": "mood+law"}))
    assert "/v1/classify" in error["message"]
    assert "head" in error_of(live.post("/v1/classify", {"model": BOTH, "input": "x"}))["message"]


def test_each_member_is_counted(live: Live, upload: Callable[[str, str], None]) -> None:
    upload("first", "law")
    upload("second", "tone")
    ask(live, "first:0.7+second")
    ask(live, "second")
    text = httpx.get(f"{live.url}/metrics").text
    for name, count in (("first", 1), ("second", 2)):
        labels = f'adapter="{name}",finish_reason="length",model="{BASE}",version="1"'
        assert f"hotswap_requests_total{{{labels}}} {count}.0" in text
        assert f'hotswap_generation_tokens_total{{adapter="{name}",model="{BASE}",version="1"}} {8 * count}.0' in text
    assert "first+" not in text


def test_a_swap_during_a_request_changes_the_next_one(live: Live, upload: Callable[[str, str], None]) -> None:
    upload("swapped", "law")
    model, fields = "swapped:0.7+tone:-0.5", {**STEADY, "max_tokens": 200}
    before, body = ask(live, model, **fields), {**BODY, **fields, "model": model, "stream": True}
    with live.http() as http, ExitStack() as stack:
        with slow_steps():
            it = stack.enter_context(http.stream("POST", "/v1/completions", json=body))
            lines = it.iter_lines()
            said, text = it.headers["x-hotswap-adapter"], [next(lines)]
            upload("swapped", "law-2")
            assert live.stats.num_running == 1, "it still runs"
        text += list(lines)
    pieces = [json.loads(line.removeprefix("data: ")) for line in text if line.startswith("data: {")]
    assert (said, "".join(piece["choices"][0]["text"] for piece in pieces)) == before
    after = ask(live, model, **fields)
    assert after[0] == "swapped@2:0.7+tone@1:-0.5"
    assert after[1] != before[1]


def test_a_member_that_is_taken_away_by_force_ends_its_requests(live: Live, upload: Callable[[str, str], None]) -> None:
    upload("brief", "law")
    body = {**BODY, **STEADY, "model": "brief+tone", "max_tokens": 1500, "stream": True}
    with slow_steps(), live.http() as http, http.stream("POST", "/v1/completions", json=body) as it:
        lines = it.iter_lines()
        next(lines)
        with live.http() as other:
            assert other.delete("/v1/adapters/brief", params={"mode": "force"}).status_code == 200
        last = [line for line in lines if line.startswith("data: {")][-1]
    assert "removed" in json.loads(last.removeprefix("data: "))["error"]["message"]
    error_of(live.post("/v1/completions", {"model": "brief+tone", **BODY}), 404)
    live.wait(lambda: not any("brief" in str(key) for key in live.context.engine.resident), "its memory")


def test_many_weights_stay_few_in_memory(live: Live) -> None:
    for i in range(12):
        ask(live, f"law:{i + 2}+tone", max_tokens=1)
    live.wait(lambda: sum(bool(key.members) for key in live.context.engine.resident) <= 3, "others to leave")


def test_canaries_are_drawn_for_each_member_and_stick(live: Live, upload: Callable[[str, str], None]) -> None:
    upload("drawn", "law")
    upload("other", "law")
    with live.http() as http:
        for name in ("drawn", "other"):
            upload(name, "law-2")
            for change in ({"version": 1}, {"canary": {"version": 2, "weight": 0.5}}):
                assert http.patch(f"/v1/adapters/{name}", json=change).status_code == 200
    users = [f"user-{i}" for i in range(12)]
    alone = {user: [ask(live, name, user=user, max_tokens=1)[0] for name in ("drawn", "other")] for user in users}
    together = {user: ask(live, "drawn+other", user=user, max_tokens=1)[0] for user in users}
    assert together == {user: "+".join(said) for user, said in alone.items()}
    assert len(set(together.values())) > 1


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "law+prefix"}, 400, "prefix@1 cannot be combined.*virtual tokens"),
    ({"model": "law+ia3:0.5"}, 400, "ia3@1 cannot be combined.*otherwise than by adding"),
    ({"model": f"law+{BASE}"}, 400, "is the base of every combination"),
    ({"model": "law+law:0.5"}, 400, "named twice"),
    ({"model": "law+tone+tone-2+ia3"}, 400, "one request may combine 3"),
    ({"model": "law:1000+tone"}, 400, "from -100 to 100"),
    ({"model": "law+nobody:0.5"}, 404, "nobody"),
    ({"model": "law+"}, 404, "does not exist"),
    ({"model": "law+tone@7"}, 404, "no version"),
    ({"adapters": [{"name": "law", "weight": 1e9}]}, 400, "100"),
    ({"adapters": [{"name": "law+tone"}]}, 400, "one adapter"),
    ({"adapters": [{"weight": 1}]}, 400, "name"),
    ({"adapters": ["law"]}, 400, "object"),
    ({"adapters": "law"}, 400, "list"),
    ({"adapters": [{"name": "law"}] * 65}, 400, "64"),
    ({"adapters": [{"name": "law"}], "model": "tone"}, 400, "leave one of them out"),
    ({"adapters": [{"name": "law"}], "adapter_id": "tone"}, 400, "leave `lora_path` and `adapter_id` out"),
    ({"model": BASE, "merged_adapters": {"ids": ["law"]}}, 400, "adapters"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "told"), REFUSED)
def test_what_is_refused_and_why(live: Live, fields: dict[str, Any], status: int, told: str) -> None:
    for path, prompt in (
        ("/v1/completions", {"prompt": "who?"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "who?"}]}),
    ):
        error = error_of(live.post(path, {**prompt, "max_tokens": 1, **fields}), status)
        assert re.search(told, error["message"]), error
    streamed = live.post("/v1/completions", {"prompt": "who?", "stream": True, **fields})
    assert streamed.status_code == status


def test_a_key_needs_every_member_and_limits_hold_for_each(base: Path, made: dict[str, Path], tmp_path: Path) -> None:
    adapters = [(name, str(made[name])) for name in ("law", "tone")]
    with live_server(base, tmp_path / "data", adapters=adapters, admin_key=["a" * 32], adapter_rpm=2) as keyed:
        with keyed.http(authorization=f"Bearer {'a' * 32}") as admin:
            key = admin.post("/v1/keys", json={"name": "one", "scopes": ["inference"], "adapters": ["law"]}).json()
            everything = admin.post("/v1/keys", json={"name": "all", "scopes": ["inference"]}).json()
        with keyed.http(authorization=f"Bearer {key['key']}") as one:
            for model in (BOTH, "tone:2+law", "law+nobody"):
                refused = error_of(one.post("/v1/completions", json={"model": model, **BODY}), 404)
                assert "law" not in refused["message"]
            assert one.post("/v1/completions", json={"model": "law:2", **BODY}).status_code == 200
        with keyed.http(authorization=f"Bearer {everything['key']}") as http:
            assert http.post("/v1/completions", json={"model": BOTH, **BODY}).status_code == 200
            limited = http.post("/v1/completions", json={"model": BOTH, **BODY})
            assert "model 'law'" in error_of(limited, 429)["message"]
            answers = [http.post("/v1/completions", json={"model": "tone", **BODY}) for _ in range(2)]
            assert answers[0].status_code == 200
            assert "model 'tone'" in error_of(answers[1], 429)["message"]


def test_events_are_those_of_any_model(live: Live) -> None:
    told = events(live, "/v1/completions", {"model": BOTH, **BODY, "stream_options": {"include_usage": True}})
    assert told[-1]["usage"]["completion_tokens"] == 8
    assert {event["model"] for event in told} == {BOTH}
