"""Messages as data sets write them, the tools that they may call, and questions made of them.

Messages are OpenAI's role and content, ShareGPT's from and value, or lists of pairs. Tools are written as text where no
chat template does it, as a server does for such a template.
Knows neither rows nor tokens.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from bases.tool_text import call_text, system_text, template_tool, tools_text, with_calls
from trainer.config.data import CALL_ROLE, ROLES, MessageTags
from trainer.data.json_rows import HALF_CHARACTER, is_cut, unreadable
from trainer.errors import DataError

ASSISTANT = "assistant"
_ROLES = {
    "human": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bing": ASSISTANT, "bard": ASSISTANT, "model": ASSISTANT,
    "ai": ASSISTANT, "bot": ASSISTANT, "chatbot": ASSISTANT, "prompter": "user", "tool_call": CALL_ROLE,
    "observation": "tool", "function_response": "tool", "function": "tool", "tool_response": "tool", "ipython": "tool",
    **{role: role for role in (*ROLES, CALL_ROLE)},
}  # fmt: skip
_NO_ROLES: Mapping[str, str] = MappingProxyType({})
_TYPE_NAMES = {"int": "a number", "float": "a number", "bool": "true/false", "list": "a list", "dict": "an object"}


@dataclass(frozen=True)
class Message:
    """One message of a conversation. ``calls`` are the functions it calls, as JSON text; not ``learned`` is only read.

    A message of the user is never learned, unless everything is. ``thought`` is what the assistant thought before it
    answered, where the data has it beside the content.
    """

    role: str
    content: str
    learned: bool = True
    calls: tuple[str, ...] = ()
    thought: str = ""


Conversation = tuple[Message, ...]


def messages_of(where: str, value: Any, roles: Mapping[str, str] = _NO_ROLES) -> Conversation:
    """The messages in ``value``, a list or its JSON text; ``roles`` are names of roles beside the usual ones.

    Raises DataError that begins with ``where``.
    """
    items = from_json(where, value)
    if not isinstance(items, list):
        raise DataError(f"{where} must be a list of messages, not {named(items)}")
    return tuple(_message(where, i, item, roles) for i, item in enumerate(items))


def spelled_usually(where: str, value: Any, tags: MessageTags) -> Any:
    """The messages in ``value`` with the keys and roles that ``messages_of`` knows, where ``tags`` say otherwise."""
    if tags == _NO_TAGS:
        return value
    items = from_json(where, value)
    if not isinstance(items, list):
        return items
    role_tag, content_tag = tags.role_tag or "role", tags.content_tag or "content"
    if tags.role_tag is None and any(isinstance(item, dict) and "from" in item for item in items):
        role_tag, content_tag = "from", tags.content_tag or "value"
    names = {getattr(tags, f"{theirs}_tag"): ours for theirs, ours in _TAGGED.items()}
    out = []
    for i, item in enumerate(items):
        if not isinstance(item, dict) or role_tag not in item:
            raise DataError(f"{where}: message {i} must be an object with {role_tag} and {content_tag}")
        role, content = item[role_tag], item.get(content_tag)
        rest = {
            key: inner for key, inner in item.items() if key not in (role_tag, content_tag, "role", "content", "from")
        }
        out.append({**rest, "from": names.get(role, role) if isinstance(role, str) else role, "value": content})
    return out


_NO_TAGS = MessageTags()
_TAGGED = {
    "user": "human", "assistant": "gpt", "observation": "observation", "function": "function_call", "system": "system",
}  # fmt: skip


def pairs_of(where: str, value: Any, roles: Mapping[str, str] = _NO_ROLES) -> Conversation:
    """Earlier turns: a list of [user, assistant] pairs, or of messages; or its JSON text. Raises DataError."""
    items = from_json(where, value or [])
    if not isinstance(items, list):
        raise DataError(f"{where} must be a list of [user, assistant] pairs, not {named(items)}")
    out: list[Message] = []
    for i, item in enumerate(items):
        if isinstance(item, dict):
            out.append(_message(where, i, item, roles))
            continue
        if not (isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item)):
            raise DataError(f"{where}: turn {i} must be a pair of texts [user, assistant]")
        out += [Message("user", item[0]), Message(ASSISTANT, item[1])]
    return tuple(out)


def from_json(where: str, value: Any) -> Any:
    """``value``, parsed where it is text: CSV and Parquet hold lists so."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return []
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        return value
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where} {unreadable(error)}") from error
    if is_cut(value, parsed):
        raise DataError(f"{where} {HALF_CHARACTER}")
    return parsed


def named(value: object) -> str:
    """What ``value`` is, in words."""
    return "null" if value is None else _TYPE_NAMES.get(type(value).__name__, type(value).__name__)


def _message(where: str, i: int, item: Any, roles: Mapping[str, str]) -> Message:
    if not isinstance(item, dict):
        raise DataError(f"{where}: message {i} must be an object with role and content, not {named(item)}")
    keys = ("from", "value") if item.get("role") is None and "from" in item else ("role", "content")
    role: Any
    content: Any
    role, content = (item.get(key) for key in keys)
    here = f"{where}: message {i}"
    if isinstance(role, str):
        role = role_of(here, role, roles)
    calls = _calls(here, item)
    if content is None and role == ASSISTANT:
        content = ""  # beside calls, and an answer that is none
    for key, text in zip(keys, (role, content), strict=True):
        if not isinstance(text, str):
            raise DataError(f"{where}: {key} of message {i} must be text, not {named(text)}")
    if role == CALL_ROLE:
        role, content, calls = ASSISTANT, "", _said_calls(here, content) or calls
    return Message(role, content, _is_learned(here, item), calls, _thought(here, item, role))


_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # names for one thing, as transformers reads them


def _thought(where: str, item: Mapping[str, Any], role: str) -> str:
    if role != ASSISTANT:
        return ""
    key = next((name for name in _THOUGHTS if item.get(name) is not None), None)
    thought = item[key] if key else ""
    if not isinstance(thought, str):
        raise DataError(f"{where}: {key} must be text, not {named(thought)}")
    return thought.strip()


def role_of(where: str, name: str, roles: Mapping[str, str] = _NO_ROLES) -> str:
    """The role that a data set calls ``name``, by ``roles`` or usually. Raises DataError for one that nobody knows.

    A template would write it out literally, or leave the message out, and no server is asked so.
    """
    known = {**_ROLES, **{own.strip().lower(): role for own, role in roles.items()}}
    role = name.strip().lower()
    if role in known:
        return known[role]
    near = difflib.get_close_matches(role, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(
        f"{where}: the role {name!r} is none; {hint}data.roles says what other names stand for "
        f"({name}: user), and which are the template's own ({name}: {name})"
    )


def _calls(where: str, item: Mapping[str, Any]) -> tuple[str, ...]:
    """The functions called, each ``{"name": ..., "arguments": {...}}`` as JSON text."""
    out = []
    calls = item.get("tool_calls") or [call for call in (item.get("function_call"),) if call]
    if not isinstance(calls, list):
        raise DataError(f"{where}: tool_calls must be a list, not {named(calls)}")
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: each of tool_calls must be an object with the name of a function")
        arguments = from_json(where, function.get("arguments") or {})
        out.append(call_text(function["name"], arguments))
    return tuple(out)


def _said_calls(where: str, content: str) -> tuple[str, ...]:
    """The functions that the text of a message calls, one or a list, as ``_calls`` gives them; others as they are."""
    said = from_json(where, content)
    calls = said if isinstance(said, list) else [said]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return (content,)
    return tuple(call_text(call["name"], from_json(where, call.get("arguments") or {})) for call in calls)


def _is_learned(where: str, item: Mapping[str, Any]) -> bool:
    """OpenAI's ``weight`` (0 or 1) or Axolotl's ``train`` (true or false) exclude a message."""
    weight, train = item.get("weight"), item.get("train")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise DataError(f"{where}: weight must be 0 or 1, not {weight!r}")
    if train is not None and not isinstance(train, bool):
        raise DataError(f"{where}: train must be true or false, not {train!r}")
    return weight != 0 and train is not False


def with_system(conversation: Conversation, text: str | None) -> Conversation:
    """``conversation`` after a system message of ``text``, unless it begins with one or there is no text."""
    if not text or (conversation and conversation[0].role == "system"):
        return conversation
    return (Message("system", text), *conversation)


def last_answer(conversation: Conversation) -> int:
    """Where the assistant's last message stands."""
    return max(i for i, message in enumerate(conversation) if message.role == ASSISTANT)


def key_of(conversation: Conversation) -> bytes:
    """Bytes that are equal for equal conversations."""
    return msgspec.msgpack.encode(conversation)


def tools_of(where: str, value: Any) -> list[Any]:
    """The functions in ``value``, a list or its JSON text. Raises DataError."""
    tools = from_json(where, value) or []
    if not isinstance(tools, list):
        raise DataError(f"{where} must be a list of functions, not {named(tools)}")
    return tools


def with_tools_as(
    form: Literal["auto", "text", "template"], conversation: Conversation, tools: list[Any]
) -> tuple[Conversation, list[Any]]:
    """``conversation`` and the tools that are left to its template: as text, or in the form that templates expect."""
    left = form == "template"  # until the template is known, ``auto`` is text
    return (conversation, list(map(template_tool, tools))) if left else (written_out(conversation, tools), [])


def said_in_text(message: Message) -> str:
    """What ``message`` says, calls as text."""
    return with_calls(message.content, message.calls)


def written_out(conversation: Conversation, tools: list[Any]) -> Conversation:
    """``conversation`` with ``tools`` in its system message, and calls as the text of their messages."""
    out = tuple(replace(m, content=said_in_text(m), calls=()) if m.calls else m for m in conversation)
    if not tools:
        return out
    if out and out[0].role == "system":
        return (replace(out[0], content=system_text(out[0].content, tools)), *out[1:])
    return (Message("system", tools_text(tools)), *out)


@dataclass(frozen=True)
class Question:
    """What is sent, and the answer wanted.

    Exactly one of ``messages`` (the server renders them by the base's chat template) and ``prompt`` (text sent as it
    is) is set. ``row`` holds the columns as they were read, for metrics that need more than the ``reference``.
    ``tools`` are sent beside messages, whose calls and results are as clients send them.
    ``others`` are texts to compare the prompt with, what belongs to it first, or the second text of a pair. ``names``
    are those of all classes, where a text has any number of them; ``words`` say where the prompt's begin and end, where
    each has a tag.
    """

    messages: Conversation | None
    prompt: str | None
    reference: str
    row: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    words: tuple[tuple[int, int], ...] = ()
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class TokenQuestion:
    """A validation row to be answered in training: token ids of the prompt, and the response wanted."""

    input_ids: tuple[int, ...]
    response: str
