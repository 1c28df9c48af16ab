"""The headers If-Match and If-None-Match of a request, and the ETag of what it is about (RFC 9110, section 13).

Here they are read; a change is guarded by them where it is made. The tag of a name is of what operators decide about
it, the same on every server of one catalog: not of how many requests run, or of what one server could not load.
"""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.api.error_responses import ApiError
from server.catalog.guard import ANY, Guard, NameState, Tags, matches_weakly

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_LIST = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")  # empty items are allowed


async def read_guard(request: Request) -> Guard:
    """What the headers of ``request`` ask for. Raises ApiError (400) for what is no list of entity tags."""
    return Guard(if_match=_tags(request, "If-Match"), if_none_match=_tags(request, "If-None-Match"))


GuardDep = Annotated[Guard, Depends(read_guard)]


def etag_of(state: NameState | None) -> dict[str, str]:
    """The header of an answer about a name that is so; none for None."""
    return {} if state is None else {"ETag": state.etag}


def unmodified(guard: Guard, state: NameState) -> Response | None:
    """The whole answer to a GET by a client that has this already (304); None for others.

    Raises PreconditionFailedError where If-Match does not hold.
    """
    Guard(if_match=guard.if_match).check_tags(state)
    if guard.if_none_match is None or not matches_weakly(guard.if_none_match, state):
        return None
    return Response(status_code=304, headers=etag_of(state))


def _tags(request: Request, header: str) -> Tags | None:
    lines = request.headers.getlist(header)
    if not lines:
        return None
    text = ",".join(lines)
    if text.strip(" \t") == "*":
        return ANY
    if not _LIST.fullmatch(text):
        raise ApiError(
            400,
            f"the header {header} is malformed: write *, or the ETags of answers, in their double quotes, with commas",
            param=header,
            code="invalid_header",
        )
    return frozenset(re.findall(_TAG, text))
