"""A short soak of the real server: everything at once, nothing wrong, lost or leaked; and that it would tell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak_references import write_references
from tests.once import Once

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("lora-r8", "prefix-5", "lora-r4", "prompt-7")


@pytest.fixture(scope="session")
def references(once: Once, tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> Path:
    packages = {name: tiny_adapters[name] for name in NAMES}
    return once.make("soak", lambda path: write_references(path, tiny_base, packages))


def soak(references: Path, out: Path, *flags: str) -> tuple[int, str, dict[str, Any]]:
    """Run the real command; its status, what it wrote, its report."""
    command = [sys.executable, "-m", "loadtests.soak", "--references", str(references), "--out", str(out), *flags]
    engine = ("--", "--threads", "1", "--kv-cache-gb", "0.01", "--send-seconds", "3")
    done = subprocess.run([*command, *engine], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (out / "soak.json").exists(), done.stderr
    return done.returncode, done.stdout + done.stderr, json.loads((out / "soak.json").read_text())


@pytest.mark.slow
def test_nothing_is_wrong_lost_or_leaked(references: Path, tmp_path: Path) -> None:
    load = ("--seconds", "3", "--engine-timeout", "4", "--comparers", "2", "--fixed", "3", "--max-resident", "3")
    faults = ("--faults-every", "1", "--server-kills-every", "3", "--store-faults-every", "2")
    deaf = ("--deaf", "1", "--deaf-seconds", "30")
    code, text, report = soak(references, tmp_path, *load, *faults, "--database-stops-every", "3", *deaf)
    assert code == 0, text + "".join(log.read_text()[-4000:] for log in tmp_path.glob("server*.log"))
    happened = ("compared", "uploads", "activations", "kills", "hangs", "server kills", "store away", "left early")
    for count in (*happened, "deaf readers", "canaries", "promotions", "answers beside canaries", "races"):
        assert report["counts"][count] > 0, text
    if report["catalog"] == "PostgreSQL":
        assert report["counts"]["database stops"] > 0
    assert report["seen_elsewhere_seconds"]["count"] > 0


def test_a_wrong_answer_is_told(references: Path, tmp_path: Path) -> None:
    known = json.loads((references / "references.json").read_text())
    for answer in known["packages"]["prefix-5"]["answers"]:
        answer["text"] += "!"
    (tmp_path / "references.json").write_text(json.dumps(known))
    load = ("--seconds", "2", "--servers", "1", "--catalog", "sqlite", "--names", "0", "--deaf", "0")
    never = ("--faults-every", "0", "--server-kills-every", "0", "--store-faults-every", "0", "--deaf-seconds", "0")
    code, text, report = soak(tmp_path, tmp_path, *load, *never)
    assert code == 1
    assert report["wrong"], text
    assert report["lost"] == report["leaked"] == [], text
    assert all("(prefix-5) answered" in sentence for sentence in report["wrong"])
