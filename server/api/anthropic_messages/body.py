"""The bodies of ``/v1/messages``, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from server.api.wire import MAX_MODEL_CHARS
from server.api.wire_fields import Integer, Texts, Wire

MAX_TOOLS = 128
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]


class RequestMetadata(Wire):
    """``metadata`` of a message."""

    user_id: str | None = Field(None, max_length=256)


class Thinking(Wire):
    """``thinking``. How much is thought is the model's to say, within ``max_tokens``."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Integer | None = Field(None, ge=1)


class ToolChoice(Wire):
    """``tool_choice``."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, max_length=256)
    disable_parallel_tool_use: bool | None = None


class OutputConfig(Wire):
    """``output_config``: the form of the answer, and how much is thought about it."""

    format: dict[str, Any] | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class CountBody(Wire):
    """``POST /v1/messages/count_tokens``. Other fields are those of chats."""

    model_config = ConfigDict(extra="allow")
    unsupported: ClassVar[Mapping[str, str]] = {
        "container": "this server runs no code",
        "mcp_servers": "this server calls no tools",
        "stop": "use `stop_sequences`",
        "n": "a message is one; send several requests",
        "max_completion_tokens": "use `max_tokens`",
        "response_format": "use `output_config`",
    }

    model: str = Field(min_length=1, max_length=MAX_MODEL_CHARS)
    messages: Objects = Field(min_length=1)
    system: str | Objects | None = None
    tools: Objects | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


class MessageBody(CountBody):
    """``POST /v1/messages``."""

    max_tokens: Integer = Field(ge=1)
    stop_sequences: Texts | None = None
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Integer | None = Field(None, ge=0)
    metadata: RequestMetadata | None = None
