from __future__ import annotations

from pathlib import Path

import openai
import pytest

from server.text.tokenizer import TextProcessor
from tests import oracle
from tests.server.api.support import BASE, MAX_LEN
from tests.server.live import Live

GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def text(base: Path) -> TextProcessor:
    return TextProcessor.load(base)


@pytest.mark.parametrize("model", [BASE, "lora", "prefix"])
def test_texts_and_token_ids_mean_the_same(
    client: openai.OpenAI, base: Path, packages: dict[str, Path], text: TextProcessor, model: str
) -> None:
    prompts = ["one prompt", "and änother"]
    ids = [text.encode(prompt, add_special_tokens=True) for prompt in prompts]
    wanted = [
        text.decode(oracle.greedy(base, packages.get(model), prompt, 8), skip_special_tokens=True) for prompt in ids
    ]
    for given in (prompts, ids):
        answer = client.completions.create(model=model, prompt=given, max_tokens=8, **GREEDY)  # type: ignore[call-overload]
        assert [choice.text for choice in answer.choices] == wanted
        assert answer.usage.prompt_tokens == sum(map(len, ids))
        assert answer.usage.completion_tokens == 16
    for single in (prompts[0], ids[0]):
        answer = client.completions.create(model=model, prompt=single, max_tokens=8, **GREEDY)  # type: ignore[call-overload]
        assert [choice.text for choice in answer.choices] == wanted[:1]


def test_sixteen_tokens_unless_told(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt="x", extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.object == "text_completion"


def test_the_default_shrinks_to_the_room_left(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt=[5] * (MAX_LEN - 3), extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_n_for_every_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt=["a", "b"], n=3, seed=1, max_tokens=10, best_of=3)
    assert [choice.index for choice in answer.choices] == list(range(6))
    alone = client.completions.create(model=BASE, prompt="b", n=3, seed=1, max_tokens=10)
    assert [choice.text for choice in answer.choices[3:]] == [choice.text for choice in alone.choices]


def test_echo_with_logprobs(client: openai.OpenAI, base: Path, text: TextProcessor) -> None:
    prompt = "härte"
    ids = text.encode(prompt, add_special_tokens=True)
    answer = client.completions.create(model=BASE, prompt=prompt, echo=True, logprobs=2, max_tokens=4, **GREEDY)  # type: ignore[call-overload]
    choice = answer.choices[0]
    output = oracle.greedy(base, None, ids, 4)
    every = ids + output
    rows = oracle.logits(base, None, every).log_softmax(-1)
    assert choice.text == prompt + text.decode(output, skip_special_tokens=True)
    logprobs = choice.logprobs
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    assert logprobs.token_logprobs[1:] == pytest.approx(
        [float(rows[i, token]) for i, token in enumerate(every[1:])], abs=1e-4
    )
    assert logprobs.tokens == [text.token_text(token) for token in every]
    # "ä" is two tokens: both begin where the character does
    assert logprobs.text_offset[: len(ids)] == [0, 1, 1, 2, 3, 4]
    assert logprobs.text_offset[len(ids)] == len(prompt)
    best = max(logprobs.top_logprobs[1].values())
    assert best == pytest.approx(float(rows[0].max()), abs=1e-4)


def test_scoring_a_prompt_generates_nothing(client: openai.OpenAI, base: Path, text: TextProcessor) -> None:
    ids = text.encode("score me", add_special_tokens=True)
    answer = client.completions.create(model="lora", prompt=ids, echo=True, logprobs=0, max_tokens=0)
    choice = answer.choices[0]
    assert choice.text == "score me"
    assert choice.logprobs is not None
    assert choice.logprobs.token_logprobs is not None
    assert len(choice.logprobs.token_logprobs) == len(ids)
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_a_prompt_may_fill_the_context_when_only_scored(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt=[5] * MAX_LEN, echo=True, max_tokens=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == MAX_LEN


def test_logprobs_of_a_stopped_text_end_where_it_ends(client: openai.OpenAI) -> None:
    def ask(stop: str | None) -> openai.types.CompletionChoice:
        return client.completions.create(
            model=BASE,
            prompt="stop",
            seed=11,
            max_tokens=30,
            logprobs=0,
            stop=stop,
            extra_body={"logit_bias": dict.fromkeys(map(str, range(66, 90)), 20)},
        ).choices[0]

    whole = ask(None).text
    choice = ask(whole[8:11])
    assert choice.logprobs is not None
    assert choice.text == whole[: whole.index(whole[8:11])]
    assert "".join(choice.logprobs.tokens or []) == choice.text
    assert choice.logprobs.text_offset == list(range(len(choice.text)))


def test_special_tokens_are_hidden_unless_asked_for(client: openai.OpenAI) -> None:
    def ask(**extra: object) -> str:
        answer = client.completions.create(
            model=BASE, prompt="x", max_tokens=2, extra_body={"logit_bias": {"256": 100}, **extra}
        )
        return answer.choices[0].text

    assert ask() == ""
    assert ask(skip_special_tokens=False) == "<|endoftext|>" * 2


def test_an_empty_prompt_begins_with_the_begin_token(server: Live) -> None:
    response = server.post("/v1/completions", {"model": BASE, "prompt": "", "max_tokens": 1})
    assert response.json()["usage"]["prompt_tokens"] == 1


def test_other_salts_do_not_share_the_prefix_cache(server: Live) -> None:
    def cached(salt: str) -> int:
        body = {"model": BASE, "prompt": "salted " * 30, "max_tokens": 1, "cache_salt": salt}
        tokens: int = server.post("/v1/completions", body).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return tokens

    assert cached("one") == 0
    assert cached("two") == 0
    assert cached("one") > 0
