"""Pooled outputs, made of prompts that are computed in parts beside sequences that generate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from server.adapter_key import AdapterKey
from server.engine.messages import FinishReason, Pooling, PoolingParams
from server.engine.pooling import PooledPrompt, finished
from tests.server.engine.conftest import MakeEngine
from tests.server.engine.toy import KEYS, load_all, prompt_of
from tests.server.engine.toy_runner import HIDDEN, NOT_FINITE, ToyRunner

ALL = list(Pooling)


def expected(runner: ToyRunner, key: AdapterKey | None, prompt: list[int], pooling: Pooling, skip: int = 0) -> Tensor:
    all_of_them: Tensor = runner.reference_hidden(key, prompt)
    hidden, places = all_of_them[skip:], torch.arange(1.0, len(prompt) + 1)[skip:, None]
    kept: dict[Pooling, Tensor] = {
        Pooling.MEAN: hidden.mean(0),
        Pooling.LAST: hidden[-1],
        Pooling.CLS: hidden[0],
        Pooling.ALL: all_of_them.flatten(),
        Pooling.MAX: hidden.max(0).values,
        Pooling.WEIGHTED_MEAN: (hidden * places).sum(0) / places.sum(),
        Pooling.MEAN_SQRT_LEN: hidden.sum(0) / len(hidden) ** 0.5,
    }
    return kept[pooling]


@pytest.mark.parametrize("budget", [3, 512])
def test_every_pooling_of_every_kind_in_one_batch_with_generation(
    make_engine: MakeEngine, tmp_path: Path, budget: int
) -> None:
    runner = ToyRunner(num_blocks=256)
    harness = make_engine(runner, max_num_batched_tokens=budget)
    load_all(harness, tmp_path)
    asked = {}
    for i, key in enumerate(KEYS):
        for pooling in ALL:
            asked[f"{i}-{pooling}"] = (key, prompt_of(5 + 3 * i, seed=i), pooling, i % 5)
        harness.submit(f"g{i}", prompt_of(9, seed=i), key)
    for name, (key, prompt, pooling, skip) in asked.items():
        harness.submit(name, prompt, key, pooling=PoolingParams(pooling=pooling, skip=skip))
    results = harness.run()
    for name, (key, prompt, pooling, skip) in asked.items():
        result, want = results[name], expected(runner, key, prompt, pooling, skip)
        torch.testing.assert_close(result.pooled, want, rtol=0, atol=1e-5)
        assert (result.finish_reason, result.token_ids) == (FinishReason.STOP, [])
    for i, key in enumerate(KEYS):
        assert results[f"g{i}"].token_ids == runner.greedy(key, prompt_of(9, seed=i), 4)


def test_what_lies_in_the_cache_is_used_for_the_last_token_alone(make_engine: MakeEngine) -> None:
    runner = ToyRunner()
    harness = make_engine(runner)
    prompt = prompt_of(14)
    harness.submit("first", prompt)
    harness.run()
    for pooling in ALL:
        harness.submit(pooling, prompt, pooling=PoolingParams(pooling=pooling))
    results = harness.run()
    for pooling in ALL:
        want = expected(runner, None, prompt, pooling)
        torch.testing.assert_close(results[pooling].pooled, want, rtol=0, atol=1e-5)
        assert results[pooling].outputs[-1].cached_tokens == (12 if pooling is Pooling.LAST else 0)


def test_a_prompt_that_loses_its_blocks_half_way_begins_anew(make_engine: MakeEngine) -> None:
    runner = ToyRunner(num_blocks=12)
    harness = make_engine(runner, max_num_batched_tokens=4)
    for pooling in ALL:
        harness.submit(pooling, prompt_of(22), pooling=PoolingParams(pooling=pooling))
    while not all(request.num_computed_tokens for request in harness.engine.scheduler.running[:1]):
        harness.step()
    for _ in range(3):
        harness.step()
        scheduler = harness.engine.scheduler
        for request in list(scheduler.running):
            scheduler._preempt(request)
        harness.step()
        harness.step()
    results = harness.run()
    for pooling in ALL:
        want = expected(runner, None, prompt_of(22), pooling)
        torch.testing.assert_close(results[pooling].pooled, want, rtol=0, atol=1e-5)
    assert harness.engine.stats().preemptions


def test_ends_that_are_no_answers(make_engine: MakeEngine) -> None:
    harness = make_engine(ToyRunner(max_model_len=32), max_num_batched_tokens=8)
    mean = PoolingParams(pooling=Pooling.MEAN)
    harness.submit("long", prompt_of(33), pooling=mean)
    harness.submit("fits", prompt_of(32), pooling=mean)
    harness.submit("none", [], pooling=mean)
    harness.submit("broken", [3, NOT_FINITE, 5], pooling=mean)
    harness.submit("left", prompt_of(20), pooling=mean)
    harness.step()
    harness.engine.abort("left")
    results = harness.run()
    assert results["long"].error
    assert "32 tokens" in results["long"].error
    assert results["none"].error
    assert "empty" in results["none"].error
    assert results["broken"].error
    assert "not finite" in results["broken"].error
    assert results["left"].finish_reason is FinishReason.ABORT
    assert len(results["fits"].pooled) == HIDDEN


def test_vectors_are_cut_then_brought_to_length_one_and_scores_go_through_their_activation() -> None:
    rows = np.array([[3.0, 4.0, 12.0], [0.5, -1.0, 2.0]], np.float32)
    given = torch.tensor(rows)
    cut = finished(rows, PoolingParams(dimensions=2, normalize=True))
    torch.testing.assert_close(torch.tensor(cut), normalize(given[:, :2], dim=1))
    torch.testing.assert_close(torch.tensor(finished(rows, PoolingParams(activation="softmax"))), given.softmax(1))
    torch.testing.assert_close(torch.tensor(finished(rows, PoolingParams(activation="sigmoid"))), given.sigmoid())
    assert not np.isnan(finished(0 * rows, PoolingParams(normalize=True))).any()


def test_what_was_told_of_single_tokens_is_not_told_again() -> None:
    pooled = PooledPrompt(PoolingParams(pooling=Pooling.ALL))
    pooled.place(2, 7)
    assert list(pooled.wanted(0, 4)) == [2, 3]
    pooled.add(np.zeros((2, 1), np.float32))
    assert len(pooled.take()) == 8
    pooled.forget()
    assert list(pooled.wanted(0, 4)) == []
    assert list(pooled.wanted(0, 7)) == [4, 5, 6]
