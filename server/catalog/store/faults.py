"""What a disk or an object store refuses, as a StoreError or StoreFullError."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from adapters.errors import AdapterError, PackageError
from server.errors import ServerError, StoreError, StoreFullError

logger = logging.getLogger(__name__)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL = ("QuotaExceeded", "InsufficientStorage", "StorageFull", "insufficient storage")  # in the words of servers
_ARTIFACTS = "the store of --artifacts"


@contextmanager
def disk_errors() -> Iterator[None]:
    """Let what the disk refuses, in writing or in reading, be a StoreError or StoreFullError. Also a decorator."""
    try:
        yield
    except (OSError, PackageError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        of_client = isinstance(cause, (ConnectionError, TimeoutError))
        if not isinstance(cause, OSError) or cause.errno is None or of_client:
            raise
        raise _store_error(cause) from error


def _store_error(error: OSError) -> StoreError:
    logger.error("the disk of --data-dir: %s", error)
    reason = error.strerror or "unknown error"
    if error.errno in _NO_ROOM:
        return StoreFullError(
            f"there is no room for the adapter's files ({reason}); delete versions that nobody needs, or give "
            "--data-dir more room"
        )
    return StoreError(f"the adapter's files cannot be kept ({reason}); look at the disk of --data-dir")


class UnreachableStoreError(StoreError):
    """The object store does not answer, or not in time: it may again."""


@contextmanager
def artifact_errors(of: str = _ARTIFACTS, *, to_disk: bool = False) -> Iterator[None]:
    """Let whatever a file system of fsspec raises be a StoreError; a missing object stays a FileNotFoundError.

    Its libraries have no errors in common, and theirs may hold addresses and keys: the log has those. ``of`` is for the
    log. ``to_disk``: the block writes to ours, whose being full, or read-only, stays an OSError.
    """
    try:
        yield
    except (FileNotFoundError, ServerError, AdapterError):
        raise
    except Exception as error:
        if to_disk and getattr(error, "errno", None) in (*_NO_ROOM, errno.EROFS):
            raise
        logger.error("%s: %s: %s", of, type(error).__name__, error)
        raise _artifact_error(error) from error


def _artifact_error(error: Exception) -> StoreError:
    if getattr(error, "errno", None) in _NO_ROOM or any(word in str(error) for word in _FULL):
        return StoreFullError(f"there is no room for the adapter's files in {_ARTIFACTS}; delete versions there")
    if isinstance(error, PermissionError) or "credentials" in str(error).lower():
        return StoreError(f"{_ARTIFACTS} refuses access; look at its credentials and what they allow")
    if isinstance(error, (TypeError, ValueError)):
        return StoreError(f"{_ARTIFACTS} cannot be used: its address or an option is wrong; the log has the reason")
    return UnreachableStoreError(f"{_ARTIFACTS} does not answer, or not as it should; what is in memory is served on")
