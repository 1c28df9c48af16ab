"""Tools and calls as plain text, for chat templates that know none: what the trainer writes, and a server as well.

An adapter trained on this text is asked with the same one. And what else both do alike for templates that do know them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

INDEXED_IDS = "<|tool_call_argument_begin|>"  # templates that write this write ids, which tell the function
_HEADER = "You can call these functions:\n"
_NO_PARAMETERS = {"type": "object", "properties": {}}
_FOOTER = '\nTo call one, answer with {"name": ..., "arguments": {...}} alone.'


def tools_text(tools: Sequence[Any]) -> str:
    """What a system message says of ``tools``: functions, or OpenAI's objects around them."""
    return _HEADER + "\n".join(json.dumps(_function(tool), ensure_ascii=False) for tool in tools) + _FOOTER


def system_text(said: str, tools: Sequence[Any]) -> str:
    """A system message that says ``said``, if anything, and what ``tools`` there are."""
    return f"{said}\n\n{tools_text(tools)}" if said else tools_text(tools)


def call_text(name: str, arguments: Any) -> str:
    """One call."""
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def with_calls(content: str, calls: Iterable[str]) -> str:
    """What a message says that has ``content``, if any, and makes ``calls``."""
    return "\n".join(filter(None, (content, *calls)))


def plain_function(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A function as it is written: without ``parameters`` it takes none."""
    described = {} if description is None else {"description": description}
    return {"name": name, **described, "parameters": parameters or dict(_NO_PARAMETERS)}


def indexed_id(name: str, number: int) -> str:
    """The id of a call for templates with ``INDEXED_IDS``; ``number`` counts the calls of a conversation from 0."""
    return f"functions.{name}:{number}"


def template_tool(tool: Any) -> Any:
    """A function, or OpenAI's object around it, as that object: what chat templates expect. Others as they are."""
    function = _function(tool)
    return tool if function is tool else {"type": "function", "function": function}


def _function(tool: Any) -> Any:
    """A function of whoever wrote it, with the fields that a server can be sent; what is none as it is."""
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        return tool
    function = tool["function"] if isinstance(tool.get("function"), Mapping) else tool
    if not isinstance(function.get("name"), str):
        return tool
    return plain_function(function["name"], function.get("description"), function.get("parameters"))
