"""A row's logits are the same to the last bit, whatever is computed beside it and in whichever pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hotkernels import native
from server.config import EngineConfig
from server.model.inputs import ModelInput, SequenceInput
from server.model.model_runner import load_runner
from tests.server.model.bench import Bench, Row
from tests.server.model.lean.shapes import make_shape
from tests.server.model.lean.test_lean_forward import is_lean

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(native.variant() == native.TORCH, reason="torch's products depend on what is beside a row"),
]

LENGTH, DECODED = 21, 4
NEIGHBOURS = ("lora-r4", "prompt-7", "prefix-5", "lora-r8-attention", None)


def run(bench: Bench, row: Row, pieces: Sequence[int], others: Sequence[Row] = ()) -> Tensor:
    """The logits of every own token of ``row``, fed in ``pieces`` beside ``others``, which are fed a token a step."""
    found = []
    for index, count in enumerate(pieces):
        virtual = max(0, row.virtual - row.done)
        mine = row.take(count)
        wanted = SequenceInput(mine.adapter, mine.token_ids, mine.start, mine.block_table, list(range(virtual, count)))
        beside = [other.take(9 if index == 0 else 1) for other in others]
        order = [*beside[::2], wanted, *beside[1::2]]
        at = sum(len(s.logits_at) for s in beside[::2])
        found.append(bench.runner.execute(ModelInput(order))[at : at + len(wanted.logits_at)])
    return torch.cat(found)


def ways(bench: Bench, name: str | None, neighbours: Sequence[str | None]) -> dict[str, Tensor]:
    """One sequence of the adapter ``name``, computed in every way."""

    def row() -> Row:
        made = bench.row(name, LENGTH + DECODED, 3)
        bench.next_block = max(bench.next_block, 60)
        return made

    def others() -> list[Row]:
        return [bench.row(other, 20, seed) for seed, other in enumerate(neighbours)]

    def fresh() -> Row:
        bench.next_block = 0
        return row()

    given = fresh()
    first = given.virtual - given.done + LENGTH
    plain, chunked = [first] + [1] * DECODED, [first - 12, 5, 1, 6] + [1] * DECODED
    found = {"alone": run(bench, given, plain)}
    found["chunked"] = run(bench, fresh(), chunked)
    found["after preemption"] = run(bench, fresh(), [first + DECODED])
    found["beside others"] = run(bench, fresh(), plain, others())
    found["chunked beside others"] = run(bench, fresh(), chunked, others())
    for threads in (1, 3):
        native.set_num_threads(threads)
        found[f"{threads} threads"] = run(bench, fresh(), plain, others())
    native.set_num_threads(2)
    return found


def differing(found: Mapping[str, Tensor]) -> dict[str, float]:
    """How far from what was computed alone, by the ways that are not the same."""
    alone = found["alone"]
    return {way: float((x - alone).abs().max()) for way, x in found.items() if not torch.equal(x, alone)}


@pytest.mark.parametrize("shape", ["llama, biases", "gemma3", "granite", "cohere2", "phi3", "olmo2"])
def test_the_base(shape: str, tmp_path: Path) -> None:
    bench = Bench(make_shape(shape, tmp_path), {})
    assert is_lean(bench.runner)
    assert differing(ways(bench, None, [None] * 5)) == {}


@pytest.mark.parametrize(
    ("shape", "is_exact"), [("llama, biases", True), ("gemma3", True), ("llama, dynamic", False), ("mixtral", False)]
)
def test_which_bases_have_exact_rows(shape: str, is_exact: bool, tmp_path: Path) -> None:
    bench = Bench(make_shape(shape, tmp_path), {})
    assert is_lean(bench.runner)
    assert bench.runner.has_exact_rows == is_exact


def test_the_model_itself_has_no_exact_rows(tiny_base: Path) -> None:
    config = EngineConfig(model=str(tiny_base), quantize="none", kv_cache_gb=0.02, threads=1, forward="generic")
    assert not load_runner(config).has_exact_rows


@pytest.mark.parametrize("name", [None, "lora-r8", "lora-r4", "prefix-5", "prompt-7"])
def test_beside_adapters(name: str | None, tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    names = {other for other in (*NEIGHBOURS, name, "lora-r8") if other}
    bench = Bench(tiny_base, {n: tiny_adapters[n] for n in sorted(names)})
    assert is_lean(bench.runner)
    assert differing(ways(bench, name, [*NEIGHBOURS, name])) == {}
