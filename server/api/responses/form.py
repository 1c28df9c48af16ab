"""How responses are written: as an object, and as the events of its making."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from typing_extensions import override

from server.api.answer_form import AnswerForm, EventWriter, entries
from server.api.error_responses import ApiError
from server.api.event_stream import event
from server.api.job import Job
from server.api.large_answer import json_parts, packed
from server.api.logprobs import chat_logprobs
from server.api.outputs import Completion, TextDelta, Usage
from server.api.responses.body import ResponseBody
from server.api.responses.outputs import Event, OutputItems, new_id, parts_of
from server.api.wire import SamplingBody

Response = dict[str, Any]
Keep = Callable[[Response], Awaitable[None]]
_STATUS = {"length": "incomplete"}  # by why an output ended


def usage_body(*jobs: Usage) -> dict[str, Any]:
    """Token counts of all ``jobs`` of a response, as responses tell them."""
    read, cached = sum(usage.prompt_tokens for usage in jobs), sum(usage.cached_tokens for usage in jobs)
    thought = sum(sum(usage.thought.values()) for usage in jobs)
    made = sum(sum(usage.completion.values()) for usage in jobs)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": read - cached},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": read + made,
    }


class ResponseForm(AnswerForm):
    """The form of one response. ``keep`` is told the whole of it, before the client is.

    Its output begins with the items ``before``, which took the tokens ``spent``.
    """

    def __init__(
        self,
        body: ResponseBody,
        model: str,
        keep: Keep | None = None,
        before: Sequence[dict[str, Any]] = (),
        spent: Sequence[Usage] = (),
    ) -> None:
        self.id = new_id("resp")
        self.created = int(time.time())
        self._body = body
        self._model = model
        self._keep = keep
        self.before = before
        self._spent = spent

    @override
    async def whole(self, job: Job, completions: list[Completion], usage: Usage) -> list[bytes]:
        (completion,) = completions

        def make() -> Response:
            output = OutputItems(self.before)
            output.add(parts_of(completion.message), _logprobs(job, completion))
            status = _STATUS.get(completion.finish_reason or "", "completed")
            output.finish(status)
            return self.response(status, output.items, usage)

        response = await job.tokenizer.off_loop(entries(job, completions), make)
        await self.kept(response)
        return json_parts(response)

    @override
    def writer(self, job: Job, body: SamplingBody) -> ResponseWriter:
        options = self._body.stream_options
        return ResponseWriter(self, job, obfuscated=bool(options and options.include_obfuscation))

    async def kept(self, response: Response) -> None:
        """Keep ``response``, if it is to be kept."""
        if self._keep is not None:
            await self._keep(response)

    def response(
        self,
        status: str,
        output: list[dict[str, Any]] | None = None,
        usage: Usage | None = None,
        error: dict[str, Any] | None = None,
    ) -> Response:
        """The response as it is now."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": bool(self._body.background),
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": output or [],
            "usage": None if usage is None else usage_body(*self._spent, usage),
            "model": self._model,
            **_echo(self._body),
        }


class ResponseWriter(EventWriter):
    """Writes one stream: numbered events, each with its name."""

    def __init__(self, form: ResponseForm, job: Job, *, obfuscated: bool = False) -> None:
        self._form = form
        self._job = job
        self._items = OutputItems(form.before, obfuscated=obfuscated)
        self._next = 0
        self._status = "completed"

    @override
    def first(self) -> list[bytes]:
        begun = self._form.response("in_progress")
        told = [{"type": f"response.{state}", "response": begun} for state in ("created", "in_progress")]
        return self._written([*told, *self._items.first()])

    @override
    def of(self, delta: TextDelta, usage: Usage) -> list[bytes]:
        self._status = _STATUS.get(delta.finish_reason or "", "completed")
        return self._written(self._items.add(delta.parts, _logprobs(self._job, delta)))

    @override
    async def last(self, usage: Usage) -> list[bytes]:
        events = self._items.finish(self._status)
        response = self._form.response(self._status, self._items.items, usage)
        await self._form.kept(response)
        return self._written([*events, {"type": f"response.{self._status}", "response": response}])

    @override
    def failure(self, error: ApiError) -> bytes:
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self._items.close("incomplete")
        response = self._form.response("failed", self._items.items, error={"code": code, "message": error.message})
        return b"".join(self._written([{"type": "response.failed", "response": response}]))

    def _written(self, events: list[Event]) -> list[bytes]:
        numbered = [{**one, "sequence_number": number} for number, one in enumerate(events, self._next)]
        self._next += len(events)
        return [event(one, one["type"]) for one in numbered]


def _logprobs(job: Job, part: Completion | TextDelta) -> list[Any]:
    if job.sampling.logprobs is None:
        return []
    told: list[Any] = chat_logprobs(part.tokens, job.sampling.logprobs, job.tokenizer, pack=packed)["content"]
    return told


def _echo(body: ResponseBody) -> dict[str, Any]:
    """What a response repeats of its request, with what holds where the request is silent."""
    extensions = body.extensions
    return {
        "previous_response_id": body.previous_response_id,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "presence_penalty": extensions.get("presence_penalty") or 0.0,
        "frequency_penalty": extensions.get("frequency_penalty") or 0.0,
        "top_logprobs": body.top_logprobs or 0,
        "tools": [_tool(tool) for tool in body.tools or ()],
        "tool_choice": body.tool_choice or "auto",
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {
            "format": (body.text and body.text.format) or {"type": "text"},
            "verbosity": (body.text and body.text.verbosity) or "medium",
        },
        "reasoning": {
            "effort": body.reasoning and body.reasoning.effort,
            "summary": body.reasoning and (body.reasoning.summary or body.reasoning.generate_summary),
        },
        "truncation": body.truncation or "disabled",
        "store": body.keeps,
        "service_tier": "default",
        "metadata": body.metadata or {},
        "user": body.user,
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
        "prompt_cache_retention": body.prompt_cache_retention,
        "conversation": None if body.conversation_id is None else {"id": body.conversation_id},
    }


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "name": "", "description": None, "parameters": None, "strict": None, **tool}
