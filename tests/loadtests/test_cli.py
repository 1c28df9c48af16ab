from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.loadtests.tiny_server import tiny_server

ROOT = Path(__file__).resolve().parents[2]


async def loadtest(*args: str) -> tuple[int | None, str, str]:
    """Run the real command."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadtests", *args, stdout=-1, stderr=-1, cwd=ROOT
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_whole_run_reports_every_load(tmp_path: Path) -> None:
    async with tiny_server() as (url, seen):
        code, out, err = await loadtest(
            "--url", url, "--concurrency", "1,4", "--rate", "200", "--requests", "12", "--max-tokens", "3",
            "--warmup", "2", "--adapters", "zipf", "--api-key", "sk-secret", "--out", str(tmp_path),
        )  # fmt: skip
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [run["load"] for run in report["runs"]] == [
        "closed, concurrency 1",
        "closed, concurrency 4",
        "open, 200 a second",
    ]
    assert [(run["ok"], run["output_tokens"]) for run in report["runs"]] == [(12, 72)] * 3
    assert len(seen.bodies) == 2 + 3 * 12
    assert len({body["prompt"] for body in seen.bodies}) == len(seen.bodies)  # no run helps the next by a cache
    assert (tmp_path / "report.txt").read_text() in out
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "sk-secret" not in "".join(path.read_text() for path in tmp_path.glob("report.*"))


async def test_failed_requests_are_reported_and_exit_1(tmp_path: Path) -> None:
    async with tiny_server() as (url, _):
        code, out, err = await loadtest(
            "--url", url, "--models", "good,missing", "--requests", "4", "--warmup", "0", "--out", str(tmp_path)
        )
    assert code == 1
    assert "2 x http_404" in err
    assert "missing" in out
    assert json.loads((tmp_path / "report.json").read_text())["runs"][0]["errors"] == {"http_404": 2}


async def test_no_server_is_one_line(unused_tcp_port: int, tmp_path: Path) -> None:
    code, _, err = await loadtest("--url", f"http://127.0.0.1:{unused_tcp_port}", "--out", str(tmp_path / "out"))
    assert code == 1
    assert err.count("\n") == 1
    assert "does not answer" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--concurrency", "1,0"),
        ("--rate", "nan"),
        ("--requests", "2.5"),
        ("--adapters", "some"),
        ("--fields", "{"),
        ("--fields", '{"l0": 1}'),
    ],
)
async def test_a_bad_flag_exits_2_and_names_it(flag: str, value: str) -> None:
    code, _, err = await loadtest(flag, value)
    assert code == 2
    assert f"argument {flag}" in err


def test_it_imports_nothing_of_ours() -> None:
    ours = ("adapters", "bases", "benchmarks", "hotswap", "server", "trainer", "torch", "transformers", "peft")
    for path in (ROOT / "loadtests").glob("*.py"):
        lines = path.read_text().splitlines()
        assert [
            line
            for line in lines
            if line.lstrip().startswith(tuple(f"{w} {o}" for w in ("import", "from") for o in ours))
        ] == []
