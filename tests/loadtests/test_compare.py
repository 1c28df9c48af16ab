"""Two load tests beside each other: what differs is told, what is noise is not, and all of it survives the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from loadtests.client import Outcome
from loadtests.compare import Comparison, compare, main
from loadtests.samples import read_samples, write_samples
from tests.loadtests.test_cli import loadtest
from tests.loadtests.tiny_server import tiny_server

LOAD = "closed, concurrency 4"


def outcomes(seed: int, *, first: float = 0.1, gap: float = 0.01, count: int = 60) -> list[Outcome]:
    """Requests of four streams, twenty tokens each, with a fifth of noise."""
    rng = np.random.default_rng(seed)
    made, free = [], [5.0] * 4
    for i in range(count):
        stream = i % 4
        waits = np.concatenate([[first], np.full(19, gap)]) * rng.uniform(0.8, 1.2, 20)
        stamps = free[stream] + np.cumsum(waits)
        made.append(Outcome("m", free[stream], float(stamps[-1]), stamps.tolist(), 3, 20))
        free[stream] = float(stamps[-1])
    return made


def figures(before: list[Outcome], after: list[Outcome]) -> dict[str, Comparison]:
    return {one.figure: one for one in compare({LOAD: before}, {LOAD: after})}


def test_noise_is_no_difference() -> None:
    found = figures(outcomes(1), outcomes(2))
    assert found.keys() >= {"tokens a second", "first token p50", "between tokens p99", "end to end p95"}
    for one in found.values():
        assert one.low <= one.ratio <= one.high
    assert found["tokens a second"].verdict == "no difference shown"
    assert found["first token p50"].verdict == "no difference shown"


def test_a_difference_is_told_with_its_size() -> None:
    found = figures(outcomes(1), outcomes(2, first=0.05, gap=0.02))
    first, between, rate = (found[name] for name in ("first token p50", "between tokens p50", "tokens a second"))
    assert first.verdict == "better"
    assert first.ratio == pytest.approx(0.5, rel=0.1)
    assert between.verdict == rate.verdict == "worse"
    assert between.ratio == pytest.approx(2, rel=0.1)
    assert rate.ratio < 1
    assert rate.more_is_better


@pytest.mark.slow
def test_an_interval_holds_the_truth_about_95_times_in_100() -> None:
    held = 0
    for seed in range(40):
        first = figures(outcomes(seed, count=40), outcomes(seed + 100, count=40))["first token p50"]
        held += first.low <= 1 <= first.high
    assert held >= 33  # fewer are one chance in a thousand


def test_what_cannot_be_compared_is_left_out() -> None:
    few, failed = outcomes(1, count=4), [Outcome("m", 0.0, 1.0, error="http_500")] * 20
    assert compare({LOAD: few}, {LOAD: outcomes(2)}) == []
    assert compare({LOAD: failed}, {LOAD: outcomes(2)}) == []
    assert compare({"open": outcomes(1)}, {LOAD: outcomes(2)}) == []


def test_samples_survive_their_file(tmp_path: Path) -> None:
    made = outcomes(1, count=5)
    write_samples(tmp_path, [(LOAD, made), ("open", [Outcome("m", 2.0, 3.0, error="timeout", detail="x")])])
    found = read_samples(tmp_path)
    assert list(found) == [LOAD, "open"]
    for one, other in zip(made, found[LOAD], strict=True):
        assert np.diff(one.stamps) == pytest.approx(np.diff(other.stamps), abs=2e-6)
        assert (other.model, other.prompt_tokens, other.completion_tokens) == ("m", 3, 20)
    assert found["open"][0].error == "timeout"


async def test_runs_of_the_command_are_compared_on_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [tmp_path / "before", tmp_path / "after"]
    async with tiny_server() as (url, _):
        for run in runs:
            code, _, err = await loadtest(
                "--url", url, "--concurrency", "2", "--requests", "12", "--warmup", "0", "--out", str(run)
            )
            assert (code, err) == (0, "")
    page = (runs[0] / "report.html").read_text()
    assert page.count("<svg") == 1
    assert "closed, concurrency 2" in page
    assert main([*map(str, runs), "--html", str(tmp_path / "c.html"), "--json", str(tmp_path / "c.json")]) == 0
    assert "tokens a second" in capsys.readouterr().out
    rows = json.loads((tmp_path / "c.json").read_text())
    assert {row["verdict"] for row in rows} <= {"better", "worse", "no difference shown"}
    compared = (tmp_path / "c.html").read_text()
    assert compared.count("<svg") == 1
    for written in (page, compared):
        assert "<script" not in written
        assert "src=" not in written, "it needs nothing else"


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), str(tmp_path)]) == 1
    (tmp_path / "requests.jsonl.gz").write_bytes(b"no gzip")
    assert main([str(tmp_path), str(tmp_path)]) == 1
    write_samples(tmp_path, [(LOAD, outcomes(1, count=2))])
    assert main([str(tmp_path), str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("loadtests.compare: ") == 3


def test_a_gate(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, made in ((before, outcomes(1)), (after, outcomes(2, gap=0.03))):
        folder.mkdir()
        write_samples(folder, [(LOAD, made)])
    assert main([str(before), str(after), "--fail-if-worse"]) == 1
    assert main([str(before), str(before), "--fail-if-worse"]) == 0
