"""Conversations with tools for chat templates that write none, and old or foreign forms of calls brought into one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from bases.tool_text import call_text, indexed_id, system_text, tools_text, with_calls
from server.text.template_environment import Message
from server.text.template_form import SYSTEM, TOOL, USER, content_text, decoded_arguments

FUNCTION = "function"  # the role of results, before there were tools
_SHORT = 9  # letters and digits, that Mistral's templates take


def called(message: Message) -> list[dict[str, Any]]:
    """The functions that a message calls, each with a name and arguments."""
    calls = message.get("tool_calls")
    found = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    found = found or [message.get("function_call")]
    return [call for call in found if isinstance(call, dict) and isinstance(call.get("name"), str)]


def with_tool_calls(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with calls of functions as calls of tools: most templates know no other."""
    out: list[Message] = []
    last = ""
    for number, message in enumerate(messages):
        if isinstance(message.get("function_call"), dict) and not message.get("tool_calls"):
            last = f"call_{number}"
            calls = [{"id": last, "type": "function", "function": message["function_call"]}]
            out.append({**_without(message, "function_call"), "tool_calls": calls})
        elif message["role"] == FUNCTION:
            out.append({**message, "role": TOOL, "tool_call_id": message.get("tool_call_id") or last})
        else:
            out.append(message)
    return out


def with_indexed_ids(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with ids of calls that tell the function and count the calls, as some templates write them out."""
    out: list[Message] = []
    new: dict[Any, str] = {}  # those of the last calls, by the ids that were sent
    number = 0
    for message in messages:
        plain = dict(message)
        if isinstance(calls := message.get("tool_calls"), list):
            plain["tool_calls"] = []
            for call in calls:
                made = indexed_id(call["function"]["name"], number)
                new[call.get("id")] = made
                plain["tool_calls"].append({**call, "id": made})
                number += 1
        elif message.get("tool_call_id") in new:
            plain["tool_call_id"] = new[message["tool_call_id"]]
        out.append(plain)
    return out


def with_short_ids(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with ids of calls that Mistral's templates take, the same where they were the same."""
    out = []
    for message in messages:
        plain = dict(message)
        if isinstance(calls := message.get("tool_calls"), list):
            plain["tool_calls"] = [_with_short(call, "id") if isinstance(call, dict) else call for call in calls]
        out.append(_with_short(plain, "tool_call_id"))
    return out


def _with_short(holder: dict[str, Any], key: str) -> dict[str, Any]:
    given = holder.get(key)
    if not isinstance(given, str) or (len(given) == _SHORT and given.isalnum() and given.isascii()):
        return holder
    return {**holder, key: hashlib.sha256(given.encode()).hexdigest()[:_SHORT]}


def written_calls(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with calls as the text of their messages."""
    out = []
    for message in messages:
        calls = called(message)
        if calls:
            texts = [call_text(str(call.get("name")), decoded_arguments(call.get("arguments"))) for call in calls]
            said = with_calls(content_text(message.get("content")), texts)
            out.append({**_without(message, "tool_calls", "function_call"), "content": said})
        else:
            out.append(message)
    return out


def written_tools(messages: Sequence[Message], tools: Sequence[Any], *, system: bool) -> list[Message]:
    """``messages`` with ``tools`` in the system message, or in the first one where a template knows no ``system``."""
    first, *rest = messages
    if first["role"] == SYSTEM or not system:
        return [{**first, "content": system_text(content_text(first.get("content")), tools)}, *rest]
    return [{"role": SYSTEM, "content": tools_text(tools)}, *messages]


def results_of_users(messages: Sequence[Message]) -> list[Message]:
    """``messages`` with results as what a user says, for templates that know no such role; several in a row as one."""
    out: list[Message] = []
    joined = False
    for message in messages:
        is_result = message["role"] in (TOOL, FUNCTION)
        if is_result and joined:
            said = [content_text(one.get("content")) for one in (out[-1], message)]
            out[-1] = {**out[-1], "content": "\n".join(said)}
        else:
            out.append({"role": USER, "content": content_text(message.get("content"))} if is_result else message)
        joined = is_result
    return out


def _without(message: Message, *keys: str) -> Message:
    return {key: value for key, value in message.items() if key not in keys}
