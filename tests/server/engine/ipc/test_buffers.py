"""Joining outputs loses nothing but the boundaries of steps, also in the outbox."""

from __future__ import annotations

import asyncio
import threading

from hypothesis import given
from hypothesis import strategies as st

from server.adapter_key import AdapterKey
from server.engine.ipc.buffers import MAX_PENDING, Outbox, OutputBuffer, compact, join_outputs, join_steps
from server.engine.messages import (
    AdapterUnloaded,
    EngineStats,
    FinishReason,
    FromEngine,
    RequestOutput,
    StepOutputs,
    TokenLogprobs,
)

KEY = AdapterKey("a", 1, "0" * 64)


def step(number: int, *outputs: RequestOutput) -> StepOutputs:
    return StepOutputs(list(outputs), EngineStats(steps=number), 0.5)


def tokens(messages: list[FromEngine]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for message in messages:
        for output in message.outputs if isinstance(message, StepOutputs) else []:
            found.setdefault(output.request_id, []).extend(output.token_ids)
    return found


def test_one_output_is_itself() -> None:
    output = RequestOutput(request_id="r", token_ids=[1])
    assert join_outputs([output]) is output


def test_everything_that_came_once_survives_in_order() -> None:
    first, second = TokenLogprobs(1, -0.1), TokenLogprobs(2, -0.2, ((2, -0.2),))
    joined = join_outputs(
        [
            RequestOutput(
                request_id="r",
                token_ids=[1],
                logprobs=[first],
                prompt_logprobs=[None],
                cached_tokens=8,
                queued_seconds=0.3,
                drafted_tokens=3,
                pooled=b"ab",
            ),
            RequestOutput(
                request_id="r",
                token_ids=[2],
                logprobs=[second],
                prompt_logprobs=[first],
                drafted_tokens=2,
                accepted_tokens=1,
                pooled=b"cd",
            ),
            RequestOutput(request_id="r", token_ids=[9], finish_reason=FinishReason.STOP, stop_token_id=9),
        ]
    )
    assert joined == RequestOutput(
        request_id="r",
        token_ids=[1, 2, 9],
        finish_reason=FinishReason.STOP,
        stop_token_id=9,
        logprobs=[first, second],
        prompt_logprobs=[None, first],
        cached_tokens=8,
        queued_seconds=0.3,
        drafted_tokens=5,
        accepted_tokens=1,
        pooled=b"abcd",
    )


def test_an_error_survives() -> None:
    error = RequestOutput(request_id="r", finish_reason=FinishReason.ERROR, error="why")
    joined = join_outputs([RequestOutput(request_id="r", token_ids=[1]), error])
    assert (joined.token_ids, joined.finish_reason, joined.error) == ([1], FinishReason.ERROR, "why")


def test_steps_join_by_request() -> None:
    a, b = RequestOutput(request_id="a", token_ids=[1]), RequestOutput(request_id="b", token_ids=[2])
    joined = join_steps([step(1, a, b), step(2, a)])
    assert [(o.request_id, o.token_ids) for o in joined.outputs] == [("a", [1, 1]), ("b", [2])]
    assert (joined.stats.steps, joined.step_seconds) == (2, 1.0)


def test_other_messages_keep_their_place() -> None:
    output = RequestOutput(request_id="r", token_ids=[1])
    messages = compact([step(1, output), step(2, output), AdapterUnloaded(KEY), step(3, output)])
    assert [type(message) for message in messages] == [StepOutputs, AdapterUnloaded, StepOutputs]
    assert tokens(messages) == {"r": [1, 1, 1]}


def test_a_stalled_reader_gets_no_more_than_some_steps_at_once() -> None:
    async def run() -> list[int]:
        buffer = OutputBuffer()
        for number in range(2000):
            buffer.put(RequestOutput(request_id="a", token_ids=[number]))
        assert len(buffer) <= MAX_PENDING
        taken: list[int] = []
        while len(taken) < 2000:
            part = (await buffer.get()).token_ids
            assert len(part) <= MAX_PENDING
            taken += part
        return taken

    assert asyncio.run(run()) == list(range(2000))


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
