"""The bodies of requests for vectors, scores and classes, field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from adapters.package.manifest import PoolingName
from server.api.pooling.numbers import ByteOrder, NumberType
from server.api.unserved import UNSERVED
from server.api.wire import MAX_TIMEOUT, ModelBody
from server.api.wire_conversation import ConversationBody
from server.api.wire_fields import Integer, KeptTokens, Texts, TokenIds, Wire

Encoding = Literal["float", "base64", "bytes", "bytes_only"]
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
    truncation_side: Literal["left", "right"] | None = None
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
    """Inputs that are answered with vectors. ``prompt_name`` names what goes before each text; nothing where empty."""

    prompt_name: str | None = Field(None, max_length=256)
    encoding_format: Encoding | None = None
    dimensions: Integer | None = Field(None, ge=1)
    pooling: PoolingName | None = None
    normalize: bool | None = None
    use_activation: bool | None = None
    embed_dtype: NumberType | None = None
    endianness: ByteOrder | None = None

    @property
    def wants_bytes(self) -> bool:
        """Whether the answer is to be the numbers, and no JSON."""
        return self.encoding_format in ("bytes", "bytes_only")

    @property
    def is_text(self) -> bool:
        """Whether all inputs are texts."""
        return self.messages is None and all(isinstance(one, str) for one in self.inputs)

    @model_validator(mode="after")
    def _check_prompt(self) -> VectorBody:
        if self.prompt_name is not None and not self.is_text:
            raise ValueError("`prompt_name` goes with texts in `input`")
        return self

    @property
    def wants_plain(self) -> bool:
        """Whether numbers are asked for as the model gives them."""
        return self.normalize is False or (self.normalize is None and self.use_activation is False)


class EmbeddingBody(VectorBody):
    """``POST /v1/embeddings``."""


class ClassifyBody(InputBody):
    """``POST /v1/classify``. Each text of ``text_pair`` is read behind its own of ``input``.

    With ``aggregation_strategy`` the classes of tokens become entities, as in transformers' pipeline of that name.
    """

    text_pair: str | Texts | None = Field(None, union_mode="left_to_right")
    use_activation: bool | None = None
    activation: bool | None = None  # its older name
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None = None
    ignore_labels: Texts | None = None

    @model_validator(mode="after")
    def _check_entities(self) -> ClassifyBody:
        if self.strategy is None:
            if self.ignore_labels is not None:
                raise ValueError("`ignore_labels` goes with `aggregation_strategy`")
        elif not all(isinstance(one, str) for one in self.inputs) or self.messages is not None:
            raise ValueError("`aggregation_strategy` goes with texts in `input`: entities stand in them")
        elif not self.wants_probabilities:
            raise ValueError("`aggregation_strategy` weighs probabilities; leave out `use_activation`")
        return self

    @property
    def strategy(self) -> Literal["simple", "first", "average", "max"] | None:
        """How tokens become entities; None where they are told by themselves."""
        return None if self.aggregation_strategy == "none" else self.aggregation_strategy

    @model_validator(mode="after")
    def _check_pairs(self) -> ClassifyBody:
        if self.text_pair is None:
            return self
        firsts = [one for one in self.inputs if isinstance(one, str)]
        if self.messages is not None or len(firsts) < len(self.inputs):
            raise ValueError("`text_pair` goes with texts in `input`, not with token ids or `messages`")
        if len(firsts) != len(self.seconds) or not all(self.seconds):
            raise ValueError(f"`text_pair` must hold a text for each of the {len(firsts)} of `input`")
        return self

    @property
    def seconds(self) -> list[str]:
        """The texts of ``text_pair``."""
        return [self.text_pair] if isinstance(self.text_pair, str) else self.text_pair or []

    @property
    def wants_probabilities(self) -> bool:
        """Whether outputs go through the activation that they were trained with."""
        return self.use_activation is not False and self.activation is not False


class PoolingBody(VectorBody):
    """``POST /pooling``: vectors, classes, or either of every token, as plain numbers."""

    task: Literal["embed", "classify", "token_embed", "token_classify"] | None = None


def _texts(value: Any) -> Any:
    if value in ("", []) or (isinstance(value, list) and "" in value):
        raise ValueError("there is nothing in it to compare")
    return value


Compared = Annotated[str | Texts, Field(union_mode="left_to_right"), BeforeValidator(_texts)]
_WITHOUT_DOCUMENTS = {name: reason for name, reason in UNSERVED.items() if name != "documents"}


class ScoreBody(PooledBody):
    """``POST /v1/score``: one text or as many as there are others, each compared with its own."""

    unsupported: ClassVar[Mapping[str, str]] = _WITHOUT_DOCUMENTS

    first: Compared = Field(validation_alias=AliasChoices("text_1", "queries", "query", "data_1"))
    second: Compared = Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))
    use_activation: bool | None = None

    @model_validator(mode="after")
    def _check_counts(self) -> ScoreBody:
        one, other = self.counts
        if one not in (1, other):
            raise ValueError(f"{one} texts cannot be compared with {other}; give one text, or one for each")
        return self

    @property
    def counts(self) -> tuple[int, int]:
        """How many texts there are on either side."""
        one, other = ([side] if isinstance(side, str) else side for side in (self.first, self.second))
        return len(one), len(other)


class DocumentPart(Wire):
    """A document as an object."""

    text: str = Field(min_length=1)


class RerankBody(PooledBody):
    """``POST /v1/rerank``, as Jina's and Cohere's clients send it."""

    unsupported: ClassVar[Mapping[str, str]] = {
        **_WITHOUT_DOCUMENTS,
        "rank_fields": "documents are ranked by their text",
        "max_chunks_per_doc": "documents are read whole; cut them with `max_tokens_per_doc`",
    }

    query: str = Field(min_length=1)
    documents: Annotated[list[Annotated[str, Field(min_length=1)] | DocumentPart], Field(fail_fast=True, min_length=1)]
    top_n: Integer | None = Field(None, ge=0)
    return_documents: bool | None = None
    max_tokens_per_doc: Integer | None = Field(None, ge=1)
    use_activation: bool | None = None

    @property
    def texts(self) -> list[str]:
        """The documents."""
        return [one if isinstance(one, str) else one.text for one in self.documents]
