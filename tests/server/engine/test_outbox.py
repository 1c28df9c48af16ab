"""The queue between the stepping thread and a reader that may be slow."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from server.engine.messages import AdapterUnloaded, FromEngine, RequestOutput
from server.engine.outbox import Outbox
from server.registry import AdapterKey
from tests.server.engine.test_coalesce import step, tokens

KEY = AdapterKey("a", 1, "0" * 64)


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=4), max_size=40))
def test_a_stalled_outbox_is_bounded_and_complete(steps: list[list[tuple[str, int]]]) -> None:
    sent: list[FromEngine] = [
        step(i, *(RequestOutput(request_id=name, token_ids=[token]) for name, token in outputs))
        for i, outputs in enumerate(steps)
    ]
    outbox = Outbox(limit=3)
    for message in sent:
        outbox.put(message)
        assert len(outbox) <= 3
    outbox.close()
    taken = []
    while batch := outbox.take():
        taken += batch
    assert tokens(taken) == tokens(sent)


def test_take_waits_for_a_message_and_for_the_end() -> None:
    outbox = Outbox()
    taken: list[list[FromEngine]] = []
    taker = threading.Thread(target=lambda: taken.extend([outbox.take(), outbox.take()]))
    taker.start()
    outbox.put(AdapterUnloaded(KEY))
    outbox.close()
    taker.join(10)
    assert taken == [[AdapterUnloaded(KEY)], []]
