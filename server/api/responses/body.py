"""The bodies of ``/v1/responses``, field by field. Input and tools are read in ``items`` and ``chat``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from server.api.wire import MAX_MODEL_CHARS
from server.api.wire_fields import Integer, Metadata, Wire

MAX_TOOLS = 128
MAX_ID = 256

Items = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
_KNOWN_INCLUDES = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
)


class ReasoningOptions(Wire):
    """``reasoning`` of a response. Thoughts are told whole, so there is no summary of them beside."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(Wire):
    """``text`` of a response."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class StreamOptions(Wire):
    """``stream_options`` of a response."""

    include_obfuscation: bool | None = None


class ContextManagement(Wire):
    """How a response keeps a long conversation short. The threshold is in tokens of input."""

    type: Literal["compaction"]
    compact_threshold: Integer | None = Field(None, ge=1)


class PromptBody(Wire):
    """What a response is made of, and what its input tokens are counted of. Other fields are those of chats."""

    model_config = ConfigDict(extra="allow")
    unsupported: ClassVar[Mapping[str, str]] = {
        "prompt": "prompts are not kept; send their text in `input` and `instructions`",
        "messages": "use `input`",
        "max_tokens": "use `max_output_tokens`",
        "max_completion_tokens": "use `max_output_tokens`",
        "n": "a response has one output; send several requests",
        "best_of": "a response has one output; send several requests",
        "response_format": "use `text.format`",
        "reasoning_effort": "use `reasoning.effort`",
        "context_management": "use POST /v1/responses/compact",
        "moderation": "this server moderates nothing",
    }

    model: str | None = Field(None, min_length=1, max_length=MAX_MODEL_CHARS)
    input: str | Items | None = None
    instructions: str | None = None
    previous_response_id: str | None = Field(None, min_length=1, max_length=MAX_ID)
    conversation: str | dict[str, Any] | None = None
    tools: Items | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @field_validator("conversation", mode="before")
    @classmethod
    def _check_conversation(cls, given: Any) -> Any:
        id = given.get("id") if isinstance(given, dict) else given
        if given is not None and not (isinstance(id, str) and 0 < len(id) <= MAX_ID):
            raise ValueError('must be the id of a conversation, or {"id": ...}')
        return given

    @model_validator(mode="after")
    def _check_earlier(self) -> PromptBody:
        if self.conversation is not None and self.previous_response_id is not None:
            raise ValueError("`conversation` and `previous_response_id` both say what came before; leave one out")
        return self

    @property
    def conversation_id(self) -> str | None:
        """The conversation that is gone on with."""
        return self.conversation["id"] if isinstance(self.conversation, dict) else self.conversation

    @property
    def extensions(self) -> dict[str, Any]:
        """Fields that are not OpenAI's of a response, as a chat takes them."""
        return dict(self.model_extra or {})


class ResponseBody(PromptBody):
    """``POST /v1/responses``."""

    unsupported: ClassVar[Mapping[str, str]] = {
        name: reason for name, reason in PromptBody.unsupported.items() if name != "context_management"
    }

    input: str | Items
    max_output_tokens: Integer | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    include: Annotated[list[str], Field(fail_fast=True, max_length=32)] | None = None
    top_logprobs: Integer | None = Field(None, ge=0, le=20)
    max_tool_calls: Integer | None = Field(None, ge=0)
    metadata: Metadata | None = None
    store: bool | None = None
    background: bool | None = None
    generate: bool | None = None  # false: nothing, but later responses may go on from it
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    context_management: Annotated[list[ContextManagement], Field(max_length=1)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None

    @field_validator("include")
    @classmethod
    def _check_include(cls, include: list[str] | None) -> list[str] | None:
        if any(name not in _KNOWN_INCLUDES for name in include or ()):
            raise ValueError("each entry must be one of " + ", ".join(_KNOWN_INCLUDES))
        return include

    @model_validator(mode="after")
    def _check_store(self) -> ResponseBody:
        if self.background and self.store is False:
            raise ValueError("`background` needs `store`: a response that runs in the background is asked for later")
        if self.stream_options is not None and self.stream_options.include_obfuscation and not self.stream:
            raise ValueError("`stream_options` is only allowed with `stream: true`")
        return self

    @property
    def keeps(self) -> bool:
        """Whether the response is to be kept."""
        return self.store is not False

    @property
    def tells_logprobs(self) -> bool:
        """Whether log-probabilities are told."""
        return "message.output_text.logprobs" in (self.include or ()) or bool(self.top_logprobs)
