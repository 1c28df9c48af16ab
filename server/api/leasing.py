"""The version that answers a request, and its errors counted under that version."""

from __future__ import annotations

import contextlib

from fastapi import Request

from server.adapter_key import AdapterKey
from server.api.auth import caller_of
from server.api.context import ServerContext
from server.api.error_responses import to_api_error
from server.api.prepare import asked_model
from server.api.wire import ModelBody
from server.catalog.lease import Lease
from server.errors import AdapterFailedError, BudgetError, InvalidRequestError, StoreError, UnknownModelError

SESSION_HEADER = "x-session-id"  # what a request sticks to whose body says nothing


async def leased(request: Request, context: ServerContext, body: ModelBody) -> Lease:
    """A hold on the version that answers: the live one where a canary that was drawn cannot be loaded.

    Of a combination on those of all its members.
    """
    sticky = body.sticky or request.headers.get(SESSION_HEADER) or None
    model = asked_model(context.registry, body)
    live = context.registry.find(model)
    lease = context.registry.lease(model, sticky)
    if lease.key is None or live is None or lease.key == live:
        return lease
    try:
        await context.residency.ensure(lease)
    except BaseException as error:
        lease.release()
        if not isinstance(error, (AdapterFailedError, BudgetError, StoreError, UnknownModelError)):
            raise
        for canary in set(lease.key.versions).difference(live.versions):
            context.registry.on_fallback(canary)
        return context.registry.lease(str(live))
    return lease


def count_error(
    request: Request, context: ServerContext, body: ModelBody, drawn: AdapterKey | None, error: Exception
) -> None:
    """Count an error that is answered, under the version ``drawn``, else the one that was asked for if there is one."""
    request.scope["state"]["record"].note_error(error)
    adapter = drawn
    with contextlib.suppress(UnknownModelError, InvalidRequestError):
        caller_of(request).check_asked(context.registry, body)
        adapter = adapter or context.registry.find(body.named(context.base_name))
    answer = to_api_error(error)
    context.metrics.error(adapter, answer.code or "invalid_request", answer.status)
    if answer.status >= 500:
        context.traffic.figures.failed(drawn)
