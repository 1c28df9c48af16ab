"""Structured logs: one JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime

# They tell of every request with its whole address, a signature in it too, and at length of keys.
_TALKATIVE = ("aiobotocore", "botocore", "fsspec", "httpcore", "httpx", "s3fs", "urllib3")


class JsonFormatter(logging.Formatter):
    """time (ISO 8601, UTC), level, logger, message, what ``extra={"fields": ...}`` adds, the traceback if any.

    ``clean`` takes out of a line what no log may hold.
    """

    def __init__(self, clean: Callable[[str], str] = str) -> None:
        super().__init__()
        self._clean = clean

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return self._clean(json.dumps(entry, ensure_ascii=False))


def configure_logging(level: str = "info", clean: Callable[[str], str] = str) -> None:
    """Send this process's logs and warnings to standard error. Replaces any handlers of the root logger.

    Of libraries that talk to the network only warnings are of use, and free of secrets.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(clean))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
