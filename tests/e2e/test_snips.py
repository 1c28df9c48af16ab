"""Real data end to end: train on snips, publish into a running server, score over HTTP. Figures go to docs/results.md.

HOTSWAP_SNIPS_ROWS, HOTSWAP_SNIPS_TEST_ROWS change the budget (default 2,400 training and 200 held-out rows).
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from adapters.base import DEFAULT_BASE, resolve_base
from adapters.errors import BaseModelError
from tests.e2e import snips

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not snips.DATA.is_dir(), reason=f"needs the snips data in {snips.DATA}"),
]

HOTSWAP = [sys.executable, "-m", "hotswap"]
TRAIN_ROWS = int(os.environ.get("HOTSWAP_SNIPS_ROWS", "2400"))
TEST_ROWS = int(os.environ.get("HOTSWAP_SNIPS_TEST_ROWS", "200"))
BATCH_SIZE, CONCURRENCY = 8, 16


def train(tmp_path: Path) -> tuple[Path, float]:
    """The adapter package and the seconds it took."""
    data = tmp_path / "snips.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in snips.load("train")[:TRAIN_ROWS]))
    config = {
        "output": str(tmp_path / "run"),
        "method": "lora",
        "data": {"path": str(data), "validation": 0.02},
        "training": {"max_steps": TRAIN_ROWS // BATCH_SIZE, "batch_size": BATCH_SIZE, "quantize": "nf4"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    started = time.monotonic()
    subprocess.run([*HOTSWAP, "train", str(tmp_path / "config.yaml"), "--quiet"], check=True)
    return tmp_path / "run" / "adapter", time.monotonic() - started


@contextmanager
def serving(log: Path, port: int) -> Iterator[str]:
    """A server on the NF4 base; yields its URL when it is ready, and asks it to drain at the end."""
    command = [*HOTSWAP, "serve", "--quantize", "nf4", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the server did not become ready"
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        yield url
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


async def ask(url: str, model: str, rows: list[dict[str, str]]) -> list[str]:
    """Greedy answers to all prompts, CONCURRENCY at a time."""
    gate = asyncio.Semaphore(CONCURRENCY)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as client:

        async def one(prompt: str) -> str:
            async with gate:
                reply = await client.chat.completions.create(
                    model=model, messages=[{"role": "user", "content": prompt}], temperature=0, max_tokens=96
                )
            return reply.choices[0].message.content or ""

        return await asyncio.gather(*(one(row["prompt"]) for row in rows))


def test_lora_on_snips_beats_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str], unused_tcp_port: int) -> None:
    try:
        resolve_base(DEFAULT_BASE)
    except BaseModelError as error:
        pytest.skip(str(error))
    rows = snips.load("test")[:TEST_ROWS]
    package, seconds = train(tmp_path)
    figures: dict[str, dict[str, float]] = {}
    with serving(tmp_path / "serve.log", unused_tcp_port) as url:
        base = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        subprocess.run([*HOTSWAP, "publish", str(package), "--server", url, "--as", "snips", "--quiet"], check=True)
        for model in (base, "snips"):
            started = time.monotonic()
            answers = asyncio.run(ask(url, model, rows))
            figures[model] = {**snips.scores(answers, rows), "seconds": time.monotonic() - started}
    with capsys.disabled():
        print(f"\nsnips, {TRAIN_ROWS} training rows in {seconds:.0f} s, {len(rows)} held-out rows over HTTP")
        for model, found in figures.items():
            print(f"  {model:<28}", "  ".join(f"{name} {value:.3f}" for name, value in found.items()))
    assert figures["snips"]["slot_f1"] > figures[base]["slot_f1"] + 0.4
    assert figures["snips"]["json_exact_match"] > figures[base]["json_exact_match"] + 0.3
