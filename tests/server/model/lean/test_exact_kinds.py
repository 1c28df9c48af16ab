"""Every kind of adapter gives a row the same logits to the last bit, whatever is computed beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from hotkernels import native
from tests.kinds import CASES
from tests.server.model.bench import Bench
from tests.server.model.lean.test_exact import NEIGHBOURS, differing, ways

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(native.variant() == native.TORCH, reason="torch's products depend on what is beside a row"),
]


@pytest.fixture(scope="module")
def bench(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> Bench:
    return Bench(tiny_base, tiny_adapters)


def test_who_computes_by_torch_says_so(bench: Bench, tiny_adapters: Mapping[str, Path]) -> None:
    adapters = {name: bench.runner.prepare(tiny_adapters[name]).adapter for name in ("lora-r8", "freeze-norm")}
    assert {name: adapter.has_exact_rows for name, adapter in adapters.items()} == {
        "lora-r8": True,
        "freeze-norm": False,
    }


@pytest.mark.parametrize("name", CASES)
def test_every_kind(name: str, bench: Bench) -> None:
    assert differing(ways(bench, name, [*NEIGHBOURS, name])) == {}
