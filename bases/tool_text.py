"""Tools and calls as plain text, for chat templates that know none: what the trainer writes, and a server as well.

An adapter trained on this text is asked with the same one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_HEADER = "You can call these functions:\n"
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


def _function(tool: Any) -> Any:
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        return tool
    function = tool.get("function")
    return function if isinstance(function, Mapping) else tool
