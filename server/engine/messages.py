"""The typed messages between the API process and the engine process (msgpack, never pickle).

Token ids only: text is the API process's business. Every submitted request gets exactly one terminal
``RequestOutput`` (``finish_reason`` set), also when it fails.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from server.adapter_key import AdapterKey


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of one request are chosen. Ranges are checked by the API (OpenAI's bounds).

    ``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 keep everything. ``seed`` is always set: the API draws
    one when the client gives none. ``logprobs`` n asks for the n most likely tokens besides the chosen one (0: only
    the chosen); None for none. Where ``logprob_token_ids`` are given the chosen token and those are told instead of the
    most likely ones. ``prompt_logprobs`` likewise for prompt tokens. ``stop_token_ids`` end the output,
    as the base's end-of-sequence ids do unless ``ignore_eos``; neither before ``min_tokens``. Outputs are of
    ``allowed_token_ids`` alone, unless that is empty, and hold none of the token sequences ``bad_words``. They follow
    ``grammar``, in llguidance's own form (``server.text.grammars`` writes it), unless that is empty: they end where it
    allows no more, before ``min_tokens`` as well, and elsewhere only where it is satisfied. Without ``speculation`` no
    tokens are drafted; outputs are the same.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    grammar: str = ""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    speculation: bool = True


class Pooling(StrEnum):
    """Which hidden states of a prompt are answered: their mean, the last or the first token's, or every token's.

    Or, as sentence-transformers names them, the largest number of each feature; the mean in which the token at place i,
    from 1, counts i times; the sum by the square root of the number of tokens.
    """

    MEAN = "mean"
    LAST = "last"
    CLS = "cls"
    ALL = "all"
    MAX = "max"
    WEIGHTED_MEAN = "weightedmean"
    MEAN_SQRT_LEN = "mean_sqrt_len_tokens"


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Asks for hidden states of the prompt in the place of tokens, as they leave the last norm.

    ``through_head``: for what the adapter's own head makes of them. The first ``skip`` tokens are read and not pooled,
    but where the last one's or every token's state is asked for. Of each vector only the first ``dimensions`` are
    kept (0: all); then it goes through the ``activation`` ("softmax", "sigmoid", or none), and is brought to length 1
    with ``normalize``.
    """

    pooling: Pooling = Pooling.LAST
    skip: int = 0
    through_head: bool = False
    dimensions: int = 0
    activation: str = ""
    normalize: bool = False


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probability of one chosen token, and the most likely ones as (token_id, logprob), best first.

    ``rank`` counts the chosen token among all, from 1; told of prompt tokens only. One answer may hold hundreds of
    thousands of these: they are made of what the garbage collector need not look at.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


class SpelledToken(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a token writes that an adapter has beside its base's tokenizer. ``special`` ones are no text."""

    token_id: int
    spelt: bytes
    special: bool


# ---- to the engine ----


class EngineRequest(msgspec.Struct, frozen=True, kw_only=True, tag="submit"):
    """One sequence to continue. The API fans ``n`` out into n of these.

    ``tenant`` says whose it is (its key's identity). Service is shared between tenants and between adapters by
    ``weight``, among requests of equal ``priority``; those of a higher one come first. ``added_tokens`` are told with a
    grammar, for which alone the engine has to know what tokens write. With ``pooling`` no token is chosen, whatever
    ``sampling`` says. The first ``num_embeds`` tokens of the prompt mean nothing: in their place stand ``embeds``,
    little-endian float32 [num_embeds, embedding_size].
    """

    request_id: str
    prompt_ids: list[int]
    sampling: SamplingParams
    adapter: AdapterKey | None = None
    cache_salt: str = ""
    tenant: str = ""
    weight: float = 1.0
    priority: int = 0
    added_tokens: tuple[SpelledToken, ...] = ()
    pooling: PoolingParams | None = None
    embeds: bytes = b""
    num_embeds: int = 0


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Forget a request (its client left, or a stop string was found). Still answered by a terminal output."""

    request_id: str


class LoadAdapter(msgspec.Struct, frozen=True, tag="load"):
    """Make the package in directory ``path`` resident under ``key``. Answered by AdapterLoaded or AdapterFailed.

    An adapter that answers exactly as the base does is refused unless ``allow_noop``. Of a combination ``path`` and
    ``others`` are the packages of its members; those that are resident are not read again.
    """

    key: AdapterKey
    path: str
    allow_noop: bool = False
    others: tuple[str, ...] = ()


class UnloadAdapter(msgspec.Struct, frozen=True, tag="unload"):
    """Drop ``key`` once its last request has ended; with ``force``, abort those first. Answered by AdapterUnloaded."""

    key: AdapterKey
    force: bool = False


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process now."""


# ---- from the engine ----


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Sent once, when the base is resident and requests can be served.

    ``hidden_size`` is that of hidden states, 0 where the base's way to be computed gives none; ``embedding_size`` that
    of embeddings which may stand in the place of tokens, 0 likewise.
    """

    base_fingerprint: str
    quantization: str
    dtype: str
    kernels: str = ""
    device: str
    base_bytes: int
    kv_bytes: int
    num_kv_blocks: int
    block_size: int
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    is_encoder_decoder: bool = False
    hidden_size: int = 0
    embedding_size: int = 0


class RequestOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one step did for one request.

    ``token_ids`` are the new tokens (an end token included, which the API does not show). ``stop_token_id`` is the
    token that ended the request, if one did. ``prompt_logprobs`` comes in parts, as they are computed, the last before
    the first token or with it: joined, entry i is for prompt token i, None for the first. ``queued_seconds`` (arrival
    to first scheduling) and ``cached_tokens`` come with the first token. Of ``drafted_tokens`` computed in addition,
    ``accepted_tokens`` are among ``token_ids``. ``preemptions`` (times that
    it was put back) come with the last output. ``pooled`` are the vectors asked for, as little-endian float32; one
    with the last output, or those of every token in parts, to be joined. ``error`` is set exactly when
    ``finish_reason`` is ERROR; it ``is_refusal`` where the request is to blame, and can never be computed.
    """

    request_id: str
    token_ids: list[int] = []
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0
    queued_seconds: float = 0.0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    pooled: bytes = b""
    error: str | None = None
    is_refusal: bool = False


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Gauges and running totals since the process started.

    Of those ``num_waiting`` so many are ``num_blocked``: no room would let them run, for their adapters are being
    loaded or their grammars compiled. Of ``step_seconds``, ``schedule_seconds`` went into drafting and choosing what to
    compute, ``forward_seconds`` into the model, and ``sample_seconds`` into choosing tokens.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocked: int = 0
    running_adapters: list[str] = []
    waiting_adapters: list[str] = []
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    preemptions: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    schedule_seconds: float = 0.0
    forward_seconds: float = 0.0
    sample_seconds: float = 0.0
    batch_tokens: int = 0
    batch_requests: int = 0
    adapters_resident: int = 0
    adapter_bytes: int = 0
    adapters_on_host: int = 0
    host_adapter_bytes: int = 0


class StepOutputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Everything one step produced: one message per step. ``step_seconds`` is the duration of this step."""

    outputs: list[RequestOutput]
    stats: EngineStats
    step_seconds: float = 0.0


class AdapterLoaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """The adapter is resident. ``seconds`` by stage: read, validate, copy, try.

    ``nbytes`` are those of its tensors; of these, those of ``shared`` digests are in memory once, whoever uses them.

    ``vocab_size`` is how many token ids it knows, when they are not as many as the base's; ``token_ids`` are those of
    the base's that it has rows of its own for, the highest ones if they are many.
    """

    key: AdapterKey
    kind: str
    nbytes: int
    num_virtual_tokens: int
    shared: dict[str, int] = {}
    vocab_size: int | None = None
    token_ids: list[int] = []
    warnings: list[str] = []
    seconds: dict[str, float] = {}


class AdapterFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """The adapter was refused; ``code`` and ``message`` are of the AdapterError and fit for a client.

    ``nbytes`` is what it would have taken, where there was no memory for it.
    """

    key: AdapterKey
    code: str
    message: str
    nbytes: int = 0


class AdapterUnloaded(msgspec.Struct, frozen=True, tag="unloaded"):
    """The last request of ``key`` has ended and its memory is free."""

    key: AdapterKey


class EngineFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The last message of an engine that cannot start or go on; ``message`` is the plain reason."""

    message: str


class Heartbeat(msgspec.Struct, frozen=True, tag="alive"):
    """The process lives. ``progress`` grows while its stepping thread gets on; None while that waits or still loads."""

    progress: int | None = None


ToEngine = EngineRequest | Abort | LoadAdapter | UnloadAdapter | Shutdown
FromEngine = EngineInfo | EngineFailed | StepOutputs | AdapterLoaded | AdapterFailed | AdapterUnloaded | Heartbeat
