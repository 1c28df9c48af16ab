"""Starts the processes of ``hotswap train --nproc N`` on this machine, and ends them together.

Every process is ``python -m hotswap train`` with the same arguments and the environment that torchrun would give it.
The first one has the terminal. A process owes its launcher to end when that is gone, and to leave its error. Knows
nothing of torch.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

ERROR_FILE = "HOTSWAP_ERROR_FILE"  # where a process leaves its one line instead of printing it
LAUNCHER_PIPE = "HOTSWAP_LAUNCHER_PIPE"  # a descriptor that is at its end once the launcher is gone
PEER_LOST = "another process of this run ended"
_GRACE_SECONDS = 3.0  # for the others to end by themselves once one has failed
_POLL_SECONDS = 0.05


def process_count() -> int:
    """How many processes train together, as torchrun says it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ.get("RANK", "0")) if process_count() > 1 else 0


def launch(argv: Sequence[str], nproc: int) -> int:
    """Run ``hotswap train`` with ``argv`` in ``nproc`` processes; returns their exit code.

    The first error ends all, and is the one that is printed. SIGINT and SIGTERM are handed on.
    """
    with tempfile.TemporaryDirectory(prefix="hotswap-") as folder, _lifeline() as pipe:
        processes = [_start(argv, rank, nproc, Path(folder), pipe) for rank in range(nproc)]
        try:
            with _handing_on(processes):
                failed = _wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return _report(processes, failed, Path(folder)) if failed else processes[0].returncode


def _start(argv: Sequence[str], rank: int, nproc: int, folder: Path, pipe: int) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_port(folder)),
        ERROR_FILE: str(folder / f"{rank}.error"),
        LAUNCHER_PIPE: str(pipe),
    }
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    quiet = None if rank == 0 else (folder / f"{rank}.out").open("wb")
    command = [sys.executable, "-m", "hotswap", "train", *argv]
    try:  # a group of its own: Ctrl-C reaches it through us, once
        return subprocess.Popen(
            command,
            env=environment,
            stdout=quiet,
            stderr=quiet,
            pass_fds=(pipe,),
            process_group=0,
            stdin=subprocess.DEVNULL,
        )
    finally:
        if quiet:
            quiet.close()


def _port(folder: Path) -> int:
    """A port that is free now, the same for all processes of this run."""
    file = folder / "port"
    if not file.exists():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            file.write_text(str(free.getsockname()[1]))
    return int(file.read_text())


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Wait for the end of all, or a little after the first failure; returns who failed, in order."""
    failed: list[int] = []
    deadline = float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        for rank, process in enumerate(processes):
            if process.poll() and not _is_stop(process.returncode) and rank not in failed:
                failed.append(rank)
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
        time.sleep(_POLL_SECONDS)
    late = [rank for rank, process in enumerate(processes) if process.poll() and rank not in failed]
    return failed + [rank for rank in late if not _is_stop(processes[rank].returncode)]


def _is_stop(code: int) -> bool:
    """Whether ``code`` is that of a run that saved itself after a signal."""
    return code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


def _report(processes: Sequence[subprocess.Popen[bytes]], failed: Sequence[int], folder: Path) -> int:
    """Print why the first process failed, but for those that only lost another; returns the exit code."""
    lines = {rank: _read(folder / f"{rank}.error") for rank in failed}
    first = next((rank for rank in failed if PEER_LOST not in lines[rank]), failed[0])
    code = processes[first].returncode
    if lines[first]:
        sys.stderr.write(f"hotswap: {lines[first]}\n")
    elif code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
        sys.stderr.write(f"hotswap: process {first} of {len(processes)} was ended by {name}{hint}\n")
    else:
        sys.stderr.write(_read(folder / f"{first}.out") + "\n")
    return code if code > 0 else 1


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""


@contextmanager
def _handing_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """SIGINT and SIGTERM go to all ``processes`` instead of ending this one."""

    def hand_on(signum: int, _frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(signum)

    before = {signum: signal.signal(signum, hand_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def _lifeline() -> Iterator[int]:
    """The reading end of a pipe that nobody writes to: it is at its end when this process is gone."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def watch_launcher() -> None:
    """End this process when the launcher that started it, if any, is gone: nobody would hear of it any more."""
    pipe = os.environ.get(LAUNCHER_PIPE)
    if pipe:
        threading.Thread(target=_wait_for_end, args=(int(pipe),), daemon=True).start()


def leave_error(line: str) -> bool:
    """Leave ``line`` for the launcher, which prints one for all; False when there is none."""
    path = os.environ.get(ERROR_FILE)
    if path is None:
        return False
    Path(path).write_text(line, encoding="utf-8")
    return True


def _wait_for_end(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)
