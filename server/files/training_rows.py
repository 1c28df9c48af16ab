"""Rows to train on, as OpenAI's clients write them: checked, and turned into what ``hotswap train`` reads.

Conversations ({"messages": [...]}, with "tools"), preferences ({"input", "preferred_output", "non_preferred_output"})
and texts ({"prompt", "completion"}).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from adapters.quoting import quote
from server.files.lines import RowError, kind_of

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class RowKind(StrEnum):
    """What the rows of a file are. All of one file are alike."""

    CHAT = "chat"
    PREFERENCE = "preference"
    COMPLETION = "completion"


def kind_of_row(row: Mapping[str, Any]) -> RowKind:
    """Raises RowError for a row of no kind."""
    if "messages" in row:
        return RowKind.CHAT
    if "preferred_output" in row or "non_preferred_output" in row:
        return RowKind.PREFERENCE
    if "prompt" in row and "completion" in row:
        return RowKind.COMPLETION
    names = ", ".join(quote(name) for name in list(row)[:5]) or "nothing"
    raise RowError(
        "has neither `messages` (to learn their answers), nor `input`, `preferred_output` and `non_preferred_output` "
        f"(for the method dpo), nor `prompt` and `completion`; it has {names}"
    )


def trainer_row(row: Mapping[str, Any], kind: RowKind) -> dict[str, Any]:
    """``row`` as ``hotswap train`` reads it. Raises RowError with the field at fault."""
    match kind:
        case RowKind.CHAT:
            messages = _messages(row.get("messages"), "messages")
            _check_answered(messages)
            return {"messages": messages, **_tools(row, "")}
        case RowKind.PREFERENCE:
            return _preference(row)
        case RowKind.COMPLETION:
            return {name: _text(row[name], name) for name in ("prompt", "completion")}


def _preference(row: Mapping[str, Any]) -> dict[str, Any]:
    given = row.get("input")
    if not isinstance(given, dict):
        raise RowError(f"input: must be an object with `messages`, not {kind_of(given)}")
    messages = _messages(given.get("messages"), "input.messages")
    if messages[-1]["role"] == "assistant":
        raise RowError("input.messages: must not end with an assistant's message, which the outputs are")
    answers = {}
    for ours, theirs in (("chosen", "preferred_output"), ("rejected", "non_preferred_output")):
        answers[ours] = _messages(row.get(theirs), theirs)
        if [message["role"] for message in answers[ours]] != ["assistant"]:
            raise RowError(f"{theirs}: must be one message of the assistant")
        if not _says_something(answers[ours][0]):
            raise RowError(f"{theirs}[0].content: is empty")
    if answers["chosen"] == answers["rejected"]:
        raise RowError("non_preferred_output: is the same as preferred_output")
    return {"messages": messages, **_tools(given, "input."), **answers}


def _check_answered(messages: list[dict[str, Any]]) -> None:
    """Raise RowError where there is nothing to learn."""
    if messages[-1]["role"] != "assistant":
        raise RowError(f"messages: must end with the assistant's, not with a message of {messages[-1]['role']}")
    learned = [i for i, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight") != 0]
    if not learned:
        raise RowError("messages: every message of the assistant has weight 0, so that there is nothing to learn")
    if not any(message["role"] not in ("system", "developer", "assistant") for message in messages[: learned[-1]]):
        raise RowError("messages: nothing stands before the assistant's answer; begin with a message of the user")
    if not any(_says_something(messages[i]) for i in learned):
        raise RowError(f"messages[{learned[-1]}].content: is empty")


def _says_something(message: Mapping[str, Any]) -> bool:
    return bool(str(message["content"] or "").strip() or message.get("tool_calls") or message.get("function_call"))


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise RowError(f"{where}: must be a list of messages, not {kind_of(value)}")
    if not value:
        raise RowError(f"{where}: is empty")
    messages = [_message(message, f"{where}[{i}]") for i, message in enumerate(value)]
    _check_results(messages, where)
    return messages


def _check_results(messages: list[dict[str, Any]], where: str) -> None:
    """Raise RowError for a result that stands behind no call that it could be of: chats with one are refused, too."""
    ids: set[str] = set()
    called = False
    for i, message in enumerate(messages):
        calls = message.get("tool_calls", ())
        called = called or bool(calls)
        ids.update(call["id"] for call in calls if "id" in call)
        id = message.get("tool_call_id")
        if message["role"] == "tool" and (not called or (id and ids and id not in ids)):
            said = f"its tool_call_id {quote(id)} is of no call" if called and id else "there is no call"
            raise RowError(f"{where}[{i}]: has the role tool, but {said} in the messages before it")


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(f"{where}: must be an object with role and content, not {kind_of(value)}")
    role = value.get("role")
    if role not in _ROLES:
        shown = quote(role) if isinstance(role, str) else kind_of(role)
        raise RowError(f"{where}.role: must be {', '.join(_ROLES[:-1])} or {_ROLES[-1]}, not {shown}")
    calls = {name: value[name] for name in ("tool_calls", "function_call") if value.get(name) is not None}
    if calls and role != "assistant":
        raise RowError(f"{where}.{next(iter(calls))}: only the assistant calls functions")
    content = value.get("content")
    if content is None and not (role == "assistant" and (calls or value.get("refusal"))):
        raise RowError(f"{where}.content: is missing")
    message = {"role": role, "content": _content(content if content is not None else value.get("refusal"), where)}
    if "weight" in value and value["weight"] is not None:
        message["weight"] = _weight(value["weight"], role, where)
    if "tool_calls" in calls:
        message["tool_calls"] = _calls(calls["tool_calls"], f"{where}.tool_calls")
    elif calls:
        message["function_call"] = _function(calls["function_call"], f"{where}.function_call")
    for name in ("name", "tool_call_id", "reasoning_content"):
        if value.get(name) is not None:
            message[name] = _text(value[name], f"{where}.{name}")
    return message


def _content(value: Any, where: str) -> str:
    """A text, or the texts of parts one after another."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return _text(value, f"{where}.content")
    out = ""
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text"):
            said = quote(kind) if isinstance(kind, str) else kind_of(part)
            raise RowError(f"{where}.content[{i}]: only parts of type text can be learned, not {said}")
        out += _text(part.get("text"), f"{where}.content[{i}].text")
    return out


def _weight(value: Any, role: str, where: str) -> int:
    if isinstance(value, bool) or value not in (0, 1):
        raise RowError(f"{where}.weight: must be 0 or 1")
    if role != "assistant":
        raise RowError(f"{where}.weight: only messages of the assistant have a weight; no others are learned")
    return int(value)


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise RowError(f"{where}: must be a list, not {kind_of(value)}")
    out = []
    for i, call in enumerate(value):
        if not isinstance(call, dict):
            raise RowError(f"{where}[{i}]: must be an object, not {kind_of(call)}")
        function = _function(call.get("function"), f"{where}[{i}].function")
        identity = {"id": _text(call["id"], f"{where}[{i}].id")} if call.get("id") is not None else {}
        out.append({**identity, "type": "function", "function": function})
    return out


def _function(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise RowError(f"{where}: must be an object with name and arguments, not {kind_of(value)}")
    return {name: _text(value.get(name), f"{where}.{name}") for name in ("name", "arguments")}


def _tools(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The functions that a row may call."""
    tools = row.get("tools")
    if tools is None and (functions := row.get("functions")) is not None:
        if not isinstance(functions, list):
            raise RowError(f"{where}functions: must be a list, not {kind_of(functions)}")
        tools = [{"type": "function", "function": function} for function in functions]
    if tools is None:
        return {}
    if not isinstance(tools, list):
        raise RowError(f"{where}tools: must be a list, not {kind_of(tools)}")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            raise RowError(f'{where}tools[{i}]: must be {{"type": "function", "function": {{...}}}}')
        _text(function.get("name"), f"{where}tools[{i}].function.name")
    return {"tools": tools} if tools else {}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(
            f"{where}: must be a text, not {kind_of(value)}" if value is not None else f"{where}: is missing"
        )
    return value
