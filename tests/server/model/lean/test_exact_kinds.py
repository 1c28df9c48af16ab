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


@pytest.mark.parametrize("name", CASES)
def test_every_kind(name: str, bench: Bench) -> None:
    assert differing(ways(bench, name, [*NEIGHBOURS, name])) == {}
