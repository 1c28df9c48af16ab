"""Bias, penalties, and tokens allowed or forbidden against their definitions, token by token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.request import Request
from server.engine.sampling.logits_processors import needs_processing, process_logits
from tests.server.engine.requests import make_request

VOCAB = 40


def by_definition(logits: Tensor, request: Request) -> list[float]:
    """One row with plain loops over the vocabulary."""
    sampling = request.sampling
    outputs = request.token_ids[request.num_prompt_tokens :]
    row = logits.double().tolist()
    for token in range(VOCAB):
        row[token] += sampling.logit_bias.get(token, 0.0)
        if token in request.prompt_ids + outputs:
            factor = sampling.repetition_penalty
            row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
        row[token] -= sampling.frequency_penalty * outputs.count(token) + sampling.presence_penalty * (token in outputs)
        if sampling.allowed_token_ids and token not in sampling.allowed_token_ids:
            row[token] = -torch.inf
    ends = request.stop_ids if len(outputs) < sampling.min_tokens else ()
    for token in {*ends, *completing(sampling.bad_words, outputs)}:
        row[token] = -torch.inf
    return row


def completing(words: Sequence[Sequence[int]], outputs: Sequence[int]) -> list[int]:
    """The tokens after which the output would end with one of ``words``."""
    return [word[-1] for word in words if [*outputs, word[-1]][-len(word) :] == list(word)]


def test_equals_the_definition() -> None:
    rng = random.Random(0)
    requests = [
        make_request(
            prompt_ids=[rng.randrange(VOCAB) for _ in range(6)],
            outputs=tuple(rng.randrange(VOCAB) for _ in range(i % 9)),
            eos=(39,),
            stop_token_ids=(2,),
            num_virtual_tokens=i % 3,
            presence_penalty=rng.choice([0.0, 0.7]),
            frequency_penalty=rng.choice([0.0, -0.3, 1.1]),
            repetition_penalty=rng.choice([1.0, 0.8, 1.5]),
            logit_bias=rng.choice([{}, {3: 5.0}, {0: -2.0, 39: 4.0}]),
            min_tokens=rng.choice([0, 4]),
            allowed_token_ids=rng.choice([(), tuple(rng.sample(range(VOCAB), 9))]),
            bad_words=rng.choice([(), tuple(bad_word(rng) for _ in range(50))]),
        )
        for i in range(30)
    ]
    logits = torch.randn(30, VOCAB, generator=torch.Generator().manual_seed(0))
    expected = torch.tensor([by_definition(row, request) for row, request in zip(logits, requests, strict=True)])
    torch.testing.assert_close(process_logits(logits, requests), expected, atol=1e-5, rtol=1e-5)


def bad_word(rng: random.Random) -> tuple[int, ...]:
    """Of few tokens, so that words begin and end alike, and some are complete but for their last."""
    return tuple(rng.randrange(5) for _ in range(rng.randrange(1, 5)))


@pytest.mark.parametrize("seed", range(20))
def test_no_bad_word_is_ever_generated(seed: int) -> None:
    rng = random.Random(seed)
    words = [bad_word(rng) for _ in range(rng.randrange(1, 12))]
    words = [word for word in words if len(word) > 1] or [(0, 0)]
    request = make_request(prompt_ids=[0, 1, 2, 3, 4], bad_words=tuple(words), seed=seed, allowed_token_ids=range(7))
    for step in range(60):
        logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(100 * seed + step))
        before = request.token_ids[request.num_prompt_tokens :]
        banned = completing(words, before)
        allowed = [token for token in range(7) if token not in banned]
        [token] = process_logits(logits, [request])[0].argmax(dim=-1, keepdim=True).tolist()
        assert token == max(allowed, key=lambda t: float(logits[0, t]))
        request.append(token)


def test_the_prompt_is_no_part_of_a_bad_word() -> None:
    request = make_request(prompt_ids=[7, 8], bad_words=((8, 9), (7, 8, 9)))
    assert process_logits(torch.zeros(1, VOCAB), [request]).isfinite().all()
    request.append(8)
    assert process_logits(torch.zeros(1, VOCAB), [request]).isneginf().nonzero().tolist() == [[0, 9]]


@pytest.mark.parametrize(
    "params",
    [
        {"allowed_token_ids": (3, 5), "bad_words": ((3,), (5,))},
        {"allowed_token_ids": (39,), "min_tokens": 4},
        {"bad_words": tuple((token,) for token in range(VOCAB))},
    ],
)
def test_what_forbids_every_token_forbids_none(params: dict[str, Any]) -> None:
    requests = [make_request(eos=(39,), **params), make_request(bad_words=((1,),)), make_request()]
    found = process_logits(torch.zeros(3, VOCAB), requests)
    allowed = set(params.get("allowed_token_ids", range(VOCAB)))
    assert {token for token in range(VOCAB) if found[0, token] == 0} == allowed
    assert found[1].isneginf().nonzero().tolist() == [[1]]
    assert found[2].isfinite().all()


def test_plain_requests_need_nothing() -> None:
    assert not needs_processing(make_request(eos=(3,)))
    assert not needs_processing(make_request(min_tokens=5, ignore_eos=True, eos=(3,)))
    assert not needs_processing(make_request(min_tokens=1, eos=(3,), outputs=(1,)))
    assert needs_processing(make_request(min_tokens=1, eos=(3,)))
    assert needs_processing(make_request(logit_bias={1: 1.0}))
    assert needs_processing(make_request(repetition_penalty=1.1))
    assert needs_processing(make_request(allowed_token_ids=(1,)))
    assert needs_processing(make_request(bad_words=((1, 2),)))
