"""Messages read as chats: the body of the chat that a message's body asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from pydantic import ValidationError

from adapters.quoting import quote
from server.api.anthropic_messages.body import CountBody, MessageBody, ToolChoice
from server.api.validation import first_fault
from server.api.wire import ChatCompletionBody
from server.errors import InvalidRequestError

Message = dict[str, Any]
Part = dict[str, str]
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
MESSAGE_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
}
"""Fields of a chat by their names in a message."""


def chat_of(body: CountBody) -> ChatCompletionBody:
    """The chat that ``body`` asks for. Raises InvalidRequestError that names the place of what is wrong."""
    messages = _system(body.system)
    for number, message in enumerate(body.messages):
        messages += _messages(message, f"messages[{number}]")
    fields = {
        **(body.model_extra or {}),
        "model": body.model,
        "messages": messages,
        # Whoever sends the beginning of an answer wants the rest of it.
        "continue_final_message": True if _is_begun(messages[-1]) else None,
        **_tools(body),
        **_output(body),
    }
    if isinstance(body, MessageBody):
        fields |= {
            "max_completion_tokens": body.max_tokens,
            "stop": body.stop_sequences or None,
            "stream": body.stream,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "user": body.metadata and body.metadata.user_id,
        }
    try:
        return ChatCompletionBody.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        fault, param = first_fault(error)
        raise InvalidRequestError(fault, param=param) from error


def _is_begun(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message.get("content")) and "tool_calls" not in message


def _system(system: str | Sequence[Mapping[str, Any]] | None) -> list[Message]:
    if not system:
        return []
    content = system if isinstance(system, str) else [_text(block, f"system[{i}]") for i, block in enumerate(system)]
    return [{"role": "system", "content": content}]


def _messages(message: Mapping[str, Any], place: str) -> list[Message]:
    """A message as those of a chat: the results of tools are messages of their own there, before what is said."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise _fault(f"{place}.role", "must be user or assistant; instructions stand in `system`")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise _fault(f"{place}.content", "must be a text or a list of blocks")
    if role == "assistant":
        return [_assistant(content, f"{place}.content")]
    results, parts = list[Message](), list[Part]()
    for number, block in enumerate(content):
        at = f"{place}.content[{number}]"
        if block.get("type") == "tool_result":
            results.append(_result(block, at))
        else:
            parts.append(_text(block, at))
    return [*results, {"role": role, "content": parts}] if parts or not results else results


def _assistant(blocks: Sequence[Mapping[str, Any]], place: str) -> Message:
    parts, calls, thoughts = list[Part](), list[dict[str, Any]](), ""
    for number, block in enumerate(blocks):
        at = f"{place}[{number}]"
        match block.get("type"):
            case "thinking":
                thoughts += _string(block, "thinking", at)
            case "redacted_thinking":
                pass  # another server's, which nobody here can read
            case "tool_use":
                calls.append(_call(block, at))
            case _:
                parts.append(_text(block, at))
    message: Message = {"role": "assistant", "content": parts or None}
    message |= {"tool_calls": calls} if calls else {}
    return message | ({"reasoning_content": thoughts} if thoughts else {})


def _call(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise _fault(f"{place}.input", "must be an object")
    name = _string(block, "name", place)
    function = {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
    return {"id": _string(block, "id", place), "type": "function", "function": function}


def _result(block: Mapping[str, Any], place: str) -> Message:
    content = block.get("content") or ""
    if isinstance(content, list):
        content = [_text(part, f"{place}.content[{number}]") for number, part in enumerate(content)]
    elif not isinstance(content, str):
        raise _fault(f"{place}.content", "must be a text or a list of blocks")
    return {"role": "tool", "tool_call_id": _string(block, "tool_use_id", place), "content": content}


def _text(block: Any, place: str) -> Part:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind != "text":
        raise _fault(place, f"{quote(str(kind)[:64])} is not served: only text is read and written")
    return {"type": "text", "text": _string(block, "text", place)}


def _string(block: Mapping[str, Any], key: str, place: str) -> str:
    if not isinstance(value := block.get(key), str):
        raise _fault(f"{place}.{key}", "must be a text")
    return value


def _tools(body: CountBody) -> dict[str, Any]:
    if not body.tools:
        return {}
    tools = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(body.tools)]
    choice = body.tool_choice
    parallel = False if choice is not None and choice.disable_parallel_tool_use else None
    return {"tools": tools, "tool_choice": _choice(choice), "parallel_tool_calls": parallel}


def _choice(choice: ToolChoice | None) -> str | dict[str, Any] | None:
    if choice is None:
        return None
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if not choice.name:
        raise _fault("tool_choice.name", "is missing")
    return {"type": "function", "function": {"name": choice.name}}


def _tool(tool: Mapping[str, Any], place: str) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        raise _fault(
            place,
            f"the tool {quote(str(tool['type'])[:64])} would be run by the server, which runs none; describe what you "
            "run yourself by an input_schema",
        )
    if not isinstance(schema := tool.get("input_schema"), dict):
        raise _fault(f"{place}.input_schema", "must be an object")
    function = {"name": _string(tool, "name", place), "parameters": schema}
    function |= {key: tool[key] for key in ("description", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _output(body: CountBody) -> dict[str, Any]:
    """The form of the answer, and whether it is thought about first."""
    fields: dict[str, Any] = {}
    config = body.output_config
    if config is not None and config.format is not None:
        if config.format.get("type") != "json_schema" or not isinstance(config.format.get("schema"), dict):
            raise _fault("output_config.format", "must be {'type': 'json_schema', 'schema': ...}")
        schema = {"name": "output", "schema": config.format["schema"], "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if config is not None and config.effort is not None:
        fields["reasoning_effort"] = config.effort
    if body.thinking is not None:
        given = (body.model_extra or {}).get("chat_template_kwargs") or {}
        fields["chat_template_kwargs"] = {"enable_thinking": body.thinking.type != "disabled", **given}
    return fields


def _fault(place: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(f"{place}: {what}", param=place)
