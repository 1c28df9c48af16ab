"""What a server says of its adapters, as text for people: tables and short paragraphs. Prints nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from trainer.serving.answers import listed
from trainer.tables import aligned, counted

Body = Mapping[str, Any]
NONE = "-"
_SETTINGS = {  # of a name, by the field that sets each
    "pinned": "pinned",
    "weight": "weight",
    "priority": "priority",
    "retention": "retention",
    "idle_ttl_seconds": "idle TTL",
}
_LIMITS = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "max_concurrency": "concurrent",
    "max_queue": "queued",
}
_USUAL: dict[str, object] = {
    **dict.fromkeys((*_SETTINGS.values(), *_LIMITS.values())),
    "pinned": False,
    "weight": 1,
    "priority": 0,
}
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def adapters_table(body: Body) -> str:
    """The answer to ``GET /v1/adapters``: a line for each name."""
    header = ("NAME", "LIVE", "KIND", "SIZE", "STATE", "VERSIONS", "OTHERS", "RUNNING", "SINCE")
    rows = [_adapter_row(one) for one in listed(body, "data")]
    return aligned(header, rows, left=(0, 2, 4, 6, 8)) if rows else "no adapters are served"


def _adapter_row(body: Body) -> Sequence[str]:
    versions = listed(body, "versions")
    return (
        plain(body.get("name")),
        plain(body.get("version")),
        plain(body.get("kind")),
        size(body.get("bytes")),
        plain(body.get("state")),
        str(len(versions)),
        ", ".join(_others(body)) or NONE,
        plain(body.get("running")),
        moment(body.get("created")),
    )


def _others(body: Body) -> Iterable[str]:
    """What else there is to know of a name in a list: candidates, shares of traffic, a pin."""
    yield from shares(body)
    if waiting := [plain(one.get("version")) for one in listed(body, "versions") if one.get("state") == "candidate"]:
        yield f"candidate {' '.join(waiting)}"
    if body.get("pinned"):
        yield "pinned"


def shares(body: Body) -> Iterable[str]:
    """``canary 4 at 5%``: which versions get a share of the name's requests, or of copies of them."""
    traffic = body.get("traffic")
    if not isinstance(traffic, dict):
        return
    found = [("canary", canary) for canary in listed(traffic, "canaries")]
    shadow = traffic.get("shadow")
    for kind, share in [*found, *([("shadow", shadow)] if isinstance(shadow, dict) else [])]:
        yield f"{kind} {plain(share.get('version'))} at {percent(share.get('weight'))}"


def adapter_text(body: Body) -> str:
    """The answer to ``GET /v1/adapters/{name}``: what it serves, its settings, and a table of its versions."""
    live = body.get("version")
    serves = "no version yet" if live is None else f"version {plain(live)}"
    pairs = [("serves", serves)]
    pairs += [("traffic", share) for share in shares(body)]
    pairs += [("settings", said)] if (said := settings_line(body)) else []
    pairs += [("etag", plain(body["etag"]))] if body.get("etag") else []
    lines = [plain(body.get("name")), *(f"  {name:<9} {value}" for name, value in pairs), ""]
    return "\n".join([*lines, versions_table(listed(body, "versions"))])


def settings_line(body: Body) -> str:
    """The settings of a name that differ from the server's defaults, or that they are the defaults."""
    limits = body.get("limits")
    found = [(label, body.get(field)) for field, label in _SETTINGS.items()]
    found += [(label, limits.get(field)) for field, label in _LIMITS.items()] if isinstance(limits, dict) else []
    if not any(field in body for field in _SETTINGS):
        return ""
    given = [label if value is True else f"{label} {plain(value)}" for label, value in found if value != _USUAL[label]]
    return ", ".join(given) or "the server's defaults"


def versions_table(versions: Sequence[Body]) -> str:
    """A line for each version, and under it why it failed."""
    header = ("VERSION", "STATE", "KIND", "SIZE", "RUNNING", "CREATED", "DIGEST")
    rows = [
        (
            plain(one.get("version")),
            plain(one.get("state")),
            plain(one.get("kind")),
            size(one.get("bytes")),
            plain(one.get("running")),
            moment(one.get("created")),
            plain(one.get("digest"))[:12],
        )
        for one in versions
    ]
    failed = [f"version {plain(one.get('version'))}: {plain(one['reason'])}" for one in versions if one.get("reason")]
    return "\n".join([aligned(header, rows, left=(1, 2, 5, 6)), *failed]) if rows else "no versions are kept"


def events_table(body: Body) -> str:
    """The answer to ``GET /v1/events``: who changed what, and when."""
    header = ("TIME", "ACTOR", "ACTION", "VERSION", "OUTCOME", "DETAIL")
    rows = [
        (
            moment(one.get("time"), seconds=True),
            _actor(one.get("actor")),
            plain(one.get("action")),
            plain(one.get("version")),
            plain(one.get("outcome")),
            _detail(one.get("detail")),
        )
        for one in listed(body, "data")
    ]
    return aligned(header, rows, left=(0, 1, 2, 4, 5)) if rows else "nothing is recorded of it"


def _actor(actor: object) -> str:
    return plain(actor.get("id")) if isinstance(actor, dict) else plain(actor)


def _detail(detail: object) -> str:
    if not isinstance(detail, dict):
        return plain(detail)
    told = {name: value for name, value in detail.items() if value not in (None, "", [], {})}
    return ", ".join(
        f"{plain(name)} ({_detail(value)})" if isinstance(value, dict) else f"{plain(name)} {plain(value)}"
        for name, value in told.items()
    )


def numbers(versions: Sequence[object]) -> str:
    """``version 1``, ``versions 1, 2``."""
    return f"version{'' if len(versions) == 1 else 's'} {', '.join(map(plain, versions))}"


def running_words(body: Body) -> str:
    """What of a name runs, for somebody who is about to remove it."""
    count = body.get("running")
    return f"{counted(count, 'sequence')} of it run" if isinstance(count, int) and count else "nothing of it runs"


def plain(value: object) -> str:
    """A value as text of one line without control characters; a dash for none."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else " " for c in text)


def size(count: object) -> str:
    """Bytes in a unit that keeps it short."""
    if not isinstance(count, int | float):
        return NONE
    scaled, unit = float(count), 0
    while scaled >= 1000 and unit < len(_UNITS) - 1:
        scaled, unit = scaled / 1000, unit + 1
    return f"{scaled:.{1 if unit else 0}f} {_UNITS[unit]}"


def percent(share: object) -> str:
    """A share of one as a percentage."""
    return f"{share * 100:g}%" if isinstance(share, int | float) else NONE


def moment(value: object, *, seconds: bool = False) -> str:
    """A time in Unix seconds, or as ISO text, in local time."""
    try:
        when = datetime.fromisoformat(value) if isinstance(value, str) else datetime.fromtimestamp(float(str(value)))
    except (ValueError, OverflowError, OSError):
        return plain(value)
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")
