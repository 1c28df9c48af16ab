"""Conversations in the bodies of requests: messages, tools, and how the answer is to be thought and called about."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from server.api.wire_fields import Wire
from server.api.wire_tools import Functions, Tools, ToolUse, check_calls, check_results, tool_use

MAX_TEMPLATE_KWARGS = 32
RESERVED_TEMPLATE_KWARGS = frozenset(
    {"self", "conversation", "conversations", "messages", "tools", "documents", "chat_template",
     "add_generation_prompt", "tokenize", "continue_final_message", "padding", "truncation", "max_length",
     "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"}
)  # fmt: skip


class TextPart(Wire):
    """One part of a message's content; only text is served."""

    type: Literal["text"]
    text: str


_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_PART_SCHEMA = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": {"enum": list(_TEXT_PARTS)}, "text": {"type": "string"}, "refusal": {"type": "string"}},
}
Part = Annotated[TextPart, WithJsonSchema({"anyOf": [{"type": "string"}, _PART_SCHEMA]})]


def _text_part(part: Any) -> dict[str, Any]:
    """A part in its plainest form: a text alone, and what OpenAI's other API and its histories call one, are texts."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    key = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is not None and isinstance(text := part.get(key), str):
        return {"type": "text", "text": text}
    raise ValueError("every part must be {'type': 'text', 'text': ...}; only text is served")


class ChatMessage(Wire):
    """One message of a conversation; other fields (name, tool calls of a history) go to the template as they are."""

    model_config = ConfigDict(extra="allow")
    unsupported: ClassVar[Mapping[str, str]] = {
        "prefix": "use `continue_final_message`",
        "partial": "use `continue_final_message`",
        "audio": "only text is served",
        "images": "only text is served",
    }

    role: str = Field(min_length=1, max_length=64)
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, content: Any) -> Any:
        return list(map(_text_part, content)) if isinstance(content, list) else content

    @model_validator(mode="after")
    def _check_calls(self) -> ChatMessage:
        check_calls(self.model_extra or {})
        return self

    def for_template(self) -> dict[str, Any]:
        """Plain data, content as it was sent."""
        parts = [{"type": part.type, "text": part.text} for part in self.content or () if isinstance(part, TextPart)]
        content = parts if isinstance(self.content, list) else self.content
        return {**(self.model_extra or {}), "role": self.role, "content": content}


class ConversationBody(Wire):
    """The fields of a conversation that is rendered by a chat template.

    How much is thought before the answer is told the template by the names in use; most know some of them, or none.
    """

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = Field(None, min_length=1)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    given_template_kwargs: dict[str, Any] | None = Field(
        None, alias="chat_template_kwargs", max_length=MAX_TEMPLATE_KWARGS
    )

    tools: Tools | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: Functions | None = None
    function_call: Any = None
    reasoning_effort: str | None = Field(None, min_length=1, max_length=32)
    enable_thinking: bool | None = None
    thinking: bool | dict[str, Any] | None = None
    think: bool | str | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None
    reasoning_format: str | None = Field(None, max_length=32)

    @field_validator("given_template_kwargs")
    @classmethod
    def _check_template_kwargs(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := sorted(RESERVED_TEMPLATE_KWARGS & set(value or {})):
            raise ValueError(f"`{reserved[0]}` cannot be set")
        return value

    @model_validator(mode="after")
    def _check_tools(self) -> ConversationBody:
        if self.tools and self.functions:
            raise ValueError("`functions` is the old name of `tools`; leave it out")
        _ = self.tool_use
        if isinstance(self.messages, list) and all(isinstance(message, ChatMessage) for message in self.messages):
            check_results([{**(message.model_extra or {}), "role": message.role} for message in self.messages])
        return self

    @property
    def calls_functions(self) -> bool:
        """Whether calls are asked for in the form from before there were tools."""
        return bool(self.functions)

    @cached_property
    def tool_use(self) -> ToolUse | None:
        """What may be called."""
        if self.functions:
            return tool_use(
                self.functions, self.function_call, field="functions", choice_field="function_call", parallel=False
            )
        functions = [tool.function for tool in self.tools or ()]
        parallel = self.parallel_tool_calls is not False
        return tool_use(functions, self.tool_choice, field="tools", choice_field="tool_choice", parallel=parallel)

    @property
    def leaves_thoughts(self) -> bool:
        """Whether thoughts stay in the content."""
        return self.separate_reasoning is False or self.reasoning_format == "none"

    @property
    def thinks(self) -> bool | None:
        """Whether it is to think before it answers; None where nothing is said."""
        if self.enable_thinking is not None:
            return self.enable_thinking
        if isinstance(self.thinking, dict) and "type" in self.thinking:
            return bool(self.thinking["type"] != "disabled")
        if isinstance(self.thinking, bool):
            return self.thinking
        if self.think is not None:
            return self.think not in (False, "none")
        return False if self.reasoning_effort == "none" else None

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """All that the template is told beside the messages."""
        effort = self.reasoning_effort or (self.think if isinstance(self.think, str) else None)
        tools = self.tool_use.for_template if self.tool_use else None
        flags = {
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
            "tools": tools,
        }
        told = {"reasoning_effort": effort, "enable_thinking": self.thinks, "thinking": self.thinks}
        given = {**{k: v for k, v in told.items() if v is not None}, **(self.given_template_kwargs or {})}
        return {**given, **{k: v for k, v in flags.items() if v is not None}}
