"""The scripts of examples/clients run as they are, each in the environment that its client needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.factory import make_base
from tests.server.live import Live, live_server

SCRIPTS = Path(__file__).parents[2] / "examples" / "clients"
OWN = ("with_openai.py", "with_anthropic.py")
PYTHON = "HOTSWAP_CLIENTS_PYTHON"  # of an environment with examples/clients/requirements.txt


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose base says nothing of sense, but what it is held to."""
    base = make_base(tmp_path_factory.mktemp("clients") / "tiny", max_position_embeddings=2048)
    with live_server(base, tmp_path_factory.mktemp("data")) as live:
        yield live
        live.wait_idle()


def run(python: str, script: str, server: Live) -> list[str]:
    """What ``script`` tells, a line for each of its examples."""
    environment = {**os.environ, "HOTSWAP_URL": server.url, "PYTHONPATH": "", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [python, str(SCRIPTS / script)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", OWN)
def test_scripts_of_our_own_clients(server: Live, script: str) -> None:
    assert len(run(sys.executable, script, server)) >= 4


@pytest.mark.clients
@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("with_*.py")))
def test_scripts_of_all_clients(server: Live, script: str) -> None:
    assert len(run(os.environ[PYTHON], script, server)) >= 2
