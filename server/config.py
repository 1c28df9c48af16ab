"""Settings as frozen structs: of the engine (it travels to the child process as JSON) and of the whole server."""

from __future__ import annotations

import ipaddress

import msgspec

from bases.names import DTYPES, SERVED_QUANTIZATIONS


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Engine settings. Bad combinations raise ValueError naming the flag.

    ``model`` is a resolved directory. ``quantize`` is one of SERVED_QUANTIZATIONS: auto keeps a quantized checkpoint as
    it is and makes nf4 of others; -dq quantizes the scales as well. ``dtype`` is one of DTYPES: auto means bf16 where
    the device computes in it natively, else fp32. ``kv_cache_gb`` is the size of the KV cache.
    ``max_num_batched_tokens`` bounds the tokens of one step, ``max_num_seqs`` its sequences, ``max_model_len`` the
    positions of one sequence (0: what the base allows). ``threads`` 0 leaves torch's own choice.
    ``chat_template_sha256`` is of the template served, which adapters must have been trained with, and
    ``end_token_ids`` end an output; empty: as the base's own files say.
    """

    model: str
    quantize: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    block_size: int = 16
    kv_cache_gb: float = 1.0
    prefix_caching: bool = True
    threads: int = 0
    trust_remote_code: bool = False
    chat_template_sha256: str = ""
    end_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("quantize", SERVED_QUANTIZATIONS), ("dtype", DTYPES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"--{name} must be one of {', '.join(known)}, not {value!r}")
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.kv_cache_gb <= 0:
            raise ValueError(f"--kv-cache-gb must be above 0, not {self.kv_cache_gb}")
        if self.max_model_len < 0 or self.threads < 0:
            raise ValueError("--max-model-len and --threads must not be negative")


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``hotswap serve`` can be told. Bad values raise ValueError naming the flag.

    ``engine.model`` is as the operator gave it (a hub id or a directory) until ``server.app.make_context`` resolves it.
    ``served_model_name`` empty: the base's own name. ``adapters`` are (name, directory or archive) loaded at start;
    those that answer exactly as the base does are refused unless ``allow_noop``. Keys are kept only as SHA-256
    digests. ``max_waiting_requests`` bounds the sequences accepted beyond ``max_num_seqs``;
    ``max_candidates`` bounds the adapter versions that are resident without being live.
    ``max_sequences_per_request`` bounds n times the prompts of one request. ``data_dir`` holds the adapter
    packages; empty: a temporary directory that goes with the process.
    """

    engine: EngineConfig
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str = ""
    adapters: tuple[tuple[str, str], ...] = ()
    allow_noop: bool = False
    api_keys: tuple[bytes, ...] = ()
    admin_keys: tuple[bytes, ...] = ()
    public_metrics: bool = False
    chat_template: str = ""
    data_dir: str = ""
    max_waiting_requests: int = 512
    max_sequences_per_request: int = 256
    max_stop_strings: int = 16
    max_body_mb: float = 8.0
    max_upload_mb: float = 2048.0
    drain_seconds: float = 30.0
    metrics_adapters: int = 100
    max_candidates: int = 16
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"--port must be 0 to 65535, not {self.port}")
        for name in ("max_sequences_per_request", "max_stop_strings", "metrics_adapters"):
            _require(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("max_body_mb", "max_upload_mb"):
            _require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("max_waiting_requests", "drain_seconds", "max_candidates"):
            _require(self, name, getattr(self, name) >= 0, "0 or more")
        levels = ("debug", "info", "warning", "error")
        _require(self, "log_level", self.log_level in levels, ", ".join(levels))
        if not (self.is_loopback or self.api_keys or self.admin_keys):
            raise ValueError(
                f"--host {self.host} can be reached from other machines and no key is configured, so anyone could "
                "replace adapters; give --admin-key (and --api-key for inference), or use --host 127.0.0.1"
            )
        names = [name for name, _ in self.adapters]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"--adapter names {twice[0]!r} twice")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback_name(self.host)

    @property
    def admin_is_open(self) -> bool:
        """Whether the admin API needs no key: no key of any kind is configured and only this machine can connect."""
        return self.is_loopback and not self.api_keys and not self.admin_keys


def is_loopback_name(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _require(config: ServerConfig, name: str, holds: bool, wanted: str) -> None:
    if not holds:
        raise ValueError(f"--{name.replace('_', '-')} must be {wanted}, not {getattr(config, name)}")
