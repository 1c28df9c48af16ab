"""The bodies of requests, field by field; ``server.api.body`` reads and parses them.

Anything that depends on the base, the adapter or the configuration is checked in ``server.api.prepare``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_STOP_CHARS = 256
MAX_STOP_STRINGS = 1024  # of any configuration; the configured limit is usually 16
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_TEMPLATE_KWARGS = 32
RESERVED_TEMPLATE_KWARGS = frozenset(
    {"conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize",
     "continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict",
     "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"}
)  # fmt: skip
# fail_fast: a list of a million wrong items makes one error, not a million.
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]


class Wire(BaseModel):
    """Base of all bodies. ``unsupported``: fields that clients know and that are not served, with the reason."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True, protected_namespaces=())
    unsupported: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, data: Any) -> Any:
        for name, reason in cls.unsupported.items():
            if isinstance(data, dict) and data.get(name) not in (None, False, [], {}, ""):
                raise ValueError(f"`{name}` is not supported: {reason}")
        return data


class StreamOptions(Wire):
    """How usage is reported in a stream."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class SamplingBody(Wire):
    """The fields that chat completions and completions share."""

    model: str = Field(min_length=1, max_length=512)
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=128)
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    user: str | None = None
    # extensions
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    stop_token_ids: TokenIds | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0)
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    cache_salt: str | None = Field(None, max_length=256)

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings")
        if any(not s or len(s) > MAX_STOP_CHARS for s in stops):
            raise ValueError(f"each stop string must have 1 to {MAX_STOP_CHARS} characters")
        return stop

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _count_logit_bias(cls, bias: Any) -> Any:
        if isinstance(bias, dict) and len(bias) > MAX_LOGIT_BIAS:
            raise ValueError(f"at most {MAX_LOGIT_BIAS} entries")
        return bias

    @field_validator("logit_bias")
    @classmethod
    def _check_logit_bias(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for token, value in (bias or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ValueError("keys must be token ids")
            if not -100 <= value <= 100:
                raise ValueError("values must be between -100 and 100")
        return bias

    @model_validator(mode="after")
    def _check_stream_options(self) -> SamplingBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` is only allowed with `stream: true`")
        return self

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class TextPart(Wire):
    """One part of a message's content; only text is served."""

    type: Literal["text"]
    text: str


class ChatMessage(Wire):
    """One message of a conversation; other fields (name, tool calls of a history) go to the template as they are."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1, max_length=64)
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else ():
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise ValueError("every part must be {'type': 'text', 'text': ...}; only text is served")
        return content

    def for_template(self) -> dict[str, Any]:
        """Plain data, content as one string."""
        plain = {**(self.model_extra or {}), "role": self.role, "content": self.content or ""}
        if isinstance(self.content, list):
            plain["content"] = "\n".join(part.text for part in self.content)
        return plain


class ChatCompletionBody(SamplingBody):
    """``POST /v1/chat/completions``."""

    unsupported: ClassVar[dict[str, str]] = {
        "tools": "this server does not call tools",
        "functions": "this server does not call functions",
        "audio": "only text is served",
        "chat_template": "templates come only from the operator of the server",
    }

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=MAX_TEMPLATE_KWARGS)

    @field_validator("response_format")
    @classmethod
    def _check_format(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type") != "text":
            raise ValueError("only {'type': 'text'} is supported")
        return value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_template_kwargs(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := sorted(RESERVED_TEMPLATE_KWARGS & set(value or {})):
            raise ValueError(f"`{reserved[0]}` cannot be set")
        return value

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> ChatCompletionBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs: true`")
        return self


class CompletionBody(SamplingBody):
    """``POST /v1/completions``."""

    unsupported: ClassVar[dict[str, str]] = {"suffix": "the base cannot fill in the middle; leave it out"}

    prompt: (
        str | Annotated[list[str], Field(fail_fast=True)] | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
    )
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: int | None = Field(None, ge=1, le=128)
    add_special_tokens: bool | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _check_prompt(cls, prompt: Any) -> Any:
        if prompt == []:
            raise ValueError("the list of prompts is empty")
        kinds = {type(item) for item in prompt} if isinstance(prompt, list) else {type(prompt)}
        if kinds not in ({str}, {int}, {list}) or (kinds == {int} and not isinstance(prompt, list)):
            raise ValueError("must be a text, a list of texts, token ids, or a list of lists of token ids")
        return prompt

    @model_validator(mode="after")
    def _check_best_of(self) -> CompletionBody:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("`best_of` is not supported other than equal to `n`; ask for `n` outputs and choose")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens` must be at least 1 (0 is for scoring a prompt with `echo: true`)")
        return self

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry per prompt: a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class TokenizeBody(Wire):
    """``POST /tokenize``: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _one_of(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either `prompt` or `messages`")
        return self


class DetokenizeBody(Wire):
    """``POST /detokenize``."""

    model: str | None = None
    tokens: TokenIds
