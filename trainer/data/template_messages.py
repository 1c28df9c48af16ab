"""Messages as a chat template takes them: what a server makes of the conversations that it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bases.tool_text import INDEXED_IDS, indexed_id
from trainer.data.conversations import DroppedRow
from trainer.data.messages import ASSISTANT, Message

Render = Callable[[Sequence[dict[str, Any]]], str]
_KEY = "probe_key"
_ID = "call{:05}"


@dataclass(frozen=True)
class MessageForm:
    """How calls are given to a template: arguments as an object or, with ``text_arguments``, encoded.

    Ids are made up, as rows have them rarely: ``indexed_ids`` tell the function, others are as Mistral demands them.
    """

    text_arguments: bool = False
    indexed_ids: bool = False

    def plain(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """``messages`` with their calls, and with the ids of those, or any, in the results behind them."""
        out: list[dict[str, Any]] = []
        unanswered: list[str] = []
        number = 0
        for message in messages:
            plain: dict[str, Any] = {"role": message.role, "content": message.content}
            if message.thought:
                plain["reasoning_content"] = message.thought
            if message.calls:
                plain["tool_calls"] = [self._call(call, number + i) for i, call in enumerate(message.calls)]
                number += len(message.calls)
                unanswered = [call["id"] for call in plain["tool_calls"]]
            elif message.role == "tool":
                plain["tool_call_id"] = unanswered.pop(0) if unanswered else _ID.format(number)
            out.append(plain)
        return out

    def _call(self, call: str, number: int) -> dict[str, Any]:
        function = json.loads(call)
        made = indexed_id(function["name"], number) if self.indexed_ids else _ID.format(number)
        if self.text_arguments:
            function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        return {"id": made, "type": "function", "function": function}


def find_message_form(template: str, render: Render) -> MessageForm:
    """What ``template``, which ``render`` renders, takes. ``render`` raises DroppedRow where it cannot."""
    indexed = INDEXED_IDS in template
    return MessageForm(_wants_text_arguments(render), indexed_ids=indexed)


def _wants_text_arguments(render: Render) -> bool:
    """Whether arguments come through encoded alone: as an object they fail, or are written as Python's repr."""
    call = json.dumps({"name": "probe", "arguments": {_KEY: 1}})
    turns = (Message("user", "Probe"), Message(ASSISTANT, "", calls=(call,)), Message("tool", "Probe"))

    def rendered(form: MessageForm) -> list[str]:
        found = []
        for conversation in (turns, turns[:2]):
            try:
                found.append(render(form.plain(conversation)))
            except DroppedRow:
                continue
        return found

    if any(_KEY in text and f"'{_KEY}'" not in text for text in rendered(MessageForm())):
        return False
    return any(json.dumps({_KEY: 1}) in text for text in rendered(MessageForm(text_arguments=True)))
