"""Which ops run on their rows without groups, and that they are what the reference computes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Linear

from adapters.batch.low_rank import JoinedMaps, Places
from adapters.batch.reference import apply_reference
from adapters.batch.row_ops import row_changes, split_row_ops
from adapters.ops import Bias, Op
from adapters.ops.activations import Magnitude
from adapters.ops.products import BlockSum
from hotkernels import native
from tests.adapters.ops.cases import CASES, IN, OUT
from tests.adapters.support import StockSite

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.skipif(native.variant() == native.TORCH, reason="torch runs them in groups"),
]

MADE = [
    *("bias", "magnitude", "scale input", "rotate-4", "rotate-odd", "rotate-shared", "butterfly"),
    *("shared low-rank", "kron", "kron, factored"),
]
TOLERANCE = 2e-5  # as in test_grouped; only what is stored is rounded to other types


def test_sides_that_are_all_row_ops_are_taken() -> None:
    gain, bias = Magnitude(torch.randn(OUT)), Bias(torch.randn(OUT))
    (turned,), tiled = CASES["rotate-4"](torch.float32), BlockSum(torch.randn(6, OUT))
    ops: dict[str, tuple[Op, ...]] = {
        "q": (turned, gain, bias),
        "k": (gain, tiled),
        "v": (turned, tiled),
        "norm": (bias,),
    }
    places = Places()
    tables, rest = split_row_ops(ops, places, {"q", "k", "v"})
    assert tables is not None
    assert rest == {"k": (gain, tiled), "v": (tiled,), "norm": (bias,)}
    q, v = places.number("q"), places.number("v")
    assert (tables.before.mask, tables.after.mask) == (1 << q | 1 << v, 1 << q)
    assert len(tables.after.places[q]) == 2


def test_nothing_is_taken_where_torch_does_the_work() -> None:
    ops: dict[str, tuple[Op, ...]] = {"q": (Bias(torch.randn(OUT)),)}
    with native.using(native.TORCH):
        assert split_row_ops(ops, Places(), {"q"}) == (None, ops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", MADE)
def test_joined_maps_are_changed_as_the_reference_says(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    places, modules = Places(), ("q", "v")
    adapters = [{"v": CASES[case](dtype)}, {"q": CASES[case](dtype), "v": CASES["magnitude"](dtype)}]
    split = [split_row_ops(ops, places, modules) for ops in adapters]
    assert all(not rest for _, rest in split)
    changes = row_changes([(split[0][0], 0, 2), (None, 2, 3), (split[1][0], 3, 6)], places)
    assert changes is not None
    linears = {name: Linear(IN, OUT).requires_grad_(False) for name in modules}
    x, wanted, outputs = torch.randn(6, IN), [], []
    kept = x.clone()
    for name in modules:
        ops: list[tuple[Op, ...]] = [*[adapters[0].get(name, ())] * 2, (), *[adapters[1].get(name, ())] * 3]
        wanted.append(apply_reference(linears[name], x, ops, StockSite(linears[name])))
        outputs.append(linears[name](changes.changed_input(x, JoinedMaps({name: 0}))))
    y: Tensor = torch.cat(outputs, 1)
    changes.change_output(x, y, JoinedMaps({"q": 0, "v": OUT}))
    torch.testing.assert_close(y, torch.cat(wanted, 1), rtol=0, atol=TOLERANCE)
    assert torch.equal(x, kept)
    assert changes.act_at(JoinedMaps({"q": 0}))
    assert not changes.act_at(JoinedMaps({"o": 0}))
