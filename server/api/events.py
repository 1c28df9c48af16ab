"""``GET /v1/events``: what was done and refused, newest first."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.api.auth import SomeReaderKey
from server.api.context import TrailDep
from server.api.error_responses import ApiError, json_response
from server.api.moments import Moment
from server.catalog.events import MAX_PAGE, EventQuery, Outcome, entry_data

router = APIRouter()
Text = Annotated[str | None, Query(max_length=256)]
Time = Annotated[Moment | None, Query()]
_TAKEN = ("name", "actor", "action", "outcome", "since", "until", "cursor", "limit")


@router.get("/v1/events", response_model=None)
async def list_events(
    caller: SomeReaderKey,
    request: Request,
    trail: TrailDep,
    *,
    name: Text = None,
    actor: Text = None,
    action: Text = None,
    outcome: Annotated[Outcome | None, Query()] = None,
    since: Time = None,
    until: Time = None,
    cursor: Annotated[str | None, Query(max_length=60)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> Response:
    """Events for which all holds that is given. A key for some adapters sees theirs. ``next``: the ``cursor`` to go on
    with, null at the end."""
    if unknown := sorted(set(request.query_params) - set(_TAKEN)):
        raise ApiError(400, f"{unknown[0][:60]}: is no parameter; there are {', '.join(_TAKEN)}", param=unknown[0][:60])
    query = EventQuery(
        name=name,
        actor=actor,
        action=action,
        outcome=outcome,
        since=since,
        until=until,
        before=None if cursor is None else _place(cursor),
        limit=limit + 1,
        adapters=caller.adapters,
    )
    found = await trail.find(query)
    page = found[:limit]
    following = f"{page[-1].time!r}_{page[-1].id}" if len(found) > limit else None
    return json_response({"object": "list", "data": [entry_data(entry) for entry in page], "next": following})


def _place(cursor: str) -> tuple[float, int]:
    time, _, id = cursor.partition("_")
    try:
        if not -(2**63) <= int(id) < 2**63:
            raise ValueError("no id")
        return float(time), int(id)
    except ValueError as error:
        raise ApiError(400, "cursor: must be the `next` of another answer", param="cursor") from error
