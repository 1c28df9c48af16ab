"""Functions that an assistant may call, written as text where no chat template does it.

A server that takes no list of tools can still be sent this text, so training and serving agree.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from trainer.data.messages import Conversation, Message, from_json, named
from trainer.errors import DataError

_HEADER = "You can call these functions:\n"
_FOOTER = '\nTo call one, answer with {"name": ..., "arguments": {...}} alone.'


def tools_of(where: str, value: Any) -> list[Any]:
    """The functions in ``value``, a list or its JSON text. Raises DataError."""
    tools = from_json(where, value) or []
    if not isinstance(tools, list):
        raise DataError(f"{where} must be a list of functions, not {named(tools)}")
    return tools


def written_out(conversation: Conversation, tools: list[Any]) -> Conversation:
    """``conversation`` with ``tools`` in its system message, and calls as the text of their messages."""
    out = tuple(replace(m, content=_with_calls(m), calls=()) if m.calls else m for m in conversation)
    if not tools:
        return out
    text = _HEADER + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + _FOOTER
    if out and out[0].role == "system":
        return (replace(out[0], content=f"{out[0].content}\n\n{text}"), *out[1:])
    return (Message("system", text), *out)


def _with_calls(message: Message) -> str:
    return "\n".join(filter(None, (message.content, *message.calls)))
