"""The bodies of requests for vectors, scores and classes, field by field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from server.api.wire import MAX_TIMEOUT, ModelBody
from server.api.wire_conversation import ConversationBody
from server.api.wire_fields import Integer, KeptTokens, Texts, TokenIds

PoolingName = Literal["mean", "last", "cls"]
Encoding = Literal["float", "base64"]
Inputs = Annotated[
    str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)], Field(union_mode="left_to_right")
]


def check_inputs(inputs: Any) -> Any:
    """``inputs`` where it may be texts or token ids, told in a few words where it is neither."""
    if inputs == []:
        raise ValueError("the list is empty")
    kinds = set(map(type, inputs)) if isinstance(inputs, list) else {type(inputs)}
    numbers = kinds <= {int, float}
    if not (numbers or kinds in ({str}, {list})) or (numbers and not isinstance(inputs, list)):
        raise ValueError("must be a text, a list of texts, token ids, or a list of lists of token ids")
    if not inputs or (isinstance(inputs, list) and not numbers and not all(inputs)):
        raise ValueError("an input is empty; leave it out")
    return inputs


class PooledBody(ModelBody):
    """What all of them share."""

    add_special_tokens: bool | None = None
    truncate_prompt_tokens: KeptTokens | None = None
    cache_salt: str | None = Field(None, max_length=256)
    timeout: float | None = Field(None, gt=0, le=MAX_TIMEOUT)


class InputBody(PooledBody, ConversationBody):
    """Texts, token ids, or a conversation."""

    input: Inputs | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _check_input(cls, value: Any) -> Any:
        return None if value is None else check_inputs(value)

    @model_validator(mode="after")
    def _one_of(self) -> InputBody:
        if (self.input is None) == (self.messages is None):
            raise ValueError("`input` or `messages` must be given, and not both")
        return self

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """One entry for each vector, unless a conversation is given."""
        if self.input is None or isinstance(self.input, str):
            return [self.input or ""]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


class VectorBody(InputBody):
    """Inputs that are answered with vectors."""

    encoding_format: Encoding | None = None
    dimensions: Integer | None = Field(None, ge=1)
    pooling: PoolingName | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    embed_dtype: Literal["float32"] | None = None
    endianness: Literal["native", "little"] | None = None

    @property
    def wants_plain(self) -> bool:
        """Whether numbers are asked for as the model gives them."""
        return self.normalize is False or (self.normalize is None and self.use_activation is False)


class EmbeddingBody(VectorBody):
    """``POST /v1/embeddings``."""
