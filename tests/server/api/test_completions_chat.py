from __future__ import annotations

from pathlib import Path

import openai
import pytest
from transformers import AutoTokenizer

from server.text.tokenizer import TextProcessor
from tests import oracle
from tests.server.api.support import BASE, events
from tests.server.live import Live

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello, wörld"}]


def prompt_ids(base: Path) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids: list[int] = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    return ids


@pytest.mark.parametrize("model", [BASE, "lora", "prefix", "prompt"])
def test_greedy_answer_is_that_of_peft_alone(
    client: openai.OpenAI, base: Path, packages: dict[str, Path], model: str
) -> None:
    ids = prompt_ids(base)
    wanted = oracle.greedy(base, packages.get(model), ids, 12)
    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=12,
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].message.content == TextProcessor.load(base).decode(wanted)
    assert answer.object == "chat.completion"
    assert answer.model == model
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 12)
    assert answer.usage.total_tokens == len(ids) + 12


def test_says_which_version_answered(client: openai.OpenAI, server: Live) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="lora", messages=[{"role": "user", "content": "x"}], max_tokens=1
    )
    assert raw.headers["x-hotswap-adapter"] == "lora@1"
    assert raw.parse().system_fingerprint == f"fp_{server.context.engine.info.base_fingerprint[:12]}:lora@1"
    plain = client.chat.completions.with_raw_response.create(
        model=BASE, messages=[{"role": "user", "content": "x"}], max_tokens=1
    )
    assert "x-hotswap-adapter" not in plain.headers
    assert plain.headers["x-request-id"]


@pytest.mark.parametrize("model", ["lora@1", f"{BASE}:lora", f"{BASE}:lora@1"])
def test_other_ways_to_name_an_adapter(client: openai.OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=[{"role": "user", "content": "x"}], max_tokens=1
    )
    assert raw.headers["x-hotswap-adapter"] == "lora@1"
    assert raw.parse().model == model


def test_n_sequences_differ_and_a_seed_repeats_them(client: openai.OpenAI) -> None:
    def ask(seed: int, n: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=BASE, messages=[{"role": "user", "content": "hi"}], n=n, seed=seed, max_tokens=12
        )
        assert [choice.index for choice in answer.choices] == list(range(n))
        return [choice.message.content for choice in answer.choices]

    first = ask(7, 3)
    assert len(set(first)) == 3
    assert ask(7, 3) == first
    assert ask(8, 2) == first[1:]  # sequence i has seed + i


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    answers = {
        client.chat.completions.create(model=BASE, messages=[{"role": "user", "content": "hi"}], max_tokens=16)
        .choices[0]
        .message.content
        for _ in range(3)
    }
    assert len(answers) == 3


def test_logprobs(client: openai.OpenAI, base: Path) -> None:
    ids = prompt_ids(base)
    answer = client.chat.completions.create(
        model=BASE,
        messages=MESSAGES,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=3,
        extra_body={"ignore_eos": True},
    )
    expected = oracle.greedy(base, None, ids, 4)
    logprobs = oracle.logits(base, None, ids + expected).log_softmax(-1)[len(ids) - 1 : -1]
    content = answer.model_dump()["choices"][0]["logprobs"]["content"]
    assert [item["logprob"] for item in content] == pytest.approx(
        [float(row[token]) for row, token in zip(logprobs, expected, strict=True)], abs=1e-4
    )
    for item, row in zip(content, logprobs, strict=True):
        assert [top["logprob"] for top in item["top_logprobs"]] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
        assert item["token"] == item["top_logprobs"][0]["token"]
    text = TextProcessor.load(base)
    assert [bytes(item["bytes"]) for item in content] == [text.token_bytes(token) for token in expected]


def test_many_logprobs_are_those_of_the_stream(server: Live) -> None:
    body = {"model": BASE, "messages": MESSAGES, "temperature": 0, "max_tokens": 250, "ignore_eos": True}
    body |= {"logprobs": True, "top_logprobs": 20}  # 5250 in all: put together off the event loop
    whole = server.post("/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    choices = [event["choices"][0] for event in events(server, "/v1/chat/completions", body)]
    streamed = [entry for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
    assert len(whole) == 250
    assert [entry["token"] for entry in streamed] == [entry["token"] for entry in whole]
    assert [len(entry["top_logprobs"]) for entry in whole] == [20] * 250


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    def ask(**extra: object) -> tuple[str, str]:
        answer = client.chat.completions.create(
            model=BASE,
            messages=[{"role": "user", "content": "stop"}],
            seed=3,
            max_tokens=40,
            extra_body={"logit_bias": dict.fromkeys(map(str, range(97, 120)), 20)} | extra,
        )
        return answer.choices[0].message.content or "", answer.choices[0].finish_reason

    whole, _ = ask()
    stop = whole[10:13]
    cut = whole.index(stop)
    assert ask(stop=stop) == (whole[:cut], "stop")
    assert ask(stop=["\x00never", stop]) == (whole[:cut], "stop")
    assert ask(stop=stop, include_stop_str_in_output=True) == (whole[: cut + 3], "stop")


def test_sampling_extensions(client: openai.OpenAI, base: Path) -> None:
    def ask(**extra: object) -> str | None:
        return (
            client.chat.completions.create(
                model=BASE, messages=[{"role": "user", "content": "k"}], max_tokens=8, extra_body=extra
            )
            .choices[0]
            .message.content
        )

    likeliest = ask(temperature=0, ignore_eos=True)
    assert ask(top_k=1, ignore_eos=True) == likeliest
    assert ask(min_p=1.0, ignore_eos=True) == likeliest
    assert ask(top_p=0.0, ignore_eos=True) == likeliest
    assert ask(top_k=-1, temperature=0, ignore_eos=True) == likeliest
    assert ask(logit_bias={"72": 100}, ignore_eos=True) == TextProcessor.load(base).decode([72]) * 8


def test_min_tokens_and_stop_token_ids(client: openai.OpenAI) -> None:
    def ask(**extra: object) -> tuple[int, str]:
        answer = client.chat.completions.create(
            model=BASE, messages=[{"role": "user", "content": "k"}], max_tokens=9, temperature=0, extra_body=extra
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens, answer.choices[0].finish_reason

    favourite = {"logit_bias": {"72": 100}}
    assert ask(stop_token_ids=[72], **favourite) == (1, "stop")
    assert ask(stop_token_ids=[72], min_tokens=5, **favourite)[0] == 6
    assert ask(**favourite) == (9, "length")


def test_the_default_length_is_what_is_left(server: Live) -> None:
    response = server.post(
        "/v1/chat/completions",
        {"model": BASE, "messages": [{"role": "user", "content": "x" * 1900}], "ignore_eos": True},
    )
    usage = response.json()["usage"]
    assert usage["total_tokens"] == server.context.engine.info.max_model_len
    assert response.json()["choices"][0]["finish_reason"] == "length"


def test_content_parts_and_unknown_fields(server: Live) -> None:
    def ask(content: object, **extra: object) -> str:
        body = {"model": BASE, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6}
        response = server.post("/v1/chat/completions", body | extra)
        assert response.status_code == 200, response.text
        text: str = response.json()["choices"][0]["message"]["content"]
        return text

    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ask(parts) == ask("a\nb", unknown={"deep": [1]}, store=True, metadata={})


def test_the_prefix_cache_is_reported(client: openai.OpenAI) -> None:
    def cached() -> int:
        answer = client.chat.completions.create(
            model="lora", messages=[{"role": "user", "content": "the same long beginning " * 10}], max_tokens=1
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    assert cached() == 0
    assert cached() >= 200


async def test_the_async_client_mixes_adapters(server: Live, base: Path, packages: dict[str, Path]) -> None:
    import asyncio

    ids = prompt_ids(base)
    text = TextProcessor.load(base)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        async def ask(model: str) -> str | None:
            answer = await client.chat.completions.create(
                model=model,
                messages=MESSAGES,  # type: ignore[arg-type]
                temperature=0,
                max_tokens=10,
                extra_body={"ignore_eos": True},
            )
            return answer.choices[0].message.content

        models = [BASE, "lora", "prefix", "prompt"] * 4
        answers = await asyncio.gather(*map(ask, models))
    wanted = {
        model: text.decode(oracle.greedy(base, packages.get(model), ids, 10), skip_special_tokens=True)
        for model in set(models)
    }
    assert answers == [wanted[model] for model in models]
