"""Which contents were tried by an engine that computes as this one does: they need not be tried again.

A line for each in a file that outlives the process, where there is a place for it. It is lost without harm.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)
_DIGEST = re.compile("[0-9a-f]{64}")


class TriedContents:
    """Digests of contents, kept in ``folder`` (None: in memory alone) apart for every ``how`` that engines compute."""

    def __init__(self, folder: Path | None = None, how: str = "") -> None:
        self._file = folder / f"tried-{hashlib.sha256(how.encode()).hexdigest()[:16]}" if folder is not None else None
        self._digests: set[str] = set()
        try:
            if self._file is not None and self._file.exists():
                self._digests.update(_DIGEST.findall(self._file.read_text("ascii", errors="replace")))
        except OSError as error:
            logger.warning("%s cannot be read, so all adapters are tried again: %s", self._file, error.strerror)

    def __contains__(self, digest: str) -> bool:
        return digest in self._digests

    def add(self, digest: str) -> None:
        """A content was tried, and is served."""
        if digest in self._digests:
            return
        self._digests.add(digest)
        if self._file is None or not _DIGEST.fullmatch(digest):
            return
        try:
            with self._file.open("a", encoding="ascii") as file:
                file.write(f"{digest}\n")
        except OSError as error:
            logger.warning("%s cannot be written; adapters are tried again after a restart: %s", self._file, error)
            self._file = None
