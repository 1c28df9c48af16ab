"""Answers of a server as text: what is shown of them, and that nothing in them spoils a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.commands.adapters_tables import (
    adapter_text,
    adapters_table,
    events_table,
    moment,
    percent,
    plain,
    shares,
    size,
)

VERSION: dict[str, Any] = {
    "version": 1,
    "state": "live",
    "kind": "lora",
    "bytes": 1_234_000,
    "running": 2,
    "created": 0,
}
NAME = {
    **VERSION,
    "name": "a",
    "object": "adapter",
    "versions": [VERSION, {**VERSION, "version": 2, "state": "canary"}],
}
TRAFFIC = {
    "live": {"version": 1, "weight": 0.85},
    "canaries": [{"version": 2, "weight": 0.05}, {"version": 3, "weight": 0.1}],
    "shadow": {"version": 4, "weight": 1},
}


def test_a_list_shows_shares_candidates_and_pins() -> None:
    waits = {**VERSION, "version": 5, "state": "candidate"}
    body = {**NAME, "pinned": True, "traffic": TRAFFIC, "versions": [VERSION, waits]}
    row = adapters_table({"data": [body]}).splitlines()[1]
    assert "canary 2 at 5%, canary 3 at 10%, shadow 4 at 100%, candidate 5, pinned" in row
    assert "1.2 MB" in row
    assert adapters_table({"data": []}) == "no adapters are served"
    assert list(shares({**NAME, "traffic": None})) == []


def test_a_name_is_shown_with_what_failed() -> None:
    failed = {**VERSION, "version": 2, "state": "failed", "reason": "its files\x1b[31m are gone"}
    text = adapter_text({**NAME, "etag": '"e"', "traffic": TRAFFIC, "versions": [VERSION, failed]})
    assert "  traffic   canary 3 at 10%" in text
    assert '  etag      "e"' in text
    assert text.endswith("version 2: its files [31m are gone")
    assert "no version yet" in adapter_text({"name": "a", "version": None, "versions": []})


def test_events_say_who_did_what_when() -> None:
    event = {"time": 0.0, "actor": "key_1", "action": "activate", "version": 2, "outcome": "done", "detail": {}}
    refused = {**event, "outcome": "refused", "version": None, "detail": {"code": "x", "a": None, "set": {"weight": 2}}}
    lines = events_table({"data": [event, refused]}).splitlines()
    assert [line.split()[2:5] for line in lines[1:]] == [["key_1", "activate", "2"], ["key_1", "activate", "-"]]
    assert lines[2].endswith("refused  code x, set (weight 2)")
    assert events_table({"data": []}) == "nothing is recorded of it"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (plain(None), "-"),
        (plain(True), "yes"),
        (plain(2.0), "2"),
        (plain("a\nb\x07"), "a b "),
        (size(999), "999 bytes"),
        (size(1_000_000), "1.0 MB"),
        (size(None), "-"),
        (percent(0.05), "5%"),
        (percent(None), "-"),
        (moment("soon"), "soon"),
        (moment(None), "-"),
    ],
)
def test_values(shown: str, text: str) -> None:
    assert shown == text
