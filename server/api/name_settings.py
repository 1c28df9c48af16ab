"""The settings of a name as ``PATCH /v1/adapters/{name}`` takes them and ``GET`` shows them.

A field that is left out stays as it is; null gives it back to the server's default.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any

import msgspec
from pydantic import Field, model_validator

from server.api.wire_fields import Integer, Wire
from server.catalog.versions import NameSettings
from server.limits import Limits

MAX_WEIGHT, MIN_WEIGHT = 1000.0, 0.001
MAX_PRIORITY = 1000
MAX_COUNT = 10**12  # of requests, tokens or versions
_MAX_SHOWN = 64  # characters of a field that nobody knows

Count = Annotated[Integer, Field(ge=0, le=MAX_COUNT)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]


class StrictWire(Wire):
    """A body that refuses what is misspelt, which would look as if it were done, and of what it does not know
    all that does not stand beside a ``version``: clients of older servers send more with one."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        for name in data if isinstance(data, dict) else ():
            if name in cls.model_fields or name in cls.unsupported:
                continue
            near = get_close_matches(name[:_MAX_SHOWN], cls.model_fields, n=1)
            if near or "version" not in data:
                meant = f"did you mean `{near[0]}`?" if near else f"known are {', '.join(cls.model_fields)}"
                raise ValueError(f"`{name[:_MAX_SHOWN]}` is not known here; {meant}")
        return data


class LimitsBody(StrictWire):
    """What all requests to a name may take together; null: as much as the server's default allows, 0: any amount."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    max_concurrency: Count | None = None
    max_queue: Count | None = None


class SettingsBody(StrictWire):
    """Settings of a name. ``retention`` 0: all versions are kept."""

    pinned: bool | None = None
    weight: Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)] | None = None
    priority: Annotated[Integer, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    retention: Count | None = None
    idle_ttl_seconds: Seconds | None = None
    limits: LimitsBody | None = None

    @property
    def given(self) -> list[str]:
        """The settings that the body changes."""
        return [name for name in SettingsBody.model_fields if name in self.model_fields_set]

    def applied(self, settings: NameSettings) -> NameSettings:
        """``settings`` with what the body changes."""
        usual = NameSettings()
        changes = {name: getattr(self, name) for name in self.given}
        changes = {name: getattr(usual, name) if value is None else value for name, value in changes.items()}
        if self.limits is not None:
            limits = {name: getattr(self.limits, name) for name in self.limits.model_fields_set}
            changes["limits"] = msgspec.structs.replace(settings.limits, **limits)
        return msgspec.structs.replace(settings, **changes)


def settings_body(settings: NameSettings) -> dict[str, Any]:
    """``settings`` as they are shown: every field, null where the server's default holds."""
    limits = {name: getattr(settings.limits, name) for name in Limits.__struct_fields__}
    return {**{name: getattr(settings, name) for name in SettingsBody.model_fields}, "limits": limits}
