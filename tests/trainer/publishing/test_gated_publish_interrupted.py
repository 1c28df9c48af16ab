"""Gated publishing that is broken off: by a signal to the real command, by a server that goes away."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.live import Live
from tests.trainer.publishing.conftest import ADMIN, INFERENCE
from trainer.commands.publish import publish
from trainer.serving.client import AdminClient
from trainer.serving.upload import upload

NAME = "gated"


class Relay:
    """Passes bytes between a port of its own and ``target``, until it is cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """As if the server had gone."""
        for sock in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def relay(server: Live) -> Iterator[Relay]:
    made = Relay(int(server.url.rpartition(":")[2]))
    yield made
    made.cut()


@pytest.fixture
def many_rows(tmp_path: Path) -> Path:
    """More rows than can be answered before the test goes on."""
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"row {i}", "response": "x"}) + "\n" for i in range(5000)))
    return file


def arguments(url: str, package: Path, rows: Path) -> list[str]:
    options = ["--server", url, "--as", NAME, "--gate", "exact_match>=live", "--gate-data", str(rows)]
    return [str(package), *options, "--max-tokens", "16", "--quiet"]


def states(admin: AdminClient) -> dict[int, str]:
    return {version.version: version.state for version in admin.versions(NAME)}


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_removes_the_candidate(
    server: Live, admin: AdminClient, packages: dict[str, Path], many_rows: Path, number: signal.Signals
) -> None:
    upload(admin, packages["wrong"], NAME)
    command = [sys.executable, "-m", "hotswap", "publish", *arguments(server.url, packages["right"], many_rows)]
    env = {**os.environ, "HOTSWAP_ADMIN_KEY": ADMIN, "HOTSWAP_API_KEY": INFERENCE}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        server.wait(lambda: server.context.admission.active > 0 or process.poll() is not None, "rows to be asked")
        assert states(admin) == {1: "live", 2: "candidate"}
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (out, err) == (
        "", f"hotswap: the candidate {NAME}@2 was removed from {server.url}; what was live goes on\n",
    )  # fmt: skip
    assert states(admin) == {1: "live"}


def test_a_server_that_goes_away(
    server: Live,
    admin: AdminClient,
    relay: Relay,
    packages: dict[str, Path],
    *,
    many_rows: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upload(admin, packages["wrong"], NAME)
    url = f"http://127.0.0.1:{relay.port}"
    keys = ["--admin-key", ADMIN, "--api-key", INFERENCE]
    command = [*arguments(url, packages["right"], many_rows), *keys]

    def cut() -> None:
        server.wait(lambda: server.context.admission.active > 0, "rows to be asked")
        relay.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    assert publish(command) == 1
    cutter.join()
    left, reason = capsys.readouterr().err.splitlines()
    assert left.startswith(f"hotswap: a candidate for {NAME} may be left on {url} (")
    assert f"DELETE /v1/adapters/{NAME}/versions/VERSION" in left
    assert url in reason
    server.wait_idle()
    assert states(admin) == {1: "live", 2: "candidate"}
    again = [*arguments(server.url, packages["right"], many_rows), *keys, "--rows", "4"]
    assert publish(again) == 0, "the next one takes up what was left"
    assert states(admin)[2] == "live"
