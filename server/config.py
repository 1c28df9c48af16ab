"""What the engine process needs to know, as one frozen struct (it travels to the child process as JSON)."""

from __future__ import annotations

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Engine settings. Bad combinations raise ValueError naming the flag.

    ``model`` is a resolved directory. ``quantize``: nf4, int8 or none. ``dtype``: auto (bf16 where the device
    computes in it natively, else fp32), float32 or bfloat16. ``kv_cache_gb`` is the size of the KV cache.
    ``max_num_batched_tokens`` bounds the tokens of one step, ``max_num_seqs`` its sequences, ``max_model_len`` the
    positions of one sequence (0: what the base allows). ``threads`` 0 leaves torch's own choice.
    """

    model: str
    quantize: str = "nf4"
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

    def __post_init__(self) -> None:
        if self.quantize not in ("nf4", "int8", "none"):
            raise ValueError(f"--quantize must be nf4, int8 or none, not {self.quantize!r}")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"--dtype must be auto, float32 or bfloat16, not {self.dtype!r}")
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.kv_cache_gb <= 0:
            raise ValueError(f"--kv-cache-gb must be above 0, not {self.kv_cache_gb}")
        if self.max_model_len < 0 or self.threads < 0:
            raise ValueError("--max-model-len and --threads must not be negative")
