"""Conversations in the bodies of requests: messages, tools, and how the answer is to be thought and called about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from server.api.wire_fields import Wire

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
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, content: Any) -> Any:
        return list(map(_text_part, content)) if isinstance(content, list) else content

    def for_template(self) -> dict[str, Any]:
        """Plain data, content as it was sent."""
        parts = [{"type": part.type, "text": part.text} for part in self.content or () if isinstance(part, TextPart)]
        content = parts if isinstance(self.content, list) else self.content
        return {**(self.model_extra or {}), "role": self.role, "content": content}


class ConversationBody(Wire):
    """The fields of a conversation that is rendered by a chat template."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = Field(None, min_length=1)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    given_template_kwargs: dict[str, Any] | None = Field(
        None, alias="chat_template_kwargs", max_length=MAX_TEMPLATE_KWARGS
    )

    @field_validator("given_template_kwargs")
    @classmethod
    def _check_template_kwargs(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := sorted(RESERVED_TEMPLATE_KWARGS & set(value or {})):
            raise ValueError(f"`{reserved[0]}` cannot be set")
        return value

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """All that the template is told beside the messages."""
        flags = {
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
        }
        return {**(self.given_template_kwargs or {}), **{k: v for k, v in flags.items() if v is not None}}
