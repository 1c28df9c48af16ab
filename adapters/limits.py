"""How much a package may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True)
class PackageLimits:
    """Caps that hold before anything large is allocated. A package beyond one is a PackageError.

    ``max_config_bytes`` bounds the configuration and the manifest, which are parsed whole, ``max_json_bytes`` others.
    ``max_bytes`` bounds what an archive unpacks to and what the weights file weighs; ``max_expansion`` is unpacked
    over packed bytes, checked once ``free_expansion_bytes`` are unpacked (short texts compress far).
    ``max_dense_bytes`` bounds the whole matrices, in float32, that an adapter's small tensors grow into
    (``adapters.kinds.dense``). ``max_token_list_bytes`` and ``max_listed_tokens`` bound the list of all tokens that a
    tokenizer calls added (its base's own among them, 65,000 where a base speaks), ``max_added_tokens`` those that its
    base does not have, and ``max_added_token_chars`` their texts together: the search for them is built while a
    server's other requests wait, in about 0.3 seconds a million.
    """

    max_files: int = 1024
    max_bytes: int = 4096 * _MIB
    max_expansion: int = 100
    free_expansion_bytes: int = 16 * _MIB
    max_config_bytes: int = 1 * _MIB
    max_json_bytes: int = 4 * _MIB
    max_header_bytes: int = 16 * _MIB
    max_tensors: int = 50_000
    max_dims: int = 4
    max_rank: int = 1024
    max_dense_bytes: int = 1024 * _MIB
    max_virtual_tokens: int = 4096
    max_pattern_chars: int = 2048
    max_patterns: int = 10_000
    max_token_list_bytes: int = 16 * _MIB
    max_listed_tokens: int = 80_000
    max_added_tokens: int = 32_768
    max_added_token_chars: int = 131_072
    max_tokenizer_bytes: int = 48 * _MIB
    max_golden: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")


DEFAULT_LIMITS = PackageLimits()
