"""Which low-rank updates run without groups, and that they are what the reference computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Linear

from adapters.batch.low_rank import JoinedMaps, Places, row_updates, split_low_rank, with_factors_together
from adapters.batch.reference import apply_reference
from adapters.ops import Adapter, Bias, LowRank, Op
from adapters.ops.low_rank import LowRankInput
from hotkernels import native
from tests.adapters.ops.cases import IN, OUT
from tests.adapters.support import StockSite

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(native.variant() == native.TORCH, reason="torch runs low-rank updates in groups"),
]


def low(rank: int, dtype: torch.dtype = torch.float32) -> LowRank:
    return LowRank(torch.randn(IN, rank, dtype=dtype) * 0.2, torch.randn(rank, OUT, dtype=dtype) * 0.2)


def test_what_stands_first_at_the_output_is_taken() -> None:
    first, second, bias = low(4), low(2), Bias(torch.randn(OUT))
    turned = LowRankInput(torch.randn(IN, 2), torch.randn(2, IN))
    places = Places()
    ops: dict[str, tuple[Op, ...]] = {
        "q": (turned, first, second),
        "k": (bias, first),
        "v": (turned,),
        "o": (second,),
    }
    table, rest = split_low_rank(ops, places)
    assert table is not None
    assert rest == {"q": (turned, second), "k": (bias, first), "v": (turned,)}
    taken = {name: table.places[places.number(name)] for name in "qo"}
    assert [factors is not None and factors.a for factors in taken.values()] == [first.a, second.a]
    assert [table.acts_at(places.number(name)) for name in "kv"] == [False, False]


def test_nothing_is_taken_where_torch_does_the_work() -> None:
    ops: dict[str, tuple[Op, ...]] = {"q": (low(4),)}
    with native.using(native.TORCH):
        assert split_low_rank(ops, Places()) == (None, ops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_joined_maps_are_updated_as_the_reference_says(dtype: torch.dtype) -> None:
    places, modules = Places(), ("q", "v")
    adapters: list[dict[str, tuple[Op, ...]]] = [
        {"v": (low(3, dtype),)},
        {"q": (low(8, dtype),), "v": (low(5, dtype),)},
    ]
    tables = [split_low_rank(ops, places)[0] for ops in adapters]
    updates = row_updates([(tables[0], 0, 2), (None, 2, 3), (tables[1], 3, 6)], places)
    assert updates is not None
    linears = {name: Linear(IN, OUT).requires_grad_(False) for name in modules}
    x = torch.randn(6, IN)
    y = torch.cat([linears[name](x) for name in modules], 1)
    wanted: list[Tensor] = []
    for name in modules:
        ops = [*[adapters[0].get(name, ())] * 2, (), *[adapters[1].get(name, ())] * 3]
        wanted.append(apply_reference(linears[name], x, ops, StockSite(linears[name])))
    maps = JoinedMaps({"q": 0, "v": OUT})
    maps.add(x, y, updates)
    torch.testing.assert_close(y, torch.cat(wanted, 1), rtol=0, atol=2e-5)
    assert maps.change(updates)
    assert not JoinedMaps({"o": 0}).change(updates)


def test_factors_lie_together_as_they_were() -> None:
    shared, bias = torch.randn(4, IN).T, Bias(torch.randn(OUT))
    updates = [LowRank(shared, torch.randn(4, OUT)) for _ in range(3)]
    given = Adapter("lora", {str(i): (update, bias) for i, update in enumerate(updates)})
    placed = with_factors_together(given)
    assert placed.nbytes == given.nbytes  # what was shared is
    assert all(isinstance(op, Bias) and op.delta is bias.delta for _, op in placed.ops.values())
    factors = [op for listed in placed.ops.values() for op in listed if isinstance(op, LowRank)]
    for found, update in zip(factors, updates, strict=True):
        assert torch.equal(found.a, update.a)
        assert torch.equal(found.b, update.b)
        assert found.a.stride() == update.a.stride()
    addresses = [factors[0].a.data_ptr(), *(op.b.data_ptr() for op in factors)]
    assert max(addresses) - min(addresses) < 3 * 64 * -(-4 * 4 * max(IN, OUT) // 64)
