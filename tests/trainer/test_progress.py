"""What is shown where no terminal is: lines, and not too many."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trainer import progress as module
from trainer.progress import LineDisplay, StepMetrics, Throttle, show_bar, show_upload


def step(number: int) -> StepMetrics:
    return StepMetrics(number, 0.5, 1.0, 1e-4, 1234.5, 3661.0, 1024.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set. In that module alone: loops of servers run in other threads, and sleep by ``time``."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_lines_are_seconds_apart(clock: list[float]) -> None:
    throttle, eager = Throttle(10), Throttle(10, at_once=True)
    due = []
    for clock[0] in (100.0, 109.0, 110.0, 119.0, 121.0, 130.0):
        due.append((throttle.is_due(), eager.is_due()))
    assert due == [(False, True), (False, False), (True, True), (False, False), (True, True), (False, False)]


def test_the_first_and_the_last_step_have_a_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    display = LineDisplay()
    display.start(5, 0)
    for number in range(1, 6):
        display.update(step(number))
    display.message("done")
    assert capsys.readouterr().err.splitlines() == [
        f"step {number}/5  loss 0.5000  epoch 1.00  lr 1.00e-04  1,234 tokens/s  memory 1,024 MB  eta 1:01:01"
        for number in (1, 5)
    ] + ["done"]


def test_an_evaluation_has_a_line_every_ten_seconds_and_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with show_bar("lora") as progress:
        for clock[0], done in ((105.0, 1), (111.0, 2), (112.0, 3), (113.0, 4)):
            progress(done, 4)
    assert capsys.readouterr().err == "lora: 2 of 4\nlora: 4 of 4\n"


def test_an_upload_says_nothing_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_upload(1, 2)
    assert capsys.readouterr().err == ""


def test_an_upload_has_a_bar_in_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for sent in (0, 10_000_000, 20_000_000):
        show_upload(sent, 20_000_000)
    lines = capsys.readouterr().err.split("\r")[1:]
    assert [line.count("\u2501") for line in lines] == [0, 15, 30]
    assert [line.endswith("\n") for line in lines] == [False, False, True]
    assert " 10.0 of 20.0 MB" in lines[1]
