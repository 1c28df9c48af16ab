"""Joins outputs that nobody has taken yet, so that a slow reader costs memory for tokens and not for steps.

Knows the shape of the messages only. Nothing is lost but the boundaries between steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from server.engine.messages import FromEngine, RequestOutput, StepOutputs, TokenLogprobs


def join_outputs(outputs: Sequence[RequestOutput]) -> RequestOutput:
    """One output that says what several consecutive ones of one request said."""
    if len(outputs) == 1:
        return outputs[0]
    last = outputs[-1]
    return RequestOutput(
        request_id=last.request_id,
        token_ids=[token for output in outputs for token in output.token_ids],
        finish_reason=last.finish_reason,
        stop_token_id=last.stop_token_id,
        logprobs=_join_logprobs(outputs),
        prompt_logprobs=next((o.prompt_logprobs for o in outputs if o.prompt_logprobs is not None), None),
        cached_tokens=max(output.cached_tokens for output in outputs),
        queued_seconds=max(output.queued_seconds for output in outputs),
        error=last.error,
    )


def join_steps(steps: Sequence[StepOutputs]) -> StepOutputs:
    """One message for several consecutive steps: outputs by request, newest statistics, total duration."""
    by_request: dict[str, list[RequestOutput]] = {}
    for step in steps:
        for output in step.outputs:
            by_request.setdefault(output.request_id, []).append(output)
    return StepOutputs(
        outputs=[join_outputs(outputs) for outputs in by_request.values()],
        stats=steps[-1].stats,
        step_seconds=sum(step.step_seconds for step in steps),
    )


def compact(messages: Sequence[FromEngine]) -> list[FromEngine]:
    """The same messages in the same order, with every run of adjacent step outputs joined."""
    out: list[FromEngine] = []
    for is_step, run in groupby(messages, key=lambda message: isinstance(message, StepOutputs)):
        if is_step:
            out.append(join_steps([message for message in run if isinstance(message, StepOutputs)]))
        else:
            out.extend(run)
    return out


def _join_logprobs(outputs: Sequence[RequestOutput]) -> list[TokenLogprobs] | None:
    present = [output.logprobs for output in outputs if output.logprobs is not None]
    return [entry for entries in present for entry in entries] if present else None
