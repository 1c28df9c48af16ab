"""Runs ``python -m loadtests`` against a server: a process of its own, as any client is."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_load(url: str, models: Sequence[str], key: str, options: Sequence[str]) -> dict[str, Any]:
    """The report's only run, of requests that are generated to their full length; some of them may have failed.

    ``key`` is empty where the server wants none. Raises RuntimeError with the client's words when it leaves no report.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "loadtests", "--url", url, "--models", ",".join(models), "--ignore-eos"]
        command += [*options, "--out", out]
        if key:
            command += ["--api-key", key]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        report = Path(out) / "report.json"
        if not report.exists():
            raise RuntimeError(f"no report, status {done.returncode}: {done.stderr[-2000:]}")
        run: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["runs"][0]
    return run
