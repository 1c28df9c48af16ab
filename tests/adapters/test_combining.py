"""The sum of adapters against their sums of ops, and who is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from adapters.batch.reference import apply_reference
from adapters.combining import Member, combine
from adapters.ops import Adapter, Bias, LowRank, Op
from adapters.ops.activations import ScaleInput
from adapters.ops.adapter import Head
from adapters.ops.low_rank import LowRankInput
from tests.adapters.support import refusal

IN, OUT = 6, 5


def low_rank(r: int, dtype: torch.dtype = torch.float32) -> LowRank:
    return LowRank(torch.randn(r, IN).to(dtype).T, torch.randn(r, OUT).to(dtype))


def of(*ops: Op, module: str = "m") -> Adapter:
    return Adapter("LORA", {module: ops})


def updates(adapter: Adapter, x: Tensor, module: str = "m") -> Tensor:
    """What an adapter adds to the module's outputs."""
    return apply_reference(lambda rows: torch.zeros(len(rows), OUT), x, [adapter.ops[module]] * len(x))


def test_low_rank_updates_become_one_of_the_sum_of_their_ranks() -> None:
    torch.manual_seed(0)
    first, second, x = of(low_rank(2), Bias(torch.randn(OUT))), of(low_rank(3)), torch.randn(4, IN)
    found = combine([Member("a", first, 0.7), Member("b", second, -0.5)])
    joined, bias = found.ops["m"]
    assert isinstance(joined, LowRank)
    assert joined.rank == 5
    assert joined.a.mT.is_contiguous()
    assert isinstance(bias, Bias)
    torch.testing.assert_close(updates(found, x), 0.7 * updates(first, x) - 0.5 * updates(second, x))


def test_a_weight_that_halves_hold_exactly_keeps_the_factors_small() -> None:
    torch.manual_seed(0)
    members = [of(low_rank(2, torch.bfloat16)), of(low_rank(3, torch.bfloat16))]
    (exact,) = combine([Member("a", members[0], 0.5), Member("b", members[1], -2.0)]).ops["m"]
    (rounded,) = combine([Member("a", members[0], 0.7), Member("b", members[1], 1.0)]).ops["m"]
    assert {t.dtype for t in exact.tensors()} == {torch.bfloat16}
    assert {t.dtype for t in rounded.tensors()} == {torch.bfloat16, torch.float32}


def test_other_modules_and_none_at_all() -> None:
    torch.manual_seed(0)
    found = combine([Member("a", of(low_rank(2)), 1.0), Member("b", of(low_rank(2), module="n"), 2.0)])
    assert set(found.ops) == {"m", "n"}
    assert combine([Member("a", of(low_rank(2)), 0.0)]).ops == {}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (of(ScaleInput(torch.zeros(IN))), "otherwise than by adding"),
        (of(LowRankInput(torch.zeros(IN, 2), torch.zeros(2, IN))), "otherwise than by adding"),
        (Adapter("LORA", {}, vocab_size=40), "reads tokens of its own"),
        (Adapter("LORA", {}, num_logits=40), "writes tokens of its own"),
        (Adapter("LORA", {}, invocation_tokens=(3, 4)), "invocation tokens"),
    ],
)
def test_whoever_does_more_than_add_is_named_with_the_reason(other: Adapter, reason: str) -> None:
    told = refusal(lambda: combine([Member("sound", of(low_rank(2)), 1.0), Member("other@3", other, 0.0)]))
    assert told.startswith("other@3 cannot be combined")
    assert reason in told


def test_a_head_is_what_it_is_and_there_is_one() -> None:
    head = Head(torch.randn(3, OUT), None)
    headed = replace(of(low_rank(2)), head=head)
    found = combine([Member("plain", of(low_rank(2)), 0.5), Member("headed", headed, 0.25)])
    assert found.head is not None
    torch.testing.assert_close(found.head.weight.float(), head.weight)
    told = refusal(lambda: combine([Member("a@1", headed, 1.0), Member("b@1", headed, 0.0)]))
    assert told.startswith("b@1 cannot be combined with other adapters: it has a head of its own, and so has a@1")
