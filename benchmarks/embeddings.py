"""Embeddings over HTTP beside the same vectors by transformers and peft in batches.

    python -m benchmarks.embeddings [--model PATH] [--texts 256] [--tokens 60]

One request asks for the mean vectors of random texts (token ids, so that both sides read the same), through one LoRA;
then as many requests as there are adapters at once, each with its share of the texts. Beside it what a script does:
transformers' backbone with peft in float32, in batches of 32, and for the mix one adapter after the other. Sides take
turns, the best round of each counts. The smallest cosine of both sides' vectors is printed: what quantization costs.
"""

from __future__ import annotations

import argparse
import base64
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM

from bases.finding import DEFAULT_BASE, resolve_base
from benchmarks.make_adapters import write_adapter
from benchmarks.own_server import OwnServer, own_server

BATCH = 32
Texts = list[list[int]]


class Plain:
    """transformers and peft, as a script uses them."""

    def __init__(self, base: Path, packages: Sequence[Path]) -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._model: Any = PeftModel.from_pretrained(model, packages[0], "l0").eval()
        for number, package in enumerate(packages[1:], 1):
            self._model.load_adapter(package, f"l{number}")

    @torch.inference_mode()
    def vectors(self, texts: Texts, adapter: int) -> Tensor:
        """Mean vectors of ``texts``, [texts, hidden size], of length 1; texts of one length need no padding."""
        self._model.set_adapter(f"l{adapter}")
        backbone = self._model.base_model.model.model
        parts = [torch.tensor(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)]
        return torch.cat([normalize(backbone(input_ids=ids).last_hidden_state.mean(1), dim=-1) for ids in parts])


def served(server: OwnServer, texts: Texts, adapter: int) -> Tensor:
    """The same from ``server``."""
    body = {"model": f"l{adapter}", "input": texts, "pooling": "mean", "encoding_format": "base64"}
    answer = server.post("/v1/embeddings", body)
    rows = [base64.b64decode(entry["embedding"]) for entry in answer["data"]]
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.float32).reshape(len(rows), -1)


def mixed(one: Callable[[Texts, int], Tensor], texts: Texts, adapters: int, at_once: bool) -> Tensor:
    """Each adapter's share of ``texts``."""
    size = -(-len(texts) // adapters)
    shares = [(texts[i * size : (i + 1) * size], i) for i in range(adapters)]
    if not at_once:
        return torch.cat([one(*share) for share in shares])
    with ThreadPoolExecutor(adapters) as threads:
        return torch.cat(list(threads.map(lambda share: one(*share), shares)))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_BASE, help="a base that is here: a directory, or its id")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=60, help="of each text")
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--serve", default="", help="more options of hotswap serve")
    options = parser.parse_args(argv)
    base = resolve_base(options.model)
    generator = torch.Generator().manual_seed(0)
    texts: Texts = torch.randint(100, 40_000, (options.texts, options.tokens), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as folder:
        packages = [Path(folder) / f"l{number}" for number in range(options.adapters)]
        for number, package in enumerate(packages):
            write_adapter(base, package, "lora", seed=number)
        arguments = [
            "--model",
            str(base),
            "--no-prefix-caching",
            "--data-dir",
            f"{folder}/data",
            *options.serve.split(),
        ]
        for package in packages:
            arguments += ["--adapter", f"{package.name}={package}"]
        with own_server(arguments, Path(folder) / "log") as server:
            _measure(Plain(base, packages), server, texts, options)


def _measure(plain: Plain, server: OwnServer, texts: Texts, options: argparse.Namespace) -> None:
    count = options.adapters
    asked = partial(served, server)
    sides: dict[tuple[str, str], Callable[[], Tensor]] = {
        ("one LoRA", "hotswap"): partial(asked, texts, 0),
        ("one LoRA", "transformers"): lambda: plain.vectors(texts, 0),
        (f"{count} LoRA", "hotswap"): lambda: mixed(asked, texts, count, True),
        (f"{count} LoRA", "transformers"): lambda: mixed(plain.vectors, texts, count, False),
    }
    best = dict.fromkeys(sides, (float("inf"), 0.0))
    found: dict[tuple[str, str], Tensor] = {}
    for _ in range(options.rounds):
        for name, work in sides.items():
            before, began = _computed(server), time.perf_counter()
            found[name] = work()
            seconds = time.perf_counter() - began
            best[name] = min(best[name], (seconds, _computed(server) - before))
    print("| texts through | by | seconds | texts/s | tokens/s | of it in the model |\n|---|---|---|---|---|---|")
    for (load, side), (seconds, computed) in best.items():
        tokens = options.texts * options.tokens
        share = f"{computed / seconds:.0%}" if side == "hotswap" else "-"
        print(
            f"| {load} | {side} | {seconds:.2f} | {options.texts / seconds:.0f} | {tokens / seconds:,.0f} | {share} |"
        )
    for load in dict.fromkeys(load for load, _ in sides):
        cosine = (found[load, "hotswap"] * found[load, "transformers"]).sum(-1).min()
        print(f"{load}: smallest cosine {cosine:.5f}")


def _computed(server: OwnServer) -> float:
    """Seconds that the engine's steps have spent in the model so far."""
    return server.metric("hotswap_engine_step_part_seconds_total", 'part="forward"')


if __name__ == "__main__":
    main()
