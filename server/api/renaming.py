"""What is wrong with a chat, told by the names that another dialect of the API has for its fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from server.errors import InvalidRequestError


@contextmanager
def told_as(names: Mapping[str, str]) -> Iterator[None]:
    """Let what the block raises be ``renamed``."""
    try:
        yield
    except InvalidRequestError as error:
        if type(error) is not InvalidRequestError:
            raise
        raise renamed(error, names) from error


def renamed(error: InvalidRequestError, names: Mapping[str, str]) -> InvalidRequestError:
    """``error``, with the first of ``names`` that its field begins with by its other name, and so where it is said.

    The places within ``messages`` are others in every dialect, and are left out. A function of a tool is told as the
    tool itself.
    """
    param, message = error.param or "", str(error)
    if param.startswith("tool"):
        param, message = param.replace(".function", ""), message.replace(".function", "")
    for theirs, ours in names.items():
        rest = param.removeprefix(theirs)
        if rest == param or rest[:1].isidentifier():
            continue
        message = re.sub(rf"^{re.escape(theirs)}(?!\w)|(?<=`){re.escape(theirs)}(?!\w)", ours, message)
        if theirs == "messages":  # which sentences name as well
            message = re.sub(r"\b(the|your|these) messages\b", rf"\1 {ours}", message)
        param = ours if theirs == "messages" else ours + rest
        break
    return InvalidRequestError(message, param=param or None, code=error.code)
