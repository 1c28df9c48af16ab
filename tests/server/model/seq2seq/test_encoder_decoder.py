"""The runner of an encoder-decoder against transformers and peft, one request at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from server.model.inputs import ModelInput
from tests.server.model.seq2seq import support
from tests.server.model.seq2seq.bench import TOLERANCE, Bench

Bases = Callable[[str], Path]
Adapters = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module", params=support.BASES)
def shared_bench(request: pytest.FixtureRequest, s2s_base: Bases, s2s_adapters: Adapters) -> Bench:
    return Bench(s2s_base(request.param), s2s_adapters(request.param))


@pytest.fixture
def bench(shared_bench: Bench) -> Bench:
    shared_bench.next_block = 0
    return shared_bench


@pytest.mark.parametrize("name", [None, *support.CONFIGS])
def test_every_kind_alone(bench: Bench, name: str | None) -> None:
    row = bench.row(name, 25, 30, 7)
    bench.step([row], [1])
    for _ in range(28):
        bench.step([row], [1])


@pytest.mark.numeric
def test_every_kind_in_one_batch_in_different_phases(bench: Bench) -> None:
    names = [None, *bench.adapters, None, "prefix-5", "lora-qv"]
    rows = [bench.row(name, 3 + 4 * (seed % 5), 12, seed) for seed, name in enumerate(names)]
    half = len(rows) // 2
    bench.step(rows[:half], [1] * half)
    bench.step(rows, [1] * len(rows))  # the first half decodes while the others' prompts are encoded
    for i, row in enumerate(rows):
        if i % 3 == 0:
            row.forget()
    bench.step(rows[::-1], [3 if row.fed == 0 else 1 for row in rows[::-1]])  # every third is computed again
    bench.step(rows, [1] * len(rows))


@pytest.mark.numeric
def test_a_row_does_not_depend_on_its_neighbours(bench: Bench) -> None:
    alone = bench.row("lora-r4", 10, 4, 3)
    first = bench.runner.execute(ModelInput([alone.take(1)]))[0]
    rows = [bench.row(name, 10, 4, 3 if name == "lora-r4" else i) for i, name in enumerate(bench.adapters)]
    mixed = bench.runner.execute(ModelInput([row.take(1) for row in rows]))
    torch.testing.assert_close(mixed[list(bench.adapters).index("lora-r4")], first, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("quantize", ["none", "nf4", "int8"])
def test_bfloat16_runs_every_kind(quantize: str, s2s_base: Bases, s2s_adapters: Adapters) -> None:
    bench = Bench(s2s_base("t5"), s2s_adapters("t5"), quantize, dtype="bfloat16")
    rows = [bench.row(name, 9, 4, i) for i, name in enumerate([None, *bench.adapters])]
    alone = [bench.runner.execute(ModelInput([row.take(1)]))[0] for row in rows]
    for row in rows:
        row.forget()
    mixed = bench.runner.execute(ModelInput([row.take(1) for row in rows]))
    torch.testing.assert_close(mixed, torch.stack(alone), rtol=0, atol=0.02)
    assert mixed.isfinite().all()


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
@pytest.mark.parametrize("base", support.BASES)
def test_quantized_bases(base: str, quantize: str, s2s_base: Bases, s2s_adapters: Adapters) -> None:
    bench = Bench(s2s_base(base), s2s_adapters(base), quantize)
    rows = [bench.row(name, 9, 4, i) for i, name in enumerate([None, *bench.adapters])]
    for _ in range(3):
        bench.step(rows, [1] * len(rows))
