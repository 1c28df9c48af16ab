"""Killed at any step of any change, a server finds the old state or the new one, and nothing else on the disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import server


@pytest.mark.long
@pytest.mark.parametrize(
    ("where", "every"),
    [
        ("data-dir", 3),
        pytest.param("data-dir", 1, marks=pytest.mark.slow),
        pytest.param("artifacts", 1, marks=pytest.mark.slow),
    ],
)
def test_a_change_that_is_killed_at_any_step_is_whole_or_has_not_been(
    tiny_adapters: Mapping[str, Path], tmp_path: Path, where: str, every: int
) -> None:
    packages = [str(tiny_adapters[name]) for name in ("lora-r8", "lora-r4")]
    command = [sys.executable, "-m", "tests.server.catalog.crash", str(tmp_path), *packages, str(every), where]
    root = Path(server.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    walks = json.loads(done.stdout)
    assert [walk["change"] for walk in walks if walk["faults"]] == [], json.dumps(walks, indent=1)
    assert len(walks) == 9
    assert all(walk["steps"] >= 4 for walk in walks), "each kind of change was killed somewhere"
