"""What a started server tells its operator: what is loaded, where it listens, how to try it."""

from __future__ import annotations

import json

from server.api.parts import Parts


def banner(parts: Parts, url: str) -> str:
    """A few lines for a person."""
    info = parts.engine.info
    names = parts.registry.names()
    tokens = info.num_kv_blocks * info.block_size
    rows = {
        "base": f"{parts.base_name} ({info.quantization}, {info.dtype} on {info.device}, {_size(info.base_bytes)})",
        "kv cache": f"{_size(info.kv_bytes)}, {tokens:,} tokens; up to {info.max_model_len:,} per sequence",
        "adapters": ", ".join(_adapter(parts, name) for name in names) or "none yet",
        "listening": f"{url}  ({_access(parts)})",
        "try": _curl(parts, url, names[0] if names else parts.base_name),
        "talk": f"hotswap chat --url {url}",
    }
    return "\n".join([f"hotswap {parts.version} is ready", *(f"  {key:<10}{value}" for key, value in rows.items())])


def _adapter(parts: Parts, name: str) -> str:
    version = parts.registry.live(name)
    return f"{version.key} ({version.kind}, {_size(version.nbytes)})"


def _access(parts: Parts) -> str:
    config = parts.config
    inference = "API key needed" if config.api_keys else "no API key needed"
    if config.admin_is_open:
        return f"{inference}; adapter uploads open to this machine"
    return f"{inference}; adapter uploads {'with an admin key' if config.admin_keys else 'off: no --admin-key'}"


def _curl(parts: Parts, url: str, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    key = ' -H "Authorization: Bearer $KEY"' if parts.config.api_keys else ""
    return f"curl {url}/v1/chat/completions{key} -d '{json.dumps(body)}'"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
