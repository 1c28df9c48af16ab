"""What became of the packages of a watched folder: it outlives the server, so that a start serves nothing anew."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """One package as it was last looked at. Of its ``content``, a digest of all its files, came ``versions``.

    ``refused`` is why it is not served, if it is not; it is looked at again once its ``signature`` is another.
    """

    signature: tuple[tuple[str, int, int], ...]
    content: str = ""
    versions: tuple[int, ...] = ()
    refused: str = ""


class Memory:
    """Packages by name, in one file. What cannot be written or read is logged, and forgotten at the next start."""

    def __init__(self, data_dir: Path, folder: Path) -> None:
        name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
        self._file = data_dir / "watched" / f"{name}.json"
        self.known: dict[str, Known] = {}

    def load(self) -> None:
        """Remember what an earlier server knew."""
        try:
            self.known = msgspec.json.decode(self._file.read_bytes(), type=dict[str, Known])
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("%s cannot be read, and is begun anew: %s", self._file, error)

    def save(self) -> None:
        """Let it outlive this server: the whole of it, or what was there before."""
        scratch = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(exist_ok=True)
            scratch.write_bytes(msgspec.json.encode(self.known))
            scratch.rename(self._file)
        except OSError as error:
            logger.warning("%s cannot be written: %s", self._file, error)
