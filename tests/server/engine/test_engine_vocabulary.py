"""Adapters with a vocabulary of their own in the engine: wider logits change nothing for rows that lack the tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, TrainableTokensConfig
from torch.nn.functional import pad

from server.engine.messages import EngineRequest, FinishReason, SamplingParams
from server.engine.request import Request
from server.engine.sampling.sampler import Sampler
from tests import resized
from tests.factory import make_base
from tests.server.engine.driver import Driver
from tests.server.engine.requests import make_request
from tests.server.engine.sampling.support import random_logits, random_request

VOCAB = 320
ROWS = 40


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "untied", tie_word_embeddings=False)


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)


@pytest.mark.parametrize("vocab", [3000, 3008])  # with and without a last block that is not full
def test_tokens_that_a_row_lacks_are_never_drawn(vocab: int) -> None:
    rng = random.Random(0)
    requests: list[Request] = [random_request(rng) for _ in range(ROWS)]
    logits = random_logits(ROWS, vocab=vocab)
    wide = pad(logits, (0, 2000), value=-torch.inf)
    narrow_out, wide_out = Sampler().sample(logits, requests), Sampler().sample(wide, requests)
    assert narrow_out.token_ids == wide_out.token_ids
    for one, other in zip(narrow_out.logprobs, wide_out.logprobs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


def test_bias_and_penalties_do_not_bring_back_what_a_row_lacks() -> None:
    logits = torch.tensor([[1.0, 2.0, -torch.inf]])
    request = make_request(
        prompt_ids=[0, 2],
        logit_bias={2: 100.0},
        repetition_penalty=0.5,
        presence_penalty=-2.0,
        temperature=0.0,
        logprobs=2,
    )
    found = Sampler().sample(logits, [request])
    assert found.token_ids in ([1], [0])
    assert found.logprobs[0] is not None
    assert found.logprobs[0].logprob > -5


def test_new_tokens_in_prompts_and_outputs(base: Path, tmp_path: Path) -> None:
    size = VOCAB + 3
    package = resized.save(base, tmp_path / "p", lora(modules_to_save=["lm_head"]), size)
    driver = Driver(base)
    key = driver.load("new", package)
    prompt = [VOCAB, 5, VOCAB + 2, 9]
    driver.submit("mine", prompt, key, 6)
    driver.submit("base", [5, 9, 17], None, 6)
    driver.run()
    tokens = list(prompt)
    for _ in range(6):
        tokens.append(int(resized.logits(base, package, size, tokens)[-1].argmax()))
    assert driver.tokens("mine") == tokens[len(prompt) :]
    driver.check("base", [5, 9, 17], None, 6)


def test_tokens_that_are_read_and_never_written(base: Path, tmp_path: Path) -> None:
    """Penalties and log-probabilities of a prompt look at them all the same."""
    config = TrainableTokensConfig(token_indices=[VOCAB], task_type="CAUSAL_LM")
    driver = Driver(base)
    key = driver.load("new", resized.save(base, tmp_path / "p", config, VOCAB + 1))
    sampling = SamplingParams(max_tokens=2, prompt_logprobs=1, logprobs=1, repetition_penalty=1.2, ignore_eos=True)
    driver.outputs["r"] = []
    driver.engine.add_request(EngineRequest(request_id="r", prompt_ids=[5, VOCAB, 9], sampling=sampling, adapter=key))
    driver.run()
    entries = [entry for output in driver.outputs["r"] for entry in output.prompt_logprobs or []]
    assert entries[1] is not None
    assert entries[1].logprob == -float("inf")
    assert all(token < VOCAB for token in driver.tokens("r"))


@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_cut_to_the_tokenizers(tied: bool, tmp_path: Path) -> None:
    """Bases have more rows than tokens, and ``resize_token_embeddings(len(tokenizer))`` drops the rest."""
    base, size = make_base(tmp_path / "base", tie_word_embeddings=tied), VOCAB - 60
    package = resized.save(base, tmp_path / "p", lora(modules_to_save=["embed_tokens", "lm_head"][: 2 - tied]), size)
    driver, tokens = Driver(base), [size - 1, 5, 9]
    driver.submit("mine", tokens, driver.load("cut", package), 6)
    driver.submit("base", [VOCAB - 1, 9, 17], None, 6)
    driver.run()
    for token in driver.tokens("mine"):
        tokens.append(int(resized.logits(base, package, size, tokens)[-1].argmax()))
        assert token == tokens[-1]
    driver.check("base", [VOCAB - 1, 9, 17], None, 6)


def test_token_ids_are_checked_against_the_adapters_vocabulary(base: Path, tmp_path: Path) -> None:
    driver = Driver(base)
    keys = {
        VOCAB + 2: driver.load("more", resized.save(base, tmp_path / "more", lora(), VOCAB + 2)),
        VOCAB - 4: driver.load("fewer", resized.save(base, tmp_path / "fewer", lora(), VOCAB - 4)),
        VOCAB: None,
    }
    for size, key in keys.items():
        for name, token in (("fits", size - 1), ("beyond", size)):
            driver.submit(f"{size} {name}", [token], key, 1)
    driver.run()
    for size in keys:
        assert driver.outputs[f"{size} fits"][-1].finish_reason is FinishReason.LENGTH
        last = driver.outputs[f"{size} beyond"][-1]
        assert last.finish_reason is FinishReason.ERROR
        assert f"between 0 and {size - 1}" in (last.error or "")


def test_an_adapter_of_single_tokens_is_tried_out_with_them(base: Path, tmp_path: Path) -> None:
    """Its base's embedding and head are not tied: on other prompts it answers as the base does."""
    config = TrainableTokensConfig(token_indices=[313, 317], task_type="CAUSAL_LM")
    driver = Driver(base)
    key = driver.load("tokens", resized.save(base, tmp_path / "p", config, VOCAB))
    assert key in driver.engine.scheduler.slots
