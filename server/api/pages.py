"""Lists of OpenAI's, a page at a time."""

from __future__ import annotations

from typing import Any, Literal

from server.errors import InvalidRequestError

Order = Literal["asc", "desc"]


def page_body(data: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """OpenAI's page of ``data``, of which one more than ``limit`` was looked for."""
    shown = data[:limit]
    ends = {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return {"object": "list", "data": shown, **ends, "has_more": len(data) > limit}


def page_of(items: list[dict[str, Any]], *, after: str | None, limit: int, order: Order, absent: str) -> dict[str, Any]:
    """The page of all ``items``, oldest first, behind the one whose id is ``after``.

    Raises InvalidRequestError where there is none of that id, which is then ``absent``.
    """
    if order == "desc":
        items = items[::-1]
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidRequestError(f"after: {absent} '{after[:80]}'", param="after")
        items = items[places[0] + 1 :]
    return page_body(items[: limit + 1], limit)
