"""The events of a response that is whole, as they would have come had its text come at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.api.event_stream import event
from server.api.responses.outputs import OutputItems

Event = dict[str, Any]


def replayed(response: dict[str, Any], starting_after: int | None = None) -> list[bytes]:
    """The events of ``response``, or those behind the one numbered ``starting_after``."""
    numbered = ({**one, "sequence_number": number} for number, one in enumerate(_events(response)))
    first = 0 if starting_after is None else starting_after + 1
    return [event(one, one["type"]) for one in numbered if one["sequence_number"] >= first]


def _events(response: dict[str, Any]) -> Iterator[Event]:
    begun = {**response, "status": "in_progress", "output": [], "usage": None, "completed_at": None,
             "incomplete_details": None, "error": None}  # fmt: skip
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(response["output"]):
        for one in OutputItems.events_of(item):
            yield {**one, "output_index": index}
    if response["status"] not in ("queued", "in_progress"):
        status = "failed" if response["status"] == "cancelled" else response["status"]
        yield {"type": f"response.{status}", "response": response}
