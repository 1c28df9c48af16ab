"""The bodies of requests, field by field; ``server.api.body`` reads and parses them.

Anything that depends on the base, the adapter or the configuration is checked in ``server.api.prepare``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import override

from adapters.quoting import quote
from server.adapter_key import PLUS, written_weight
from server.api.output_form import FormFields
from server.api.unserved import UNSERVED, UNSERVED_IN_TEXT, UNSERVED_WORDS
from server.api.wire_conversation import ChatMessage, ConversationBody
from server.api.wire_fields import Integer, KeptTokens, ServiceTier, Texts, TokenIds, Wire
from server.catalog.combinations import MAX_WEIGHT

MAX_STOP_CHARS = 256
MAX_STOP_STRINGS = 1024  # of any configuration; the configured limit is usually 16
MAX_LOGIT_BIAS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_ALLOWED_TOKEN_IDS = 4096
MAX_LOGPROB_TOKEN_IDS = 1024
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 64
MAX_MODEL_CHARS = 512
MAX_ADAPTERS = 64  # of any configuration; usually 8 may be combined
MAX_BEAMS = 32
MIN_REPETITION_PENALTY = 0.01  # logits are divided by it, and must stay finite
MAX_TIMEOUT = 7 * 86400.0  # seconds
_NOT_BY_BEAMS: Mapping[str, object] = {
    "stream": False,
    "stop": [],
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "repetition_penalty": 1,
    "logit_bias": {},
    "allowed_token_ids": [],
    "bad_words": [],
    "prompt_logprobs": None,
    "logprob_token_ids": None,
}

_OF_TEMPLATES = ("add_generation_prompt", "reasoning_effort", "enable_thinking", "thinking", "think", "verbosity")


class AdapterWeight(Wire):
    """One of the adapters that are combined."""

    name: str = Field(min_length=1, max_length=MAX_MODEL_CHARS)
    weight: float = Field(1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if PLUS in name:
            raise ValueError("must be the name of one adapter; name others in objects of their own")
        return name


class ModelBody(Wire):
    """What every body with a prompt or tokens shares: which model it means, and what is not served anywhere.

    Without ``model`` that is the base. ``adapters`` are combined, as those of ``model: "a:0.7+b:0.3"`` are. Other
    servers take the name of an adapter beside the base's: LoRAX in ``adapter_id``, SGLang in ``lora_path``, which may
    have an entry for each prompt.
    """

    unsupported: ClassVar[Mapping[str, str]] = UNSERVED
    unsupported_words: ClassVar[Mapping[str, str]] = UNSERVED_WORDS

    model: str | None = Field(None, min_length=1, max_length=MAX_MODEL_CHARS)
    adapters: Annotated[list[AdapterWeight], Field(fail_fast=True)] | None = Field(None, max_length=MAX_ADAPTERS)
    adapter_id: str | None = Field(None, max_length=MAX_MODEL_CHARS)
    lora_path: str | Annotated[list[str | None], Field(fail_fast=True)] | None = None
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @field_validator("lora_path", mode="before")
    @classmethod
    def _one_path(cls, path: Any) -> Any:
        """A list of one name many times is that name: to check a list entry by entry takes a while."""
        if not isinstance(path, list) or not all(isinstance(item, str | None) for item in path):
            return path
        return list(dict.fromkeys(path))[:2]

    @model_validator(mode="after")
    def _check_adapter(self) -> ModelBody:
        paths = set(self.lora_path) if isinstance(self.lora_path, list) else {self.lora_path}
        if len(paths) > 1:
            raise ValueError("`lora_path` names several adapters; send a request for each, or combine them: `adapters`")
        if any(len(path or "") > MAX_MODEL_CHARS for path in paths):
            raise ValueError(f"`lora_path` must be the name of an adapter, of at most {MAX_MODEL_CHARS} characters")
        if self.adapters and (self.adapter_id or any(paths)):
            raise ValueError("`adapters` is all that is combined; leave `lora_path` and `adapter_id` out")
        if self.adapter_id and self.adapter != self.adapter_id:
            raise ValueError("`lora_path` and `adapter_id` name different adapters; leave one of them out")
        return self

    @property
    def adapter(self) -> str | None:
        """The adapter that is named beside the model, or those that are, as ``model`` would name them."""
        if self.adapters:
            return PLUS.join(_written(adapter) for adapter in self.adapters)
        path = next(iter(self.lora_path), None) if isinstance(self.lora_path, list) else self.lora_path
        return path or self.adapter_id or None

    @property
    def sticky(self) -> str | None:
        """Whose request it is, or what it belongs to: such requests go to one version, where several share them."""
        given = (self.user, self.safety_identifier, self.prompt_cache_key)
        return next((str(one) for one in given if type(one) in (str, int) and one != ""), None)

    def named(self, base_name: str) -> str:
        """The model that answers: an adapter that is named beside the base is meant, not the base."""
        model = self.model or base_name
        return (self.adapter or model) if model == base_name else model


def _is_token_id(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 10 and str(int(key)) == key


def _written(adapter: AdapterWeight) -> str:
    return adapter.name if adapter.weight == 1 else f"{adapter.name}:{written_weight(adapter.weight)}"


class StreamOptions(Wire):
    """What a stream tells beside its choices: usage, and padding that hides how long each piece is."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False
    include_obfuscation: bool | None = None


class SamplingBody(ModelBody, FormFields):
    """The fields that chat completions and completions share."""

    max_tokens: Integer | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: Integer | None = Field(None, ge=1, le=128)
    best_of: Integer | None = Field(None, ge=0, le=128)
    stop: str | Texts | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    seed: Integer | None = None
    # extensions
    top_k: Integer | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=MIN_REPETITION_PENALTY, le=10)
    allowed_token_ids: TokenIds | None = Field(None, max_length=MAX_ALLOWED_TOKEN_IDS)
    bad_words: Texts | None = Field(None, max_length=MAX_BAD_WORDS)
    stop_token_ids: TokenIds | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    ignore_eos: bool | None = None
    min_tokens: Integer | None = Field(None, ge=0)
    truncate_prompt_tokens: KeptTokens | None = None
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    service_tier: ServiceTier | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    cache_salt: str | None = Field(None, max_length=256)
    prompt_logprobs: Integer | None = Field(None, ge=-1)
    logprob_token_ids: TokenIds | None = Field(None, min_length=1, max_length=MAX_LOGPROB_TOKEN_IDS)
    speculation: bool | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = Field(None, ge=-10, le=10)
    early_stopping: bool | None = None
    timeout: float | None = Field(None, gt=0, le=MAX_TIMEOUT)

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOP_STRINGS:
            raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings")
        if any(not s or len(s) > MAX_STOP_CHARS for s in stops):
            raise ValueError(f"each stop string must have 1 to {MAX_STOP_CHARS} characters")
        return stop

    @field_validator("bad_words")
    @classmethod
    def _check_bad_words(cls, words: list[str] | None) -> list[str] | None:
        if any(not word or len(word) > MAX_BAD_WORD_CHARS for word in words or ()):
            raise ValueError(f"each word must have 1 to {MAX_BAD_WORD_CHARS} characters")
        return words

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _check_logit_bias(cls, bias: Any) -> Any:
        if not isinstance(bias, dict):
            return None if bias == [] else bias  # others' way to write none
        if len(bias) > MAX_LOGIT_BIAS:
            raise ValueError(f"at most {MAX_LOGIT_BIAS} entries")
        if wrong := [token for token in bias if not _is_token_id(token)]:
            raise ValueError(f"{', '.join(map(quote, wrong[:8]))}: no token id, which a key has to be, like '42'")
        for token, value in bias.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
                raise ValueError(f"the value of the key {quote(token)} must be a number between -100 and 100")
        return bias

    @model_validator(mode="after")
    def _check_best_of(self) -> SamplingBody:
        if self.use_beam_search and self.best_of and self.best_of < (self.n or 1):
            raise ValueError("`best_of`, the number of beams, must be at least `n`, that of outputs")
        if not self.use_beam_search and self.best_of and self.best_of != (self.n or 1):
            raise ValueError("`best_of` is not supported other than equal to `n`; ask for `n` outputs and choose")
        return self

    @model_validator(mode="after")
    def _check_beams(self) -> SamplingBody:
        if not self.use_beam_search:
            if self.early_stopping or self.length_penalty not in (None, 0, 1):
                name = "early_stopping" if self.early_stopping else "length_penalty"
                raise ValueError(f"`{name}` needs `use_beam_search: true`")
            return self
        if self.sequences > MAX_BEAMS:
            raise ValueError(
                f"`use_beam_search` searches {self.sequences} beams (`best_of`, else `n`); at most {MAX_BEAMS}"
            )
        for name, neutral in _NOT_BY_BEAMS.items():
            if getattr(self, name) not in (None, neutral):
                raise ValueError(f"`{name}` cannot be combined with `use_beam_search`; leave one of them out")
        return self

    @property
    def sequences(self) -> int:
        """How many are made of each prompt."""
        return max(self.n or 1, self.best_of or 1)

    @model_validator(mode="after")
    def _check_stream_options(self) -> SamplingBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` is only allowed with `stream: true`")
        return self

    @model_validator(mode="after")
    def _check_prompt_logprobs(self) -> SamplingBody:
        if self.prompt_logprobs is not None and self.stream:
            raise ValueError("`prompt_logprobs` comes with whole answers only; leave `stream` out")
        return self

    @model_validator(mode="after")
    def _check_logprob_token_ids(self) -> SamplingBody:
        if self.logprob_token_ids is not None and not self.tells_logprobs:
            raise ValueError("`logprob_token_ids` needs `logprobs`")
        return self

    @property
    def tells_logprobs(self) -> bool:
        """Whether log-probabilities of the output are asked for."""
        return False

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ChatCompletionBody(SamplingBody, ConversationBody):
    """``POST /v1/chat/completions``."""

    unsupported: ClassVar[Mapping[str, str]] = {
        **{name: reason for name, reason in UNSERVED.items() if name != "prompt_token_ids"},
        "add_special_tokens": "the chat template writes them; use /v1/completions for a prompt as it is",
        "suffix": "a chat has no text behind its answer; use /v1/completions",
    }

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)]
    prompt_token_ids: TokenIds | None = Field(None, min_length=1)
    max_completion_tokens: Integer | None = Field(None, ge=1)
    max_tokens: Integer | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Integer | None = Field(None, ge=-1)
    echo: bool | None = None
    store: bool | None = None
    metadata: Any = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @property
    @override
    def chat_template_kwargs(self) -> dict[str, Any]:
        verbosity = {} if self.verbosity is None else {"verbosity": self.verbosity}
        return {**verbosity, **super().chat_template_kwargs}

    @property
    @override
    def tells_logprobs(self) -> bool:
        return bool(self.logprobs)

    @model_validator(mode="after")
    def _check_prompt(self) -> ChatCompletionBody:
        """A conversation, or the tokens of one that was rendered elsewhere."""
        if self.prompt_token_ids is None:
            if not self.messages:
                raise ValueError("`messages` must have at least 1 entry, unless there are `prompt_token_ids`")
            return self
        if self.messages:
            raise ValueError("`prompt_token_ids` are the whole prompt; send `messages: []` with them")
        said = {"chat_template_kwargs": self.given_template_kwargs or None, "echo": self.echo or None}
        said |= {"continue_final_message": self.continue_final_message or None}
        said |= {name: getattr(self, name) for name in _OF_TEMPLATES}
        if told := [name for name, value in said.items() if value is not None]:
            raise ValueError(f"`{told[0]}` is for the chat template, and `prompt_token_ids` are rendered already")
        return self

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> ChatCompletionBody:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs: true`")
        return self


class ChatBatchBody(ChatCompletionBody):
    """``POST /v1/chat/completions/batch``: several conversations, and for all of them what one may have."""

    unsupported: ClassVar[Mapping[str, str]] = {
        **ChatCompletionBody.unsupported,
        "prompt_token_ids": "send a request for each prompt of token ids",
    }

    messages: Annotated[  # type: ignore[assignment]
        list[Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]], Field(fail_fast=True, min_length=1)
    ]

    @field_validator("stream")
    @classmethod
    def _check_stream(cls, stream: bool | None) -> bool | None:
        if stream:
            raise ValueError("several conversations are answered whole; leave it out, or send a request for each")
        return stream

    @property
    def conversations(self) -> list[ChatCompletionBody]:
        """A body for each conversation."""
        return [self.model_copy(update={"messages": messages}) for messages in self.messages]


class CompletionBody(SamplingBody):
    """``POST /v1/completions``. What ``prompt_embeds`` makes comes before what ``prompt`` does."""

    unsupported: ClassVar[Mapping[str, str]] = {
        **{name: reason for name, reason in UNSERVED.items() if name != "prompt_embeds"},
        **UNSERVED_IN_TEXT,
        "prompt_token_ids": "use `prompt`, which may be token ids",
        "chat_template_kwargs": "a prompt is not rendered; use /v1/chat/completions",
        "top_logprobs": "use `logprobs`, the number of alternatives",
        "max_completion_tokens": "use `max_tokens`",
    }

    prompt: (
        Annotated[
            str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)], Field(union_mode="left_to_right")
        ]
        | None
    ) = None
    prompt_embeds: str | Texts | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Integer | None = Field(None, ge=-1)
    add_special_tokens: bool | None = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _check_logprobs(cls, logprobs: Any) -> Any:
        return None if logprobs is False else logprobs  # as a chat would say it

    @field_validator("prompt", mode="before")
    @classmethod
    def _check_prompt(cls, prompt: Any) -> Any:
        if prompt is None:
            return None
        if prompt == []:
            raise ValueError("the list of prompts is empty")
        kinds = set(map(type, prompt)) if isinstance(prompt, list) else {type(prompt)}
        numbers = kinds <= {int, float}
        if not (numbers or kinds in ({str}, {list})) or (numbers and not isinstance(prompt, list)):
            raise ValueError("must be a text, a list of texts, token ids, or a list of lists of token ids")
        return prompt

    @model_validator(mode="after")
    def _check_prompts(self) -> CompletionBody:
        if not self.embeds:
            if self.prompt is None:
                raise ValueError("`prompt` is missing")
            return self
        for name in ("suffix", "echo", "prompt_logprobs", "truncate_prompt_tokens"):
            if getattr(self, name) not in (None, False, ""):
                raise ValueError(f"`{name}` is not compatible with `prompt_embeds`, which are no tokens; leave it out")
        return self

    @model_validator(mode="after")
    def _check_output(self) -> CompletionBody:
        if self.suffix and (self.echo or self.prompt_logprobs is not None):
            raise ValueError(
                "`suffix` is filled in before, and its prompt cannot be told; leave `echo` and `prompt_logprobs` out"
            )
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens` must be at least 1 (0 is for scoring a prompt with `echo: true`)")
        return self

    @property
    @override
    def tells_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def embeds(self) -> list[str]:
        """One entry per prompt that is given as embeddings."""
        return [self.prompt_embeds] if isinstance(self.prompt_embeds, str) else self.prompt_embeds or []

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """One entry per prompt: a text or token ids."""
        if self.prompt is None or (self.prompt == "" and self.embeds):  # as some clients say that there is none
            return []
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class TokenizeBody(ModelBody, ConversationBody):
    """``POST /tokenize``: a text, or a conversation."""

    prompt: str | None = None
    truncate_prompt_tokens: KeptTokens | None = None
    truncation_side: Literal["left", "right"] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of(self) -> TokenizeBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("`prompt` or `messages` must be given, and not both")
        return self


class DetokenizeBody(ModelBody):
    """``POST /detokenize``."""

    tokens: TokenIds
