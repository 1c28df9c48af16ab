from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.client import Outcome, Target, open_session
from loadtests.fairness import Flood, Phase, _phases, parse
from loadtests.load import Driver
from loadtests.workloads import Call
from tests.loadtests.tiny_server import tiny_server

ADAPTERS = ["--adapter", "quiet=a", "--adapter", "flood=b"]


@pytest.mark.parametrize("argv", [[], ADAPTERS[:2], ["--adapter", "x=a", *ADAPTERS[2:]]])
def test_both_adapters_are_wanted(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(argv)
    assert "quiet=DIR" in capsys.readouterr().err


def test_the_ratio_is_of_mean_latencies() -> None:
    outcomes = [Outcome("quiet", 0.0, end, [0.5, end], completion_tokens=3) for end in (1.0, 2.0)]
    row = Phase("fair", "beside", outcomes, flood_tokens_a_second=10.0, ratio=1.5).row()
    assert row == ["fair", "beside", "2", "1500 / 1500 / 2000", "500", "500.0", "1.50", "10"]


async def test_a_quiet_one_is_measured_alone_and_beside_the_flood(tmp_path: Path) -> None:
    args = parse([*ADAPTERS, "--streams", "3", "--seconds", "0.2", "--out", str(tmp_path)])
    async with tiny_server() as (url, seen):
        target = Target(url, max_tokens=2)
        async with open_session(target) as session:
            alone, beside = await _phases(args, "fair", Driver(session, target))
    assert set(seen.per_model) == {"quiet", "flood"}
    assert alone.outcomes
    assert beside.ratio == pytest.approx(beside.mean / alone.mean)
    assert beside.errors == []
    assert beside.flood_tokens_a_second > 0


async def test_a_flood_counts_its_failures() -> None:
    async with tiny_server() as (url, _):
        target = Target(url, max_tokens=2)
        async with open_session(target) as session:
            flood = Flood(session, target, (Call(i, "busy" if i % 2 else "good", "x") for i in range(8)))
            await flood.stream()
    assert [outcome.error for outcome in flood.failed] == ["http_429"] * 4
    assert flood.tokens == 4 * 4
    assert flood.running.is_set()
