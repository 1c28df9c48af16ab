"""One JSON object a line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

from server.logs import JsonFormatter

SECRET = """
import logging
from server.logs import configure_logging
configure_logging("debug")
for name in ("httpx", "botocore.auth", "aiobotocore.credentials", "s3fs"):
    logging.getLogger(name).info("HTTP Request: GET https://host/a.tar?X-Amz-Signature=secret")
    logging.getLogger(name).debug("secret")
logging.getLogger("server").debug("ours")
"""
SCRIPT = """
import logging, warnings
from server.logs import configure_logging
configure_logging("warning")
logging.getLogger("a.b").info("not shown")
logging.getLogger("a.b").warning("shown %d", 1)
warnings.warn("a warning")
"""


def test_a_record_with_a_traceback_is_one_line() -> None:
    try:
        raise ValueError("why\nnot")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "f", 1, "it %s", ("failed",), sys.exc_info())
    line = JsonFormatter().format(record)
    entry = json.loads(line)
    assert "\n" not in line
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "a", "it failed")
    assert "ValueError: why" in entry["exception"]
    assert entry["time"].endswith("+00:00")


def test_a_process_logs_lines_of_its_level_and_its_warnings() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    entries = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(entry["logger"], entry["level"]) for entry in entries] == [("a.b", "warning"), ("py.warnings", "warning")]
    assert entries[0]["message"] == "shown 1"


def test_addresses_with_signatures_are_not_logged_by_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", SECRET], capture_output=True, text=True, check=True)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["ours"]
