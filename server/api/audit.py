"""Who did, or was refused, what: lines of the log ``server.audit``, and events of the catalog."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request

from adapters.errors import AdapterError
from server.api.context import ServerContext
from server.api.error_responses import ApiError, to_api_error
from server.catalog.events import ACTOR, JOB_ACTIONS, KEY_ACTIONS, Actor, Event, told
from server.errors import ServerError

_audit = logging.getLogger("server.audit")
_MAX_PATH = 200


def note_caller(request: Request, name: str) -> None:
    """Say whose the request is; what it changes is told of with that."""
    address = request.client.host if request.client else ""
    ACTOR.set(Actor(name, address, request.scope["state"]["request_id"]))


def audit(request: Request, action: str, name: str | None, **details: object) -> None:
    """A line of the log for a change, or a refused change, of an adapter or key. A change has told its event itself."""
    client = request.client.host if request.client else None
    who = {"client": client, "request_id": request.scope["state"]["request_id"], "actor": ACTOR.get().name}
    said = str(details.get("refused", action))
    what = "key" if said.startswith(KEY_ACTIONS) else "job" if said.startswith(JOB_ACTIONS) else "adapter"
    fields = {"action": action, what: name, **who, **details}
    _audit.info("%s %s: %s", what, name, action, extra={"fields": fields})


@contextmanager
def refusals_audited(
    request: Request, name: str | None, action: str | None = None, **details: object
) -> Iterator[None]:
    """Let what the block raises pass, with an audit line and an event for a refusal of ``action``: the route's name."""
    try:
        yield
    except (AdapterError, ServerError, ApiError) as error:
        audit_refusal(request, name, action or request.scope["route"].name, error, **details)
        raise


def audit_refusal(request: Request, name: str | None, action: str, error: Exception, **details: object) -> None:
    """``action`` was refused with ``error``."""
    audit(request, "refuse", name, refused=action, reason=str(error), **details)
    version = details.pop("version", None)
    said = {"code": to_api_error(error).code, "reason": str(error), **details}
    event = Event(
        action,
        version if isinstance(version, int) else None,
        {field: value for field, value in said.items() if value is not None},
    )
    context = _context(request)
    base = context.engine.info.base_fingerprint if context.engine.ready else ""
    context.trail.record(told(event, name or "", base, outcome="refused"))


def refused_caller(request: Request, context: ServerContext, name: str, error: Exception) -> Exception:
    """``error``, which keeps a caller out: noted as an event, of one sort once a minute."""
    note_caller(request, name)
    answer = to_api_error(error)
    path = f"{request.method} {request.scope['path'][:_MAX_PATH]}"
    detail = {"code": answer.code, "status": answer.status, "request": path, "reason": answer.message}
    entry = told(Event("access", None, detail), outcome="refused")
    if context.trail.record_refusal(entry):
        who = {"client": entry.actor.address, "request_id": entry.actor.request_id, "actor": name}
        _audit.info("refused: %s", path, extra={"fields": {"action": "access", **who, **detail}})
    return error


def _context(request: Request) -> ServerContext:
    context = request.app.state.context
    assert isinstance(context, ServerContext)
    return context
