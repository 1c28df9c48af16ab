"""Tools called over HTTP: which answers are asked for, what is scored, and a server that is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tool_calls import SILENT, Call, Question, ask_all, main, questions, scores, snips_rows, split, table
from tests.factory import make_base
from tests.server.live import live_server

CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "The weather.", "parameters": CITY}
CALLED = {"name": "weather", "arguments": {"city": "Oslo"}}


def conversation(number: int, *, tools: bool = True) -> dict[str, Any]:
    turns = [
        ("human", f"Hi {number}"),
        ("gpt", "Hello."),
        ("human", "Rain in Oslo?"),
        ("function_call", json.dumps(CALLED)),
        ("observation", '{"rain": true}'),
        ("gpt", "Yes."),
    ]
    return {
        "conversations": [{"from": who, "value": said} for who, said in turns],
        "tools": json.dumps([WEATHER]) if tools else "[]",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [conversation(i, tools=i % 4 != 0) for i in range(16)]
    (tmp_path / "glaive_toolcall_en_demo.json").write_text(json.dumps(rows))
    return tmp_path


def test_every_answer_to_a_user_is_asked_for(folder: Path) -> None:
    train, held = split(folder)
    assert (len(train), len(held)) == (9, 3)
    assert split(folder) == (train, held)
    text, call = questions(held[:1])
    assert ([message["role"] for message in text.messages], text.wanted) == (["user"], None)
    assert [message["role"] for message in call.messages] == ["user", "assistant", "user"]
    assert call.wanted == Call("weather", '{"city": "Oslo"}')
    assert call.tools == [{"type": "function", "function": WEATHER}]


def test_requests_of_snips_are_calls(tmp_path: Path) -> None:
    played = [{"data": [{"text": "play "}, {"text": "Halo", "entity": "track"}]}]
    rated = [{"data": [{"text": "five points", "entity": "rating_value"}]}]
    for intent, items in {"PlayMusic": played * 9, "RateBook": rated, "GetWeather": played}.items():
        (tmp_path / intent).mkdir()
        (tmp_path / intent / f"train_{intent}_full.json").write_text(json.dumps({intent: items}))
    rows = snips_rows(tmp_path)
    assert len(rows) == 10
    assert snips_rows(tmp_path) == rows
    names = [[tool["name"] for tool in json.loads(row["tools"])] for row in rows]
    assert {1, 2} == {len(shown) for shown in names}
    for row, shown in zip(rows, names, strict=True):
        said, called = row["messages"]
        call = json.loads(called["value"])
        assert call["name"] in shown
        played_it = {"name": "play_music", "arguments": {"track": "Halo"}}
        assert call == (
            played_it
            if said["value"] == "Play Halo"
            else {"name": "rate_book", "arguments": {"rating_value": "five points"}}
        )


def test_scores_count_right_names_objects_and_equal_calls() -> None:
    right, other = Call("weather", '{"city":"Oslo"}'), Call("weather", '{"city": "Rome"}')
    cut, wrong = Call("weather", '{"city'), Call("time", "{}")
    wanted = Question((), (), Call("weather", '{"city": "Oslo"}'))
    answers = [[right], [other], [cut], [wrong], [], [right, wrong]]
    asked = [wanted] * 6 + [Question((), (), None)] * 2
    found = scores(asked, [*answers, [], [right]])
    assert {name: value for name, (value, _, _) in found.items()} == {
        "name right": 4 / 6,
        "arguments parse": 4 / 6,
        "call equal": 1 / 6,
        SILENT: 1 / 2,
    }
    assert "| LoRA | auto | 0.667 (" in table([{"model": "LoRA", "choice": "auto", "scores": found}])


def test_a_server_is_asked(folder: Path, tmp_path: Path) -> None:
    asked = [question for question in questions(split(folder)[1]) if question.wanted][:1]
    base = make_base(tmp_path / "base", max_position_embeddings=1024)
    with live_server(base, tmp_path / "data") as server, server.http() as http:
        model = http.get("/v1/models").json()["data"][0]["id"]
        required = scores(asked, ask_all(http, model, "required", asked))
        assert required["name right"][0] == required["arguments parse"][0] == 1.0
        server.wait_idle()


@pytest.mark.slow
def test_the_whole_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(tmp_path / "base", max_position_embeddings=1024)
    assert main(["--data", str(folder), "--base", str(base), "--out", str(tmp_path / "out"), "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert "9 conversations learned, 3 held back: 3 calls, 3 texts" in out
    assert "| LoRA | required | 1.000 (1.000 to 1.000) | 1.000" in out
