"""The trainer as a process of its own, watched: what it may take, how it ends, and what it said last."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from server.fine_tuning.job import JobFailedError
from server.fine_tuning.settings import RunLimits, environment

_TAIL_BYTES = 64 * 1024
_MAX_SAID = 1000  # characters of what the trainer says of an error
_PREFIX = "hotswap: "
TRAINER = (sys.executable, "-m", "hotswap", "train")
LOG_FILE, LOCK_FILE = "trainer.log", "trainer.lock"


class TrainerProcess:
    """The trainer in ``folder``, at the lowest priority."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, limits: RunLimits) -> None:
        self._process = process
        self._ended = asyncio.ensure_future(process.wait())
        self._folder = folder
        self._limits = limits

    @classmethod
    async def start(
        cls, command: Sequence[str], folder: Path, limits: RunLimits, device: str = "cpu"
    ) -> TrainerProcess:
        """Start ``command``; what it prints goes to a file in ``folder``. Raises JobFailedError."""
        guard = ["--lock", str(folder / LOCK_FILE), "--parent", str(os.getpid()), "--cores", str(limits.cores)]
        if device == "cpu" and limits.memory_bytes:  # what a device's driver maps says nothing of memory
            guard += ["--data-bytes", str(limits.memory_bytes)]
        with (folder / LOG_FILE).open("ab") as log:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "server.fine_tuning.launcher",
                    *guard,
                    "--",
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env=environment(limits.cores),
                    start_new_session=True,  # a terminal's Ctrl-C is the server's: it stops this in good order
                )
            except OSError as error:
                raise JobFailedError(
                    "trainer_not_started", f"the trainer cannot be started: {error.strerror}"
                ) from error
        return cls(process, folder, limits)

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    async def wait(self, seconds: float) -> bool:
        """Whether it has ended, at the latest after ``seconds``."""
        await asyncio.wait({self._ended}, timeout=seconds)
        return self._ended.done()

    def ask_to_stop(self) -> None:
        """It writes a checkpoint after its step, and ends."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """End it now."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await asyncio.wait({self._ended})

    async def stop(self, seconds: float) -> None:
        """As ``ask_to_stop``, and as ``kill`` when that takes longer than ``seconds``."""
        if self.code is None:
            self.ask_to_stop()
            if not await self.wait(seconds):
                await self.kill()

    def check_limits(self) -> None:
        """Raise JobFailedError when it takes more than it may. Blocks on the disk."""
        limit, used = self._limits.memory_bytes, _resident_bytes(self._process.pid)
        if limit and used > limit:
            raise JobFailedError("out_of_memory", _out_of_memory(limit))
        limit, used = self._limits.disk_bytes, folder_bytes(self._folder)
        if limit and used > limit:
            raise JobFailedError(
                "out_of_disk",
                f"the job has written {used / 1e9:.2f} GB, more than the {limit / 1e9:.2f} GB it may "
                "(--fine-tuning-disk-gb)",
            )

    def failure(self) -> JobFailedError:
        """Why it ended with an error, in its own words."""
        said = last_words(self._folder / LOG_FILE)
        if self.code == -signal.SIGKILL:
            return JobFailedError("trainer_killed", "the trainer was killed; the machine may be out of memory")
        if "out of memory" in said.lower() or "can't allocate memory" in said or "MemoryError" in said:
            return JobFailedError("out_of_memory", _out_of_memory(self._limits.memory_bytes, said))
        return JobFailedError("training_failed", said or f"the trainer ended with code {self.code}")


def _out_of_memory(limit: int, said: str = "") -> str:
    bound = f"the {limit / 1e9:.1f} GB it may take (--fine-tuning-memory-gb)" if limit else "what the machine has"
    return f"training needs more memory than {bound}; use a smaller batch_size, or shorter rows" + (
        f" ({said})" if said else ""
    )


def last_words(log: Path) -> str:
    """The error that the trainer told, without paths of the machine; else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    told = [i for i, line in enumerate(lines) if line.startswith(_PREFIX)]
    said = " ".join(lines[told[-1] :]).removeprefix(_PREFIX) if told else (lines[-1] if lines else "")
    return said.replace(f"{log.parent}/", "")[:_MAX_SAID]


def _resident_bytes(pid: int) -> int:
    """What of the memory of the machine a process has; 0 where nobody says so."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def folder_bytes(folder: Path) -> int:
    """What the files below ``folder`` weigh; those that go meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total
