"""``hotswap top`` over a real server with traffic."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hotswap.errors import HotswapError
from hotswap.top.cli import main
from tests.server.live import Live, live_server, wait_until


@pytest.fixture(scope="module")
def server(
    tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    adapters = [("sql", str(tiny_adapters["lora-r8"]))]
    with live_server(tiny_base, tmp_path_factory.mktemp("data"), adapters=adapters) as live:
        yield live


@pytest.fixture
def traffic(server: Live) -> Iterator[None]:
    """Requests to the base and to the adapter, again and again, and errors."""
    over, made = threading.Event(), threading.Event()

    def send() -> None:
        with server.http() as http:
            while not over.is_set():
                for model in ("sql", server.context.base_name):
                    body = {"model": model, "prompt": "a", "max_tokens": 5, "ignore_eos": True}
                    assert http.post("/v1/completions", json=body).status_code == 200
                assert http.post("/v1/completions", json={"model": "sql", "prompt": "a" * 5000}).status_code == 400
                made.set()

    thread = threading.Thread(target=send)
    thread.start()
    assert made.wait(60)
    yield
    over.set()
    thread.join()


def test_figures_for_programs(server: Live, traffic: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", server.url, "--once", "--window", "0.5", "--json", "--sort", "name"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["server"]["model"] == server.context.base_name
    assert 0.5 <= found["server"]["window"] < 60
    assert found["server"]["tiers"]["device"][0] == 1
    base, adapter = found["rows"]
    assert (base["adapter"], adapter["adapter"], adapter["version"]) == ("", "sql", "1")
    for row in (base, adapter):
        assert row["requests"] > 0
        assert row["tokens"] == pytest.approx(5 * row["requests"])
        for times in ("ttft", "itl", "e2e"):
            assert 0 < row[times][0] <= row[times][1] <= row[times][2]
    assert adapter["errors"] > 0
    assert base["errors"] == 0


def test_a_table(
    server: Live, traffic: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["--url", server.url + "/v1", "--once", "--window", "0.3"]) == 0
    wide = capsys.readouterr().out
    assert "TTFT p50 / p95 / p99" in wide
    assert "sql" in wide
    assert f"{server.context.base_name} (base)" in wide
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--url", server.url, "--once", "--window", "0.3", "--rows", "1"]) == 0
    narrow = capsys.readouterr().out
    assert "TTFT p50 / p95" in narrow
    assert "END TO END" not in narrow
    assert "and 1 more" in narrow
    table = [line for line in narrow.splitlines() if "ADAPTER" in line]
    assert len(table[0].rstrip()) <= 80


def test_live_in_a_terminal_until_it_is_interrupted(server: Live, traffic: None) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hotswap", "top", "--url", server.url, "--interval", "0.1"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(ours, 4096):
                shown.extend(chunk)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_until(lambda: shown.count(b"ADAPTER") > 2 and b"sql" in shown, "some tables")
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        reader.join()
        os.close(ours)


def test_what_is_no_server_is_one_line(server: Live) -> None:
    with pytest.raises(HotswapError, match="cannot be reached"):
        main(["--url", "http://127.0.0.1:9", "--once"])
    with pytest.raises(HotswapError, match="does not answer with metrics"):
        main(["--url", f"{server.url}/nowhere", "--once"])
    with pytest.raises(HotswapError, match="no terminal; give --once"):
        main(["--url", server.url])
    with pytest.raises(HotswapError, match="goes with --once"):
        main(["--url", server.url, "--json"])


@pytest.mark.parametrize("argv", [["--window", "0"], ["--rows", "0"], ["--interval", "x"], ["--sort", "luck"]])
def test_wrong_usage(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 2
