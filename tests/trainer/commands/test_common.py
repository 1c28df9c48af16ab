"""What the trainer's commands share, in processes of their own: signals end them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_WORK = """
import asyncio, os, signal, sys, time
from trainer.commands.common import end_on_sigterm

class Careless:
    def __del__(self):  # an exception in here goes nowhere
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

async def work():
    try:
        Careless()
        await asyncio.sleep(60)
    finally:
        print("stopped", flush=True)

signal.signal(signal.SIGINT, getattr(signal, sys.argv[1]))
end_on_sigterm()
try:
    asyncio.run(work())
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_sigterm_where_an_exception_would_be_lost_ends_the_work() -> None:
    command = [sys.executable, "-W", "ignore", "-c", _WORK, "default_int_handler"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (130, "stopped\n"), done.stderr


@pytest.mark.parametrize("interrupts", ["default_int_handler", "SIG_IGN"])
def test_sigterm_ends_what_was_started_in_the_background(interrupts: str) -> None:
    script = _WORK.replace("Careless()", 'print("begun", flush=True)')
    process = subprocess.Popen([sys.executable, "-c", script, interrupts], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopped\n"
    assert process.wait(50) == 130
