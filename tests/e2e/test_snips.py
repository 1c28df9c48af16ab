"""Real data end to end: train on snips, publish into a running server, evaluate over HTTP.

Figures go to docs/results.md. HOTSWAP_SNIPS_ROWS, HOTSWAP_SNIPS_TEST_ROWS change the budget (default 1,200
training and 200 held-out rows).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from adapters.package.files import MANIFEST_FILE
from bases.errors import BaseModelError
from bases.finding import DEFAULT_BASE, resolve_base
from tests.shared_data import SHARED
from trainer.serving.local_server import HOTSWAP, start_server, wait_until_ready

DATA = SHARED / "snips"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the snips data in {DATA}"),
]

TRAIN_ROWS = int(os.environ.get("HOTSWAP_SNIPS_ROWS", "1200"))
TEST_ROWS = int(os.environ.get("HOTSWAP_SNIPS_TEST_ROWS", "200"))
BATCH_SIZE, HELD_BACK = 4, 60
CLOSE = 2 / HELD_BACK  # two answers: where two tokens are equally likely, rounding decides


def hotswap(*arguments: str | Path, env: dict[str, str] | None = None) -> None:
    subprocess.run([*HOTSWAP, *map(str, arguments)], check=True, env={**os.environ, **(env or {})})


def evaluated(report: Path, *arguments: str | Path) -> dict[str, Any]:
    hotswap("eval", *arguments, "--json", report, "--concurrency", "16", "--quiet")
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def train(tmp_path: Path) -> tuple[Path, float]:
    """The run's output and the seconds it took."""
    config = {
        "output": str(tmp_path / "run"),
        "method": "lora",
        "data": {"recipe": "snips", "path": str(DATA), "max_rows": TRAIN_ROWS + HELD_BACK, "validation": HELD_BACK},
        "training": {
            "max_steps": TRAIN_ROWS // BATCH_SIZE,
            "batch_size": BATCH_SIZE,
            "learning_rate": 1e-3,
            "warmup": 0.05,
            "quantize": "nf4",
            "exact_match_rows": HELD_BACK,
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    started = time.monotonic()
    hotswap("train", tmp_path / "config.yaml", "--quiet")
    return tmp_path / "run", time.monotonic() - started


def test_lora_on_snips_beats_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        resolve_base(DEFAULT_BASE)
    except BaseModelError as error:
        pytest.skip(str(error))
    run, seconds = train(tmp_path)
    trained = json.loads((run / "adapter" / MANIFEST_FILE).read_text())["metrics"]["exact_match"]
    served = evaluated(tmp_path / "served.json", run)["candidate"]["scores"]["exact_match"]["value"]
    with start_server(["--quantize", "nf4"], tmp_path / "serve.log") as server:
        asyncio.run(wait_until_ready(server))
        keys = {"HOTSWAP_ADMIN_KEY": server.admin_key}
        hotswap("publish", run / "adapter", "--server", server.url, "--as", "snips", "--quiet", env=keys)
        asked: list[str | Path] = [
            "snips",
            "--server",
            server.url,
            "--api-key",
            server.key,
            "--vs",
            "base",
            "--retention",
        ]
        rows: list[str | Path] = [
            "--config",
            run / "config.yaml",
            "--split",
            "test",
            "--rows",
            str(TEST_ROWS),
            "--max-tokens",
            "96",
        ]
        report = evaluated(tmp_path / "report.json", *asked, *rows)
        assert server.stop() == 0
    with capsys.disabled():
        print(f"\nsnips, {TRAIN_ROWS} training rows in {seconds:.0f} s; exact match on {HELD_BACK} rows held back:")
        print(f"  in training {trained:.4f}, served {served:.4f}")
        for name in ("candidate", "versus"):
            print(f"  {json.dumps(report[name])}")
        print(f"  retention {json.dumps(report['retention'])}")
    assert abs(trained - served) <= CLOSE
    differences = report["comparison"]["metrics"]
    assert differences["slot_f1"]["low"] > 0.4
    assert differences["exact_match"]["low"] > 0.2
