"""A Unix socket to serve on: who may connect, and what an earlier server left in its place."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.errors import EngineStartError

MODES = {"owner": 0o600, "group": 0o660, "all": 0o666}
_PROBE_SECONDS = 1.0


@contextmanager
def unix_socket(path: Path, access: str) -> Iterator[socket.socket]:
    """A socket that listens at ``path``, to which ``access`` may connect; its file is gone after the block.

    Raises EngineStartError where there is another server's, or something else, or it cannot be made.
    """
    try:
        sock, made = _bound(path, MODES[access])
    except OSError as error:
        raise EngineStartError(f"cannot listen at {path}: {error.strerror or error}; choose another --uds") from error
    try:
        with sock:
            yield sock
    finally:
        with suppress(OSError):  # another server may have taken its place
            if _identity(path) == made:
                path.unlink()


def _bound(path: Path, mode: int) -> tuple[socket.socket, tuple[int, int]]:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of two servers that start at once one finds the other's
        _clear(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777)  # nobody connects until it is said who may
        try:
            sock.bind(str(path))
        except BaseException:
            sock.close()
            raise
        finally:
            os.umask(before)
        path.chmod(mode)
        sock.listen()
        return sock, _identity(path)
    finally:
        os.close(folder)


def _clear(path: Path) -> None:
    """Remove the file of a socket on which nobody listens any more. Raises EngineStartError for anything else."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise EngineStartError(f"--uds {path}: there is a file that is no socket; remove it, or choose another")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
                return
            except (PermissionError, TimeoutError, BlockingIOError):
                pass  # somebody is there
        raise EngineStartError(f"--uds {path}: another server listens there; stop it, or choose another")


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
