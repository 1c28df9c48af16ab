"""The output of a response: items, and the events that tell of them, made of the parts of a message as they come."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from server.text.output.parts import AssistantMessage, ContentDelta, Part, ReasoningDelta, ToolCallBegin, ToolCallDelta

Event = dict[str, Any]
Item = dict[str, Any]
_PADDED_TO = 32  # characters


def new_id(prefix: str) -> str:
    """An id that no other thing has."""
    return f"{prefix}_{uuid.uuid4().hex}"


class OutputItems:
    """The items so far, ``before`` first. What is added makes events, without the numbers that a stream gives them."""

    def __init__(self, before: Sequence[Item] = (), *, obfuscated: bool = False) -> None:
        self.items: list[Item] = list(before)
        self._before = len(before)
        self._obfuscated = obfuscated
        self._open: _OpenItem | None = None

    def first(self) -> list[Event]:
        """The events of the items before."""
        told = enumerate(map(self.events_of, self.items))
        return [{**event, "output_index": index} for index, events in told for event in events]

    def add(self, parts: Iterable[Part], logprobs: list[Any] | None = None) -> list[Event]:
        """The events of ``parts``; ``logprobs`` are those of the text among them."""
        events: list[Event] = []
        waiting = logprobs or []
        for part in parts:
            if isinstance(part, ToolCallDelta):
                events += self._delta(part.arguments, [])
            elif isinstance(part, ToolCallBegin):
                events += [*self.close(), *self._begin(_Call(part))]
            elif isinstance(part, ReasoningDelta):
                events += [*self._opened(_Reasoning), *self._delta(part.text, [])]
            else:
                events += [*self._opened(_Message), *self._delta(part.text, waiting)]
                waiting = []
        if waiting and isinstance(self._open, _Message):
            events += self._delta("", waiting)
        return events

    @staticmethod
    def events_of(item: Item) -> list[Event]:
        """The events of an item that is whole, without ``output_index``."""
        if item["type"] == "compaction":
            return [{"type": f"response.output_item.{state}", "item": item} for state in ("added", "done")]
        if item["type"] == "function_call":
            made: _OpenItem = _Call(ToolCallBegin(0, item["call_id"], item["name"]))
            text, logprobs = item["arguments"], []
        else:
            made = _Message() if item["type"] == "message" else _Reasoning()
            part = item["content"][0] if item["content"] else {}
            text, logprobs = part.get("text", ""), part.get("logprobs", [])
        made.item = {**made.item, "id": item["id"]}
        return [*made.begin(), made.delta(text, logprobs), *made.end(item["status"])]

    def close(self, status: str = "completed") -> list[Event]:
        """The end of the item that is open."""
        if self._open is None:
            return []
        ended, self._open = self._open, None
        events = ended.end(status)
        self.items[-1] = ended.item
        return [{**event, "output_index": len(self.items) - 1} for event in events]

    def finish(self, status: str) -> list[Event]:
        """The end of all; there is at least a message then."""
        begun = [] if len(self.items) > self._before else self._begin(_Message())
        return [*begun, *self.close(status)]

    def _opened(self, kind: type[_Message] | type[_Reasoning]) -> list[Event]:
        if isinstance(self._open, kind):
            return []
        return [*self.close(), *self._begin(kind())]

    def _begin(self, item: _OpenItem) -> list[Event]:
        self._open = item
        self.items.append(item.item)
        return [{**event, "output_index": len(self.items) - 1} for event in item.begin()]

    def _delta(self, text: str, logprobs: list[Any]) -> list[Event]:
        assert self._open is not None
        event = {**self._open.delta(text, logprobs), "output_index": len(self.items) - 1}
        if self._obfuscated:
            pad = -len(text) % _PADDED_TO
            event["obfuscation"] = secrets.token_urlsafe(_PADDED_TO)[:pad]
        return [event]


def parts_of(message: AssistantMessage) -> list[Part]:
    """The parts of a whole message, in the order in which models write them."""
    parts: list[Part] = [ReasoningDelta(message.reasoning)] if message.reasoning else []
    parts += [ContentDelta(message.content)] if message.content else []
    for index, call in enumerate(message.calls):
        parts += [ToolCallBegin(index, call.id, call.name), ToolCallDelta(index, call.arguments)]
    return parts


class _OpenItem:
    """An item that grows. Its events lack ``output_index``."""

    item: Item

    def begin(self) -> list[Event]:
        """What tells that it is there."""
        return [{"type": "response.output_item.added", "item": dict(self.item)}]

    def delta(self, text: str, logprobs: list[Any]) -> Event:
        """More of it."""
        raise NotImplementedError

    def end(self, status: str) -> list[Event]:
        """What tells that it is whole."""
        self.item = {**self.item, "status": status}
        return [{"type": "response.output_item.done", "item": self.item}]


class _Text(_OpenItem):
    """An item with one part of text."""

    kind: str  # of its part, and of that part's events

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._logprobs: list[Any] = []

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": self.kind, "text": text}

    def _at(self) -> Event:
        return {"item_id": self.item["id"], "content_index": 0}

    def _told(self, logprobs: list[Any]) -> Event:
        """What its events say beside their text."""
        return {}

    def begin(self) -> list[Event]:
        return [*super().begin(), {"type": "response.content_part.added", **self._at(), "part": self._part("")}]

    def delta(self, text: str, logprobs: list[Any]) -> Event:
        self._pieces.append(text)
        self._logprobs += logprobs
        return {"type": f"response.{self.kind}.delta", **self._at(), "delta": text, **self._told(logprobs)}

    def end(self, status: str) -> list[Event]:
        text = "".join(self._pieces)
        part = self._part(text)
        self.item = {**self.item, "content": [part]}
        return [
            {"type": f"response.{self.kind}.done", **self._at(), "text": text, **self._told(self._logprobs)},
            {"type": "response.content_part.done", **self._at(), "part": part},
            *super().end(status),
        ]


class _Message(_Text):
    kind = "output_text"

    def __init__(self) -> None:
        super().__init__()
        self.item = {
            "type": "message",
            "id": new_id("msg"),
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }

    def _part(self, text: str) -> dict[str, Any]:
        return {**super()._part(text), "annotations": [], "logprobs": list(self._logprobs)}

    def _told(self, logprobs: list[Any]) -> Event:
        return {"logprobs": logprobs}


class _Reasoning(_Text):
    kind = "reasoning_text"

    def __init__(self) -> None:
        super().__init__()
        self.item = {"type": "reasoning", "id": new_id("rs"), "status": "in_progress", "summary": [], "content": []}


class _Call(_OpenItem):
    def __init__(self, call: ToolCallBegin) -> None:
        self._pieces: list[str] = []
        self.item = {
            "type": "function_call",
            "id": new_id("fc"),
            "call_id": call.id,
            "name": call.name,
            "arguments": "",
            "status": "in_progress",
        }

    def delta(self, text: str, logprobs: list[Any]) -> Event:
        self._pieces.append(text)
        return {"type": "response.function_call_arguments.delta", "item_id": self.item["id"], "delta": text}

    def end(self, status: str) -> list[Event]:
        self.item = {**self.item, "arguments": "".join(self._pieces)}
        done = {
            "type": "response.function_call_arguments.done",
            "item_id": self.item["id"],
            "name": self.item["name"],
            "arguments": self.item["arguments"],
        }
        return [done, *super().end(status)]
