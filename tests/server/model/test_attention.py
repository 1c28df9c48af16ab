"""``attend`` over a step's sequences: read in place or gathered, and bit for bit the same however they are batched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from hotkernels import native
from server.model.adapter_pool import AdapterPool
from server.model.attention import Rule, attend
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache, LayerShape
from server.model.layout import assemble
from server.model.step import computing

pytestmark = pytest.mark.numeric

HEADS, LAYER, CPU = 6, LayerShape(num_heads=2, key_dim=20, value_dim=12), torch.device("cpu")
STORED = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
RULES = {
    "plain": Rule(0.2),
    "window": Rule(0.2, window=9),
    "softcap": Rule(0.2, softcap=2.0),
    "sinks": Rule(0.2, sinks=torch.linspace(-1, 1, HEADS)),
    "bias": Rule(0.2, bias=lambda positions: torch.linspace(0.01, 0.1, HEADS)[:, None] * positions),
}


@dataclass
class Sequence:
    """Queries, keys and values of every position, as a model would compute them, and blocks to store them in."""

    length: int
    blocks: list[int]
    query: Tensor = field(init=False)
    key: Tensor = field(init=False)
    value: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.query = torch.randn(1, HEADS, self.length, LAYER.key_dim)
        self.key = torch.randn(1, LAYER.num_heads, self.length, LAYER.key_dim)
        self.value = torch.randn(1, LAYER.num_heads, self.length, LAYER.value_dim)


Chunk = tuple[Sequence, int, int]  # a sequence, the first position computed, and how many


def new_cache(stored: torch.dtype = torch.float32) -> KVCache:
    return KVCache([LAYER], 100, 5, torch.float32, CPU, stored)


def run(cache: KVCache, chunks: list[Chunk], rule: Rule) -> list[Tensor]:
    """One step of all chunks; what each attends to, [count, HEADS, value_dim]."""
    inputs = ModelInput([SequenceInput(None, [0] * n, start, s.blocks, []) for s, start, n in chunks])
    step = assemble(inputs, cache, AdapterPool(), CPU).step
    query, key, value = (
        torch.cat([getattr(s, name)[:, :, start : start + n] for s, start, n in chunks], 2)
        for name in ("query", "key", "value")
    )
    with computing(step):
        out = attend(0, query, key, value, rule)[0]
    return list(torch.split(out, [n for _, _, n in chunks]))


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=native.installed())
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    name: str = request.param
    with native.using(name):
        yield name


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.usefixtures("variant")
def test_read_in_place_is_gathered(rule: str, stored: torch.dtype) -> None:
    """A prompt in two chunks, two more tokens, and other sequences beside them."""
    steps = [[40, 30], [23, 1], [1, 9], [1, 1]]
    sequences = [Sequence(65, list(range(13))), Sequence(41, list(range(20, 29)))]
    found: list[Tensor] = []
    for name in (native.variant(), native.TORCH):
        with native.using(name):
            cache, done, outs = new_cache(stored), [0, 0], []
            assert cache.is_read_in_place == (name != native.TORCH)
            for counts in steps:
                outs += run(cache, list(zip(sequences, done, counts, strict=True)), RULES[rule])
                done = [a + b for a, b in zip(done, counts, strict=True)]
            found.append(torch.cat(outs))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=5e-6)  # a hundred roundings of numbers below 4


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stored", [torch.float32, torch.int8])
@pytest.mark.usefixtures("variant")
def test_a_sequence_is_the_same_in_any_batch(rule: str, stored: torch.dtype) -> None:
    """Whole, in chunks, token by token, beside others, in other blocks: equal bit for bit."""
    sequence = Sequence(200, list(range(40)))
    (want,) = run(new_cache(stored), [(sequence, 0, 200)], RULES[rule])
    for chunks in ([1] * 200, [130, 70], [64, 1, 128, 7]):
        cache, start = new_cache(stored), 0
        neighbour = Sequence(200, list(range(60, 100)))
        sequence.blocks = torch.randperm(60)[:40].tolist()
        for count in chunks:
            chunk, beside = (sequence, start, count), (neighbour, start, min(count, 3))
            batch = [chunk] if start % 3 == 0 else [beside, chunk] if start % 3 == 1 else [chunk, beside]
            got = run(cache, batch, RULES[rule])[batch.index(chunk)]
            assert torch.equal(got, want[start : start + count])
            start += count
