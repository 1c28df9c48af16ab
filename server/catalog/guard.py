"""What a client says must hold of a name for its change to be made. Checked within the change itself."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from server.catalog.versions import VersionHistory
from server.errors import ConflictError, PreconditionFailedError

Tags = frozenset[str]
ANY: Tags = frozenset("*")  # whatever there is; a tag is quoted and so never looks like this
_TAG_DIGITS = 32  # of a SHA-256, in hex
_LOOK = "Look at GET /v1/adapters/{name} before you decide again"


@dataclass(frozen=True)
class NameState:
    """What a guard is compared with. ``live`` is 0 for none, ``etag`` a strong entity tag, quotes included.

    What was removed has a tag as well, but does not exist.
    """

    name: str
    etag: str
    live: int = 0
    exists: bool = True


@dataclass
class Guard:
    """Of one change: what must hold for it (None: nothing), and in ``after`` what the name was when it had been made.

    ``expected_live`` is a version (0: none), the others are the headers of RFC 9110. Weak tags (``W/"..."``) match
    nothing in ``if_match``, and like others in ``if_none_match``.
    """

    expected_live: int | None = None
    if_match: Tags | None = None
    if_none_match: Tags | None = None
    after: NameState | None = None

    def check(self, state: NameState, *, target: int | None = None) -> None:
        """Raise PreconditionFailedError, or ConflictError for another live version than was expected.

        Not for that where the ``target`` is live already: the call was repeated.
        """
        self.check_tags(state)
        live, expected, name = state.live, self.expected_live, state.name
        if expected in (None, live) or (live and live == target):
            return
        serves = f"{name!r} serves version {live}" if live else f"{name!r} serves no version"
        wanted = f"not {expected}" if expected else "and was expected to serve none"
        raise ConflictError(
            f"{serves}, {wanted}: it was changed meanwhile. {_LOOK.format(name=name)}",
            param="expected_live",
            code="live_version_changed",
        )

    def check_tags(self, state: NameState) -> None:
        """Raise PreconditionFailedError where a header does not hold."""
        name = state.name
        serves = f"it serves {f'version {state.live}' if state.live else 'no version'} now, its ETag is {state.etag}"
        if self.if_match is not None and not _names(self.if_match, state):
            if state.exists:
                reason = f"{name!r} was changed meanwhile: {serves}. {_LOOK.format(name=name)}"
            else:
                reason = f"there is no adapter {name!r}, and If-Match asks for one; leave the header out to upload it"
            raise PreconditionFailedError(reason, param="If-Match", etag=state.etag if state.exists else None)
        if self.if_none_match is not None and matches_weakly(self.if_none_match, state):
            reason = f"the adapter {name!r} exists ({serves}), and If-None-Match asks that it does not"
            raise PreconditionFailedError(reason, param="If-None-Match", etag=state.etag)


def matches_weakly(tags: Tags, state: NameState) -> bool:
    """Whether ``state`` is among ``tags``, weak ones included."""
    return _names(frozenset(tag.removeprefix("W/") for tag in tags), state)


def _names(tags: Tags, state: NameState) -> bool:
    return state.exists if tags == ANY else state.etag in tags


def state_of(name: str, history: VersionHistory | None) -> NameState:
    """The state of a name that is as ``history`` says (None: never heard of).

    Its tag is of what is durable and was decided: not of numbers that were given out for nothing.
    """
    history = history or VersionHistory()
    versions = history.all()
    record = msgspec.structs.replace(history.record, last=0)
    decided = (name, record, [(version.key.version, version.key.digest) for version in versions])
    digest = hashlib.sha256(msgspec.json.encode(decided, order="deterministic")).hexdigest()
    return NameState(name, f'"{digest[:_TAG_DIGITS]}"', live=history.live or 0, exists=bool(versions))
