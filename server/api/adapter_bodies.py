"""What the admin API answers about adapters and their versions, and the audit line of every change."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import Request

from adapters.errors import AdapterError
from server.api.errors import ApiError
from server.api.parts import Parts
from server.errors import ServerError
from server.registry import AdapterVersion

_audit = logging.getLogger("server.audit")
_OF_LIVE = ("version", "digest", "kind", "bytes", "num_virtual_tokens", "created", "state")


def adapter_body(parts: Parts, name: str) -> dict[str, Any]:
    """One name: what is known of its live version (all None before there is one), and its versions."""
    versions = [version_body(parts, version) for version in parts.registry.versions(name)]
    none: dict[str, Any] = {"id": name, "name": name, "warnings": [], **dict.fromkeys(_OF_LIVE)}
    live = version_body(parts, parts.registry.live(name)) if name in parts.registry.names() else none
    running = sum(version["running"] for version in versions)
    return {**live, "object": "adapter", "running": running, "versions": versions}


def version_body(parts: Parts, version: AdapterVersion) -> dict[str, Any]:
    """One version that is kept."""
    key = version.key
    return {
        "object": "adapter.version",
        "id": str(key),
        "name": key.name,
        "version": key.version,
        "digest": key.digest,
        "kind": version.kind,
        "bytes": version.nbytes,
        "num_virtual_tokens": version.num_virtual_tokens,
        "created": int(version.created),
        "state": parts.registry.state(key).value,
        "running": parts.admission.running(key),
        "warnings": list(version.warnings),
    }


def audit(request: Request, action: str, name: str | None, **details: object) -> None:
    """One line per change, or refused change, of what is served."""
    client = request.client.host if request.client else None
    request_id = request.scope["state"]["request_id"]
    fields = {"action": action, "adapter": name, "client": client, "request_id": request_id, **details}
    _audit.info("adapter %s: %s", name, action, extra={"fields": fields})


@contextmanager
def refusals_audited(request: Request, name: str | None, **details: object) -> Iterator[None]:
    """Let what the block raises pass, with an audit line for a refusal."""
    try:
        yield
    except (AdapterError, ServerError, ApiError) as error:
        audit(request, "refuse", name, reason=str(error), **details)
        raise
