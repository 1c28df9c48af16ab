"""The background server: stopped whenever its block ends, however early an interruption comes."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from trainer.errors import ServerStartError
from trainer.serving.local_server import start_server, wait_until_ready


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_it_is_started_leaves_no_server(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def interrupted(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        signal.raise_signal(number)  # before anybody holds the process that is made
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), start_server(["--model", "none"], tmp_path / "log"):
            pytest.fail("it was interrupted before")
    finally:
        signal.signal(signal.SIGTERM, before)
    (process,) = started
    assert process.returncode is not None
    assert not psutil.pid_exists(process.pid)


async def test_a_server_that_cannot_start_is_told_in_its_own_last_words(tmp_path: Path) -> None:
    with (
        start_server(["--model", str(tmp_path / "no-such-base"), "--quantize", "none"], tmp_path / "log") as server,
        pytest.raises(ServerStartError, match=r"the server ended at its start: hotswap: .*no-such-base"),
    ):
        await wait_until_ready(server)
    assert server.exit_code == 1
