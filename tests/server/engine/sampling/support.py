"""Logits and requests to sample."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from server.engine.request import Request
from tests.server.engine.requests import make_request

VOCAB = 3000  # more than the widest window in which top_p looks first


def random_logits(rows: int, *, scale: float = 2.0, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def random_request(rng: random.Random) -> Request:
    return make_request(
        prompt_ids=[rng.randrange(VOCAB) for _ in range(5)],
        outputs=tuple(rng.randrange(VOCAB) for _ in range(rng.randrange(6))),
        eos=(3,),
        seed=rng.randrange(2**64),
        temperature=rng.choice([0.0, 0.7, 1.0, 2.0]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.2]),
        top_k=rng.choice([0, 0, 1, 7, 50, 10_000]),
        min_p=rng.choice([0.0, 0.0, 0.1]),
        presence_penalty=rng.choice([0.0, 1.5]),
        frequency_penalty=rng.choice([0.0, -0.5]),
        repetition_penalty=rng.choice([1.0, 1.2]),
        logit_bias=rng.choice([{}, {5: 20.0, 9: -100.0}]),
        min_tokens=rng.choice([0, 3]),
        allowed_token_ids=rng.choice([(), (), tuple(rng.sample(range(VOCAB), 40))]),
        bad_words=rng.choice([(), ((5,), (9, 5)), tuple((t, t) for t in range(VOCAB))]),
        logprobs=rng.choice([None, 0, 4]),
    )
