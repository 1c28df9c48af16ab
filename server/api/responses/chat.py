"""Responses read as chats: the body of the chat that a response's body asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from adapters.quoting import quote
from server.api.responses.body import PromptBody, ResponseBody
from server.api.responses.items import Item, messages_of
from server.api.validation import first_fault
from server.api.wire import ChatCompletionBody
from server.errors import InvalidRequestError

RESPONSE_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
}
"""Fields of a chat by their names in a response."""


def chat_of(body: PromptBody, items: Sequence[Item], *, earlier: int = 0) -> ChatCompletionBody:
    """The chat that ``body`` asks for, with ``items`` as its input, the first ``earlier`` of them from before.

    Raises InvalidRequestError.
    """
    source = "previous_response_id" if body.conversation is None else "conversation"
    messages = messages_of(items, earlier=earlier, source=source)
    if body.instructions:
        messages.insert(0, {"role": "system", "content": body.instructions})
    if not messages:
        raise InvalidRequestError("input: there is nothing to answer", param="input")
    fields = {
        **body.extensions,
        "model": body.model,
        "messages": messages,
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": _response_format(body.text.format if body.text else None),
        "verbosity": body.text.verbosity if body.text else None,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        **_tools(body),
    }
    if isinstance(body, ResponseBody):
        fields |= {
            "max_completion_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "logprobs": True if body.tells_logprobs else None,
            "top_logprobs": body.top_logprobs,
            "user": body.user,
            "safety_identifier": body.safety_identifier,
            "prompt_cache_key": body.prompt_cache_key,
            "stream": body.stream,
        }
    try:
        return ChatCompletionBody.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        message, param = first_fault(error)
        raise InvalidRequestError(message, param=param) from error


def _response_format(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``text.format`` as a chat has it."""
    if given is None or given.get("type") != "json_schema":
        return dict(given) if given else None
    schema = {name: given[name] for name in ("name", "description", "schema", "strict") if name in given}
    return {"type": "json_schema", "json_schema": schema}


def _tools(body: PromptBody) -> dict[str, Any]:
    """``tools`` and ``tool_choice`` as a chat has them. Raises InvalidRequestError for tools that servers run."""
    tools = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(body.tools or ())]
    choice = body.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = _allowed(choice)
        tools = [tool for tool in tools if tool["function"]["name"] in allowed]
        choice = "required" if choice.get("mode") == "required" else "auto"
    elif isinstance(choice, dict):
        if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
            raise InvalidRequestError(
                f"tool_choice: {quote(str(choice.get('type'))[:64])} cannot be chosen; name a function as "
                "{'type': 'function', 'name': ...}",
                param="tool_choice",
            )
        choice = {"type": "function", "function": {"name": choice["name"]}}
    return {"tools": tools or None, "tool_choice": choice if tools or choice not in ("auto", "none") else None}


def _tool(tool: Item, place: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise InvalidRequestError(
            f"{place}: the tool {quote(str(tool.get('type'))[:64])} would be run by the server, which runs none; "
            "describe what you run yourself as a function",
            param=place,
        )
    if not isinstance(tool.get("name"), str):
        raise InvalidRequestError(f"{place}.name: is missing", param=f"{place}.name")
    wanted = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {key: tool[key] for key in wanted if tool.get(key) is not None}}


def _allowed(choice: Mapping[str, Any]) -> set[str]:
    """The names of the tools that may be called."""
    listed = choice.get("tools")
    names = {tool.get("name") for tool in listed if isinstance(tool, dict)} if isinstance(listed, list) else set()
    allowed = {name for name in names if isinstance(name, str)}
    if not allowed:
        raise InvalidRequestError("tool_choice.tools: names no function", param="tool_choice.tools")
    return allowed
