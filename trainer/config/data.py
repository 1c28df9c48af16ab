"""The keys under ``data``: where rows come from and how they become text."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which columns of the data hold what. With ``messages`` the other three are not read.

    ``chosen``, ``rejected``, ``completion`` and ``label`` are for preference training alone.
    """

    prompt: str = "prompt"
    response: str = "response"
    system: str | None = None
    messages: str | None = None
    chosen: str = "chosen"
    rejected: str = "rejected"
    completion: str = "completion"
    label: str = "label"


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The training data.

    ``validation`` is a share of the rows to hold back (0.1), a count of rows (50), or a file; 0 for none.
    ``template`` is ``chat`` (the base's chat template) or ``none`` (prompt and response joined as they are).
    ``too_long`` says what becomes of rows above ``max_length`` tokens: ``drop`` them, or cut the start or the end off.
    """

    path: str
    validation: Annotated[float, Meta(ge=0)] | str = 0.1
    format: Literal["auto", "jsonl", "csv"] = "auto"
    columns: Columns = msgspec.field(default_factory=Columns)
    template: Literal["chat", "none"] = "chat"
    system_prompt: str | None = None
    max_length: Annotated[int, Meta(ge=8)] = 1024
    too_long: Literal["drop", "cut_start", "cut_end"] = "drop"
