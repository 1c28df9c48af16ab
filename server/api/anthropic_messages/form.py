"""How messages are written: as an object, and as the events of its making."""

from __future__ import annotations

import base64
import hashlib
import uuid
from typing import Any

import msgspec
from typing_extensions import override

from server.api.answer_form import AnswerForm, EventWriter, entries
from server.api.anthropic_messages.errors import error_body
from server.api.error_responses import ApiError
from server.api.event_stream import event
from server.api.job import Job
from server.api.large_answer import json_parts
from server.api.outputs import Completion, TextDelta, Usage
from server.api.wire import SamplingBody
from server.text.output.parts import AssistantMessage, Part, ReasoningDelta, ToolCallBegin, ToolCallDelta

Event = dict[str, Any]


def usage_body(usage: Usage) -> dict[str, Any]:
    """Token counts as messages tell them: what was cached stands beside the input."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": sum(usage.completion.values()),
    }


class MessageForm(AnswerForm):
    """The form of one message."""

    def __init__(self) -> None:
        self._id = f"msg_{uuid.uuid4().hex}"

    @override
    async def whole(self, job: Job, completions: list[Completion], usage: Usage) -> list[bytes]:
        (completion,) = completions

        def make() -> list[bytes]:
            message = self.message(job, _blocks(completion.message), usage)
            return json_parts({**message, **ending(completion)})

        return await job.tokenizer.off_loop(entries(job, completions), make)

    @override
    def writer(self, job: Job, body: SamplingBody) -> MessageWriter:
        return MessageWriter(self, job)

    def message(self, job: Job, content: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """The message so far; what ended it is not known yet."""
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": job.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**usage_body(usage), "service_tier": "standard"},
        }


def ending(ended: Completion | TextDelta) -> dict[str, str | None]:
    """Why an output ended; which stop sequence it was, if it was one."""
    if ended.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if isinstance(ended.stop_reason, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": ended.stop_reason}
    return {"stop_reason": "tool_use" if ended.called else "end_turn", "stop_sequence": None}


def _blocks(message: AssistantMessage) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if message.reasoning:
        thinking = message.reasoning
        blocks.append({"type": "thinking", "thinking": thinking, "signature": _signature(thinking)})
    if message.content or not (message.reasoning or message.calls):
        blocks.append({"type": "text", "text": message.content})
    for call in message.calls:
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)})
    return blocks


def _input(arguments: str) -> dict[str, Any]:
    """The object that ``arguments`` spell; where they spell none, as an output that was cut, their text."""
    try:
        return msgspec.json.decode(arguments or "{}", type=dict[str, Any])
    except (ValueError, RecursionError):
        return {"arguments": arguments}


def _signature(thinking: str) -> str:
    """Clients keep thoughts that have one, and send them back. It says that they are whole, not whose they are."""
    return base64.b64encode(hashlib.sha256(thinking.encode("utf-8", "replace")).digest()).decode()


class MessageWriter(EventWriter):
    """Writes one stream: a message begins with the first delta, when it is known what of its prompt was cached."""

    def __init__(self, form: MessageForm, job: Job) -> None:
        self._form = form
        self._job = job
        self._begun = False
        self._open: str | None = None  # the type of the block that is
        self._thinking = ""
        self._index = -1
        self._ending: dict[str, str | None] = {"stop_reason": "end_turn", "stop_sequence": None}

    @override
    def of(self, delta: TextDelta, usage: Usage) -> list[bytes]:
        events = self._start(usage)
        for part in delta.parts:
            events += self._part(part)
        if delta.finish_reason is not None:
            self._ending = ending(delta)
        return _written(events)

    @override
    async def last(self, usage: Usage) -> list[bytes]:
        events = self._start(usage)
        if self._index < 0:
            events += self._begin("text", {"type": "text", "text": ""})
        events += [
            *self._close(),
            {"type": "message_delta", "delta": self._ending, "usage": usage_body(usage)},
            {"type": "message_stop"},
        ]
        return _written(events)

    @override
    def failure(self, error: ApiError) -> bytes:
        return event(error_body(error.status, error.message), "error")

    def _start(self, usage: Usage) -> list[Event]:
        if self._begun:
            return []
        self._begun = True
        return [{"type": "message_start", "message": self._form.message(self._job, [], usage)}, {"type": "ping"}]

    def _part(self, part: Part) -> list[Event]:
        if isinstance(part, ToolCallBegin):
            return self._begin("tool_use", {"type": "tool_use", "id": part.id, "name": part.name, "input": {}})
        if isinstance(part, ToolCallDelta):
            return [self._delta({"type": "input_json_delta", "partial_json": part.arguments})]
        if isinstance(part, ReasoningDelta):
            begun = self._opened("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._thinking += part.text
            return [*begun, self._delta({"type": "thinking_delta", "thinking": part.text})]
        return [
            *self._opened("text", {"type": "text", "text": ""}),
            self._delta({"type": "text_delta", "text": part.text}),
        ]

    def _opened(self, kind: str, block: dict[str, Any]) -> list[Event]:
        return [] if self._open == kind else self._begin(kind, block)

    def _begin(self, kind: str, block: dict[str, Any]) -> list[Event]:
        ended = self._close()
        self._open = kind
        self._index += 1
        return [*ended, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[Event]:
        if self._open is None:
            return []
        signed = []
        if self._open == "thinking":
            signed = [self._delta({"type": "signature_delta", "signature": _signature(self._thinking)})]
            self._thinking = ""
        self._open = None
        return [*signed, {"type": "content_block_stop", "index": self._index}]


def _written(events: list[Event]) -> list[bytes]:
    return [event(one, one["type"]) for one in events]
