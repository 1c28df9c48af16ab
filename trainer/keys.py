"""Keys of a server, as HTTP takes them."""

from __future__ import annotations

from trainer.errors import ConfigError


def bearer(key: str | None) -> dict[str, str]:
    """The header that carries ``key``; none without one. Raises ConfigError, which does not repeat the key."""
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or key != key.strip():
        raise ConfigError(
            "the key for the server must consist of printable ASCII characters; see that nothing was "
            "copied with it, such as the end of a line"
        )
    return {"Authorization": f"Bearer {key}"}
