"""Tools in the bodies of requests: which there are, which is to be called, and calls and results of a conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from adapters.quoting import quote
from bases.tool_text import plain_function
from server.api.wire_fields import Wire
from server.text.tokenizer import count_characters

MAX_TOOLS = 128
MAX_TOOL_CHARS = 500_000  # of all of a request
MAX_CALLS = 256  # of one message
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


class FunctionDefinition(Wire):
    """A function that may be called. Without ``parameters`` it takes none."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("must have 1 to 128 letters, digits or characters of _ . : / -")
        return name

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        for key, kind, word in (("properties", dict, "an object"), ("required", list, "a list")):
            if not isinstance((schema or {}).get(key, kind()), kind):
                raise ValueError(f"{key} of the JSON schema must be {word}")
        return schema

    @property
    def for_template(self) -> dict[str, Any]:
        """It as templates write it."""
        return plain_function(self.name, self.description, self.parameters)


class Tool(Wire):
    """One tool."""

    function: FunctionDefinition

    @model_validator(mode="before")
    @classmethod
    def _check_type(cls, data: Any) -> Any:
        kind = data.get("type", "function") if isinstance(data, dict) else "function"
        if kind != "function":
            raise ValueError(f"the type {quote(str(kind)[:64])} is not served; describe what you run as a function")
        return data


Tools = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)]
Functions = Annotated[list[FunctionDefinition], Field(fail_fast=True, max_length=MAX_TOOLS)]


@dataclass(frozen=True)
class ToolUse:
    """What may be called, or has to be: any of them where it is ``required``, the one that is ``named``."""

    functions: tuple[FunctionDefinition, ...]
    required: bool = False
    named: str | None = None
    parallel: bool = True

    @property
    def forced(self) -> bool:
        """Whether there has to be a call."""
        return self.required or self.named is not None

    @property
    def callable(self) -> tuple[FunctionDefinition, ...]:
        """Those that the answer may call."""
        return tuple(one for one in self.functions if self.named in (None, one.name))

    @property
    def for_template(self) -> list[dict[str, Any]]:
        """All as templates write them."""
        return [{"type": "function", "function": one.for_template} for one in self.functions]


def tool_use(
    functions: Sequence[FunctionDefinition], choice: Any, *, field: str, choice_field: str, parallel: bool
) -> ToolUse | None:
    """What a body asks for; None where nothing may be called. Raises ValueError that names the field."""
    names = [one.name for one in functions]
    if len(set(names)) < len(names):
        raise ValueError(f"`{field}`: two functions have one name")
    if count_characters([one.for_template for one in functions]) > MAX_TOOL_CHARS:
        raise ValueError(f"`{field}` may have at most {MAX_TOOL_CHARS} characters in all; send fewer or shorter ones")
    mode, allowed = _chosen(choice, choice_field)
    if mode == "required" or allowed:
        if not functions:
            raise ValueError(f"`{choice_field}` asks for a call, but there are no `{field}`; send them")
        if unknown := [name for name in allowed if name not in names]:
            raise ValueError(f"`{choice_field}`: {quote(unknown[0])} is none of `{field}`")
    if not functions or mode == "none":
        return None
    kept = tuple(one for one in functions if mode == "named" or not allowed or one.name in allowed)
    named = allowed[0] if mode == "named" else None
    return ToolUse(kept, required=mode == "required", named=named, parallel=parallel)


def _chosen(choice: Any, field: str) -> tuple[str, list[str]]:
    """How is called (none, auto, required, named), and which may be. Raises ValueError."""
    if choice is None or choice in ("auto", "none", "required"):
        return choice or "auto", []
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools" and isinstance(allowed := choice.get("allowed_tools"), dict):
            names = [_function_name(tool) for tool in allowed.get("tools") or () if isinstance(tool, dict)]
            if allowed.get("mode") in ("auto", "required") and names and all(names):
                return allowed["mode"], [name for name in names if name]
        elif choice.get("type", "function") == "function" and (name := _function_name(choice)):
            return "named", [name]
    form = '{"name": ...}' if field == "function_call" else '{"type": "function", "function": {"name": ...}}'
    raise ValueError(f"`{field}` must be 'none', 'auto', 'required' or {form}")


def _function_name(holder: Mapping[str, Any]) -> str | None:
    function = holder.get("function", holder)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


# ---- conversations ----


def check_calls(message: Mapping[str, Any]) -> None:
    """Raise ValueError for what a message says of calls, results and thoughts that is in no form that is known."""
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list) or len(calls) > MAX_CALLS:
            raise ValueError(f"tool_calls must be a list of at most {MAX_CALLS} calls")
        for number, call in enumerate(calls):
            _check_call(call, f"tool_calls[{number}]")
    if message.get("function_call") is not None:
        _check_function(message["function_call"], "function_call")
    if not isinstance(message.get("tool_call_id"), str | None):
        raise ValueError("tool_call_id must be a text")
    for name in _THOUGHTS:
        if not isinstance(message.get(name), str | None):
            raise ValueError(f"{name} must be a text")


def _check_call(call: Any, place: str) -> None:
    if not isinstance(call, dict):
        raise ValueError(f"{place} must be an object")
    if call.get("type", "function") not in ("function", None):
        raise ValueError(f"{place}.type must be 'function'")
    if not isinstance(call.get("id"), str | None):
        raise ValueError(f"{place}.id must be a text")
    _check_function(call.get("function"), f"{place}.function")


def _check_function(function: Any, place: str) -> None:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{place} must be an object with the name and arguments of a function")
    if not isinstance(function.get("arguments"), str | dict | None):
        raise ValueError(f"{place}.arguments must be a text that holds a JSON object")


def check_results(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError for a result that stands behind no call that it could be of."""
    ids: set[str] = set()
    called = False
    for number, message in enumerate(messages):
        calls = message.get("tool_calls") or []
        called = called or bool(calls)
        ids.update(call["id"] for call in calls if isinstance(call.get("id"), str))
        if message["role"] != "tool":
            continue
        answered = message.get("tool_call_id")
        if not called or (answered and ids and answered not in ids):
            which = f"its tool_call_id {quote(str(answered)[:64])} is of no call" if called else "there is no call"
            raise ValueError(
                f"`messages[{number}]` has the role tool, but {which} in the messages before it; send the assistant's "
                "message with its tool_calls, too"
            )
