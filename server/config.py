"""The engine's settings as a frozen struct, which travels to the engine process as JSON; imports no pydantic.

Type, default and help of each setting stand at its field, once: ``server.settings`` makes flags, names in the
environment and keys of the YAML file of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from bases.names import DTYPES, SERVED_QUANTIZATIONS

DEFAULT_MODEL = "default"
FORWARDS = ("auto", "generic")
KV_DTYPES = (*DTYPES, "int8")
SPECULATIONS = ("auto", "off")
SCHEDULINGS = ("fair", "fcfs")
ENGINE, ADDRESS, KEYS = "base model and engine", "address", "keys"
PACKAGES, LIMITS = "adapter packages: where they are kept and come from", "limits and the rest"
JOBS = "batches and fine-tuning jobs"


@dataclass(frozen=True)
class Flag:
    """How the operator reads about a setting; ``help`` speaks of the default only where the value says too little."""

    group: str
    help: str
    metavar: str | None = None

    def text(self, default: object) -> str:
        """The line of ``--help``, with ``default`` as the operator would write it."""
        if default in ("", ()):
            return self.help
        shown = f"{default:g}" if isinstance(default, float) else default
        if isinstance(default, bool):
            shown = "on" if default else "off"
        text = self.help if "(default" in self.help else self.help + " (default {default})"
        return text.format(default=shown)


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Engine settings. Bad combinations raise ValueError naming the flag.

    ``model`` is a resolved directory. ``quantize`` is one of SERVED_QUANTIZATIONS: auto keeps a quantized checkpoint as
    it is, serves a base from a GGUF file as that stored it, and makes nf4 of others; -dq quantizes the scales as well.
    ``dtype`` is one of DTYPES: auto means fp32 where native kernels compute, elsewhere bf16 where the device multiplies
    it natively, else fp32. ``forward`` is one of FORWARDS. ``kv_dtype`` is one of KV_DTYPES: auto means fp16 where
    native kernels compute over a quantized base, else as ``dtype``. ``speculation`` is one of SPECULATIONS, and
    ``scheduling`` of SCHEDULINGS.
    ``max_model_len`` and ``threads`` are 0 where nobody chose. ``chat_template_sha256`` is of the template that is
    served, which adapters must have been trained with, and ``end_token_ids`` end an output; empty: as the base's own
    files say. What an engine remembers is in ``tried_dir``. They are computed, so they have no flags.
    """

    model: Annotated[
        str, Flag(ENGINE, "the base: hub id, directory or GGUF file (default: a small built-in one)", "ID|PATH")
    ] = DEFAULT_MODEL
    quantize: Annotated[
        str, Flag(ENGINE, f"{', '.join(SERVED_QUANTIZATIONS[1:])} (default: as saved or stored, else nf4)", "HOW")
    ] = "auto"
    dtype: Annotated[str, Flag(ENGINE, f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}", "TYPE")] = "auto"
    device: Annotated[str, Flag(ENGINE, "auto, cpu or cuda", "DEVICE")] = "auto"
    forward: Annotated[
        str, Flag(ENGINE, "auto: by a plan read off the model, where the two agree; generic: by transformers", "HOW")
    ] = "auto"
    max_model_len: Annotated[int, Flag(ENGINE, "positions of one sequence (default: what the base allows)", "N")] = 0
    max_num_seqs: Annotated[int, Flag(ENGINE, "sequences computed at once", "N")] = 64
    max_num_batched_tokens: Annotated[int, Flag(ENGINE, "tokens of one step", "N")] = 512
    block_size: Annotated[int, Flag(ENGINE, "positions of one KV block", "N")] = 16
    kv_cache_gb: Annotated[float, Flag(ENGINE, "most memory for the KV cache", "GB")] = 1.0
    kv_dtype: Annotated[
        str, Flag(ENGINE, f"{', '.join(KV_DTYPES[:-1])} or {KV_DTYPES[-1]}, of keys and values", "TYPE")
    ] = "auto"
    max_adapter_gb: Annotated[float, Flag(ENGINE, "memory for resident adapters; 0: what there is", "GB")] = 16.0
    max_host_adapter_gb: Annotated[
        float, Flag(ENGINE, "memory for adapters that left a device with memory of its own; 0: none is kept", "GB")
    ] = 16.0
    prefix_caching: Annotated[bool, Flag(ENGINE, "share the KV of equal prompt beginnings")] = True
    speculation: Annotated[
        str,
        Flag(ENGINE, "auto: guess tokens from what was there before and compute them along, where it pays; off", "HOW"),
    ] = "auto"
    scheduling: Annotated[
        str,
        Flag(
            ENGINE,
            "fair: adapters, and keys, share the engine by weight and priority; fcfs: first come first served",
            "HOW",
        ),
    ] = "fair"
    threads: Annotated[int, Flag(ENGINE, "CPU threads of the engine (default: torch's choice)", "N")] = 0
    adapter_templates: Annotated[
        bool, Flag(ENGINE, "render conversations of an adapter with the chat template that its package brings")
    ] = False
    engine_timeout: Annotated[
        float, Flag(ENGINE, "silence of the engine process after which it is killed and started again; 0: never", "S")
    ] = 10.0
    step_timeout: Annotated[
        float, Flag(ENGINE, "standstill within a step after which it is killed as well; 0: never", "S")
    ] = 600.0
    start_timeout: Annotated[
        float, Flag(ENGINE, "time to load the base, or to load it again with all adapters; 0: any", "S")
    ] = 3600.0
    trust_remote_code: Annotated[bool, Flag(ENGINE, "run model code that comes with the base")] = False
    chat_template_sha256: str = ""
    end_token_ids: tuple[int, ...] = ()
    tried_dir: str = ""

    def __post_init__(self) -> None:
        chosen = (
            ("quantize", SERVED_QUANTIZATIONS), ("dtype", DTYPES), ("kv_dtype", KV_DTYPES), ("forward", FORWARDS),
            ("speculation", SPECULATIONS), ("scheduling", SCHEDULINGS),
        )  # fmt: skip
        for name, known in chosen:
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"--{name.replace('_', '-')} must be one of {', '.join(known)}, not {value!r}")
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.kv_cache_gb <= 0:
            raise ValueError(f"--kv-cache-gb must be above 0, not {self.kv_cache_gb}")
        limits = (
            "max_adapter_gb",
            "max_host_adapter_gb",
            "max_model_len",
            "threads",
            "engine_timeout",
            "step_timeout",
            "start_timeout",
        )
        for name in limits:
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} must not be negative, as {getattr(self, name)} is")
