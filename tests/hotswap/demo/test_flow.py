"""The whole demo on a tiny random base: it learns nothing, but every other check must hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factory import make_base

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LEARNING = {
    "contacts v2 clearly beats the base",
    "dates clearly beats the base",
    "the replacement is better than what it replaced",
}


def test_demo_on_a_tiny_base(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    command = [sys.executable, "-m", "hotswap", "demo", "--base", str(base), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 1, done.stderr  # a random base cannot pass the checks of learning
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    failed = {check["name"]: check["detail"] for check in report["checks"] if not check["ok"]}
    assert set(failed) <= LEARNING, failed
    assert "Traceback" not in done.stderr


def test_a_base_that_is_not_there_is_one_plain_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hotswap", "demo", "--base", str(tmp_path / "no"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith("hotswap: hotswap train failed: ")
    assert done.stderr.count("\n") == 1
