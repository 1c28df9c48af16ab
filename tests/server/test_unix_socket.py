"""Serving at a Unix socket, with real clients."""

from __future__ import annotations

import shutil
import signal
import socket
import stat
import subprocess
from pathlib import Path

import httpx2
import openai
import pytest

from server.errors import EngineStartError
from server.unix_socket import unix_socket
from tests.server.command import end, starting


def test_clients_are_served_and_the_file_goes(tiny_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "hotswap.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # as by a server that was killed
    arguments = ("--model", str(tiny_base), "--uds", str(path), "--uds-access", "group", "--host", "0.0.0.0")
    with starting(*arguments) as process:
        assert tried_by(process).startswith(f"curl --unix-socket {path} http://localhost/")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        transport = openai.DefaultHttpxClient(transport=httpx2.HTTPTransport(uds=str(path)))
        with openai.OpenAI(base_url="http://localhost/v1", api_key="-", http_client=transport) as client:
            events = list(client.completions.create(model=tiny_base.name, prompt="x", max_tokens=3, stream=True))
            assert events[-1].choices[0].finish_reason is not None
            client.models.list()
        process.send_signal(signal.SIGTERM)
        assert end(process)[0] == 0
    assert not path.exists()


def tried_by(process: subprocess.Popen[str]) -> str:
    """The command with which a ready server can be tried."""
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith("  try")).split(maxsplit=1)[1].strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_what_is_printed_can_be_tried(tiny_base: Path, tmp_path: Path) -> None:
    with starting("--model", str(tiny_base), "--uds", str(tmp_path / "my socket")) as process:
        tried = subprocess.run(["sh", "-c", f"{tried_by(process)} -s"], capture_output=True, check=True)
        assert b'"chat.completion"' in tried.stdout


def test_only_what_nobody_listens_at_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with unix_socket(path, "owner"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(EngineStartError, match="another server listens there"), unix_socket(path, "owner"):
            pass
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"
    with pytest.raises(EngineStartError, match="no socket"), unix_socket(path, "owner"):
        pass
    for wrong in tmp_path / "none" / "s", tmp_path / ("x" * 120):
        with pytest.raises(EngineStartError, match="choose another --uds"), unix_socket(wrong, "owner"):
            pass
