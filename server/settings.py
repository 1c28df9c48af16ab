"""Everything ``hotswap serve`` can be told: one declaration of each setting, those of the engine taken from its struct.

It does not know where values come from: ``server.command_line`` reads them.
"""

from __future__ import annotations

import ipaddress
from datetime import date
from typing import Annotated, Any, Self, TypeVar

import msgspec
from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from server.config import ADDRESS, ENGINE, JOBS, KEYS, LIMITS, PACKAGES, EngineConfig, Flag
from server.limits import Limits
from server.setting_kinds import (
    Adapters,
    AllOrCount,
    Amount,
    Collector,
    Count,
    Deadline,
    Gate,
    HeaderNames,
    KeyFiles,
    Keys,
    Level,
    Loading,
    Methods,
    Options,
    Origins,
    Paths,
    PortNumber,
    Positive,
    Ratio,
    ReasoningParser,
    RootPath,
    Seconds,
    Size,
    SocketAccess,
    StoreUrl,
    ToolParser,
    WrongKindError,
)

Model = TypeVar("Model", bound=BaseModel)


def _with_engine_settings(model: type[Model]) -> type[Model]:
    """``model`` with the engine's settings as fields of its own."""
    parts: dict[str, Any] = {"__module__": model.__module__, "__doc__": model.__doc__, **_ENGINE_SETTINGS}
    return create_model(model.__name__, __base__=model, **parts)


# Type and default of the fields that have a Flag, that is, are settings; the others are computed.
_ENGINE_SETTINGS = {
    field.name: (field.type, field.default)
    for field in msgspec.structs.fields(EngineConfig)
    if any(isinstance(item, Flag) for item in getattr(field.type, "__metadata__", ()))
}


@_with_engine_settings
class ServerConfig(BaseModel):
    """The settings of a server. Bad values raise ValidationError, a ValueError.

    ``engine.model`` is as the operator gave it (a hub id or a directory) until ``server.making`` resolves it.
    ``adapter`` are (name, directory or archive) loaded at start; those that answer exactly as the base does are refused
    unless ``allow_noop``. Keys are kept only as SHA-256 digests. ``max_waiting_requests`` bounds the sequences accepted
    beyond ``max_num_seqs``; ``max_candidates`` bounds the adapter versions that were uploaded and are not live,
    ``max_versions`` those kept of one name, ``max_stored_gb`` what the packages of all weigh on the disk. Pages of a
    ``cors_origin`` may read answers and use a server without keys; its host may be the Host of requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    served_model_name: Annotated[str, Flag(ENGINE, "name clients use for the base (default: its own)", "NAME")] = ""
    adapter: Annotated[
        Adapters, Flag(ENGINE, "serve this adapter package (directory or archive); repeatable", "NAME=PATH")
    ] = ()
    allow_noop: Annotated[bool, Flag(ENGINE, "serve --adapter packages that answer exactly as the base does")] = False
    chat_template: Annotated[str, Flag(ENGINE, "Jinja file to use instead of the base's chat template", "FILE")] = ""
    tool_parser: Annotated[
        ToolParser,
        Flag(ENGINE, "how the base writes calls of tools (default {default}: as its chat template says)", "NAME"),
    ] = "auto"
    reasoning_parser: Annotated[
        ReasoningParser,
        Flag(ENGINE, "how the base marks thoughts (default {default}: as its template says; none: not at all)", "NAME"),
    ] = "auto"
    host: Annotated[str, Flag(ADDRESS, "address to listen on (default {default}: this machine only)", "ADDRESS")] = (
        "127.0.0.1"
    )
    port: Annotated[PortNumber, Flag(ADDRESS, "port to listen on (default {default}; 0: any free one)", "PORT")] = 8000
    uds: Annotated[
        str, Flag(ADDRESS, "Unix socket to listen at, in the place of --host and --port (default: none)", "PATH")
    ] = ""
    uds_access: Annotated[
        SocketAccess,
        Flag(ADDRESS, "who may connect to it (default {default}; owner, group or all)", "WHO"),
    ] = "owner"
    root_path: Annotated[
        RootPath, Flag(ADDRESS, "prefix under which a proxy serves this server, such as /llm", "PATH")
    ] = ""
    cors_origin: Annotated[
        Origins, Flag(ADDRESS, "origin whose web pages may use this server, as https://app.example; repeatable", "URL")
    ] = ()
    cors_method: Annotated[
        Methods, Flag(ADDRESS, "method that such pages may use (default: all); repeatable", "METHOD")
    ] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
    cors_header: Annotated[
        HeaderNames, Flag(ADDRESS, "header that such pages may send (default: any); repeatable", "NAME")
    ] = ("*",)
    cors_credentials: Annotated[
        bool, Flag(ADDRESS, "let such pages send cookies, which a proxy before this server may ask for")
    ] = False
    enable_prompt_embeds: Annotated[
        bool, Flag(ADDRESS, "let requests for completions bring embeddings in the place of prompts")
    ] = False
    tokenizer_info: Annotated[bool, Flag(ADDRESS, "serve /tokenizer_info, the tokenizer's configuration")] = False
    docs: Annotated[bool, Flag(ADDRESS, "serve /openapi.json, and /docs made from it, to everybody")] = False
    api_key: Annotated[Keys, Flag(KEYS, "key for inference; repeatable", "KEY")] = ()
    api_key_file: Annotated[KeyFiles, Flag(KEYS, "file with one inference key a line; repeatable", "FILE")] = ()
    admin_key: Annotated[Keys, Flag(KEYS, "key for the admin API, and for inference; repeatable", "KEY")] = ()
    admin_key_file: Annotated[KeyFiles, Flag(KEYS, "file with one admin key a line; repeatable", "FILE")] = ()
    public_metrics: Annotated[bool, Flag(KEYS, "serve /metrics without a key even where keys are configured")] = False
    vllm_metrics: Annotated[
        bool, Flag(LIMITS, "tell /metrics by the names of vLLM's servers too, for dashboards and routers made for them")
    ] = False
    otlp_traces_endpoint: Annotated[
        Collector,
        Flag(LIMITS, "send spans of requests to this OTLP collector, as http://localhost:4318/v1/traces", "URL"),
    ] = ""
    trace_ratio: Annotated[
        Ratio, Flag(LIMITS, "share of the traces beginning here that are sent (default {default}: all)", "0..1")
    ] = 1.0
    force_usage: Annotated[
        bool, Flag(LIMITS, "tell usage in every chunk of streams of choices, whatever a request says")
    ] = False
    event_days: Annotated[Amount, Flag(LIMITS, "days that events (GET /v1/events) are kept; 0: for ever", "N")] = 90.0
    answer_days: Annotated[
        Amount, Flag(LIMITS, "days that responses and stored completions are kept; 0: for ever", "N")
    ] = 30.0
    max_answers: Annotated[Count, Flag(LIMITS, "of which at most so many, the newest; 0: any number", "N")] = 20_000
    data_dir: Annotated[
        str, Flag(PACKAGES, "where adapters are kept (default: hotswap's directory among the user's data)", "DIR")
    ] = ""
    catalog: Annotated[
        str, Flag(PACKAGES, "database of names and versions (default: a SQLite file in --data-dir)", "URL")
    ] = ""
    artifacts: Annotated[
        StoreUrl, Flag(PACKAGES, "object store to keep packages in instead, as s3://bucket/prefix", "URL")
    ] = ""
    artifacts_option: Annotated[
        Options, Flag(PACKAGES, "option of that store for fsspec, as anon=true; repeatable", "KEY=VALUE")
    ] = ()
    max_stored_gb: Annotated[Amount, Flag(PACKAGES, "weight of all packages that are kept; 0: what fits", "GB")] = 64.0
    max_cached_gb: Annotated[
        Amount, Flag(PACKAGES, "weight of copies in --data-dir of what --artifacts has; 0: what fits", "GB")
    ] = 16.0
    adapter_root: Annotated[
        Paths, Flag(PACKAGES, "folder that the admin API may take packages from, by path; repeatable", "DIR")
    ] = ()
    source_host: Annotated[
        Paths, Flag(PACKAGES, "web host to fetch packages from (default: all that are public); repeatable", "HOST")
    ] = ()
    source_url_prefix: Annotated[
        Paths, Flag(PACKAGES, "object store to fetch packages from, as s3://bucket/team; repeatable", "URL")
    ] = ()
    watch: Annotated[Paths, Flag(PACKAGES, "folder whose packages are served as they come; repeatable", "DIR")] = ()
    max_waiting_requests: Annotated[Count, Flag(LIMITS, "sequences queued before new ones get 429", "N")] = 512
    adapter_rpm: Annotated[Count, Flag(LIMITS, "requests a minute to one model name; 0: any number", "N")] = 0
    adapter_tpm: Annotated[
        Count, Flag(LIMITS, "tokens a minute of one model name, of prompts and outputs; 0: any number", "N")
    ] = 0
    adapter_concurrency: Annotated[
        Count, Flag(LIMITS, "sequences of one model name that run or wait at once; 0: any number", "N")
    ] = 0
    adapter_queue: Annotated[
        Count, Flag(LIMITS, "sequences of one model name that wait for their first token; 0: any number", "N")
    ] = 0
    key_rpm: Annotated[Count, Flag(LIMITS, "requests a minute with one key; 0: any number", "N")] = 0
    key_tpm: Annotated[Count, Flag(LIMITS, "tokens a minute with one key; 0: any number", "N")] = 0
    key_concurrency: Annotated[
        Count, Flag(LIMITS, "sequences with one key that run or wait at once; 0: any number", "N")
    ] = 0
    key_queue: Annotated[
        Count, Flag(LIMITS, "sequences with one key that wait for their first token; 0: any number", "N")
    ] = 0
    request_timeout: Annotated[
        Seconds, Flag(LIMITS, "a request that takes longer is ended with an error; 0: never", "S")
    ] = 0.0
    max_sequences_per_request: Annotated[Positive, Flag(LIMITS, "n times prompts of one request", "N")] = 256
    max_stop_strings: Annotated[Positive, Flag(LIMITS, "stop strings of one request", "N")] = 16
    max_logprobs: Annotated[
        AllOrCount, Flag(LIMITS, "likeliest tokens told beside one token; -1: as many as a request asks for", "N")
    ] = 20
    max_prompt_logprobs: Annotated[
        Positive, Flag(LIMITS, "log-probabilities of prompt tokens that one request may ask for", "N")
    ] = 262_144
    max_answer_logprobs: Annotated[
        Positive, Flag(LIMITS, "log-probabilities of output tokens that one answer may hold, if it is no stream", "N")
    ] = 4_194_304
    max_pooled_inputs: Annotated[
        Positive, Flag(LIMITS, "inputs of one request for embeddings, scores or classes", "N")
    ] = 2048
    max_pooled_numbers: Annotated[Positive, Flag(LIMITS, "numbers that one answer of these may hold", "N")] = 8_388_608
    max_body_mb: Annotated[Size, Flag(LIMITS, "size of one JSON request", "MB")] = 8.0
    max_json_values: Annotated[
        Positive, Flag(LIMITS, "values in one JSON request (a field, list or object counts as 6)", "N")
    ] = 262_144
    max_messages: Annotated[Positive, Flag(LIMITS, "messages of one conversation", "N")] = 4096
    max_prompt_chars: Annotated[Positive, Flag(LIMITS, "characters of one conversation, or of /tokenize", "N")] = (
        2_000_000
    )
    max_file_mb: Annotated[Size, Flag(LIMITS, "size of one file (POST /v1/files)", "MB")] = 512.0
    max_files_gb: Annotated[Amount, Flag(LIMITS, "weight of all files that are kept; 0: what fits", "GB")] = 16.0
    max_upload_mb: Annotated[Size, Flag(LIMITS, "size of one adapter upload", "MB")] = 2048.0
    adapter_template_seconds: Annotated[Size, Flag(LIMITS, "computing time of an adapter's chat template", "S")] = 2.0
    adapter_template_mb: Annotated[Positive, Flag(LIMITS, "memory of the process that renders it", "MB")] = 256
    max_bodies_mb: Annotated[Size, Flag(LIMITS, "JSON bodies in memory at once before more get 503", "MB")] = 64.0
    max_connections: Annotated[Positive, Flag(LIMITS, "connections open before new ones get 503", "N")] = 1024
    head_seconds: Annotated[Deadline, Flag(LIMITS, "time a client has to send the head of a request", "S")] = 15.0
    body_seconds: Annotated[
        Deadline, Flag(LIMITS, "time a client has to send a body, and one second more for each 32 KiB", "S")
    ] = 30.0
    send_seconds: Annotated[Deadline, Flag(LIMITS, "a client that takes nothing for so long is cut off", "S")] = 30.0
    max_unsent_mb: Annotated[Size, Flag(LIMITS, "answers that clients do not take before some are cut off", "MB")] = (
        256.0
    )
    stream_comment_seconds: Annotated[
        Seconds, Flag(LIMITS, "send a comment line in streams silent for so long (0: never)", "S")
    ] = 5.0
    drain_seconds: Annotated[Seconds, Flag(LIMITS, "time running requests get to finish at shutdown", "S")] = 30.0
    metrics_adapters: Annotated[Positive, Flag(LIMITS, "adapters with metrics of their own", "N")] = 100
    max_resident: Annotated[
        Count, Flag(LIMITS, "adapter versions in memory at once; 0: as many as --max-adapter-gb holds", "N")
    ] = 0
    load_adapters: Annotated[
        Loading, Flag(LIMITS, "eager: load adapters at start, as many as fit; lazy: at their first request", "WHEN")
    ] = "eager"
    max_candidates: Annotated[Count, Flag(LIMITS, "adapter versions uploaded but not live, at once", "N")] = 16
    max_combined: Annotated[Positive, Flag(LIMITS, "adapters that one request may combine", "N")] = 8
    max_combinations: Annotated[
        Positive, Flag(LIMITS, "combinations of adapters in memory at once; while all are in use others get 429", "N")
    ] = 32
    max_versions: Annotated[
        Count, Flag(LIMITS, "versions kept of one adapter; an upload deletes the oldest unused; 0: all", "N")
    ] = 32
    batch_concurrency: Annotated[
        Count, Flag(JOBS, "requests of batches under way at once, behind all others; 0: batches are off", "N")
    ] = 8
    fine_tuning_jobs: Annotated[Count, Flag(JOBS, "fine-tuning jobs that run at once; 0: fine-tuning is off", "N")] = 1
    fine_tuning_queue: Annotated[
        Positive, Flag(JOBS, "jobs of one key that wait, run or are paused before more get 429", "N")
    ] = 16
    fine_tuning_cores: Annotated[
        Count, Flag(JOBS, "cores that one job may use, at the lowest priority (default: half of them)", "N")
    ] = 0
    fine_tuning_memory_gb: Annotated[Amount, Flag(JOBS, "memory of one job; 0: any", "GB")] = 16.0
    fine_tuning_disk_gb: Annotated[Amount, Flag(JOBS, "what one job may write to disk; 0: what fits", "GB")] = 16.0
    fine_tuning_gate: Annotated[
        Gate, Flag(JOBS, "better: serve a result only if it is better on the validation file, if any; or none", "WHICH")
    ] = "better"
    fine_tuning_config: Annotated[
        str, Flag(JOBS, "YAML file with settings of hotswap train that all jobs begin with, as of the method", "FILE")
    ] = ""
    organization: Annotated[
        str, Flag(JOBS, "organization in the names of models that jobs make (ft:BASE:ORGANIZATION:...)", "NAME")
    ] = "hotswap"
    log_level: Annotated[Level, Flag(LIMITS, "debug, info, warning or error", "LEVEL")] = "info"
    _engine: EngineConfig = PrivateAttr()

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: object, info: ValidationInfo) -> object:
        """YAML's numbers and dates where a text is wanted are text; its booleans and fractions are no whole numbers."""
        if info.field_name == "speculation" and value is False:
            return "off"  # which is a switch to YAML
        kind = cls.model_fields[str(info.field_name)].annotation
        if (isinstance(value, bool) and kind in (int, float, str)) or (isinstance(value, float) and kind is int):
            raise WrongKindError("a switch or a fraction")
        return str(value) if kind is str and isinstance(value, int | float | date) else value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        names = [name for name, _ in self.adapter]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"--adapter names {twice[0]!r} twice")
        if "*" in self.cors_origin and not self.api_keys:
            raise ValueError(
                "--cors-origin * lets every web page use this server, and no key is asked for; give --api-key, or name "
                "the origins"
            )
        if "*" in self.cors_origin and self.cors_credentials:
            raise ValueError("--cors-credentials lets pages of --cors-origin send cookies; name the origins, not *")
        self._engine = EngineConfig(**{name: getattr(self, name) for name in _ENGINE_SETTINGS})
        return self

    @property
    def engine(self) -> EngineConfig:
        """What the engine process is told."""
        return self._engine

    @property
    def api_keys(self) -> tuple[bytes, ...]:
        """Digests of all inference keys."""
        return self.api_key + self.api_key_file

    @property
    def admin_keys(self) -> tuple[bytes, ...]:
        """Digests of all admin keys."""
        return self.admin_key + self.admin_key_file

    @property
    def adapter_limits(self) -> Limits:
        """Of a model name for which nothing else is set."""
        return Limits(self.adapter_rpm, self.adapter_tpm, self.adapter_concurrency, self.adapter_queue)

    @property
    def key_limits(self) -> Limits:
        """Of a key for which nothing else is set, and of all who have none together."""
        return Limits(self.key_rpm, self.key_tpm, self.key_concurrency, self.key_queue)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return bool(self.uds) or is_loopback_name(self.host)

    @property
    def admin_is_open(self) -> bool:
        """Whether the admin API needs no key of these settings: there is none, and only this machine can connect."""
        return self.is_loopback and not self.api_keys and not self.admin_keys


def open_to_others(host: str) -> str:
    """What to say of a server without any key that other machines would reach."""
    return (
        f"--host {host} can be reached from other machines and no key is configured, so anyone could replace adapters; "
        "give --admin-key (and --api-key for inference), make a key with hotswap keys create --data-dir, or use --host "
        "127.0.0.1"
    )


def is_loopback_name(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
