"""What one adapter, or one key, may take of a server. Pure data: it is enforced where requests are admitted."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Requests and tokens per minute, requests at once, and requests waiting. None: the server's default."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    max_queue: int | None = None
