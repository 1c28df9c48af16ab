"""Measures hotswap over HTTP, and rivals beside it in the same run.

    python -m benchmarks.speed --base DIR
    python -m benchmarks.speed --base DIR --llama-cpp LLAMA_SERVER --gguf FILE --llama-loras DIR --vllm VENV

Loads are closed loops of 128 prompt and 64 output tokens, greedy, streaming, over HTTP, without a prefix cache. Servers
take turns, round after round; figures are medians of the rounds. Results go to --out: speed.json, speed.md, speed.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.speed.adapter_sets import write_sets
from benchmarks.speed.loads import CACHE_TOKENS, LOADS
from benchmarks.speed.measuring import measure
from benchmarks.speed.report import OURS, plot, tables
from benchmarks.speed.servers import Server, Work, cache_of, hotswap, llama_cpp, vllm


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    args = _parser().parse_args(argv)
    out: Path = args.out
    (out / "logs").mkdir(parents=True, exist_ok=True)
    work = Work(args.base, write_sets(args.base, out / "adapters"), out / "logs")
    loads = [load for load in LOADS if args.only in load.name]
    found = measure(_servers(args), loads, work, args.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    (out / "speed.json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    text = f"{_machine()}; medians of {args.rounds} rounds.\n\n{tables(found)}"
    (out / "speed.md").write_text(text, encoding="utf-8")
    plot(found, out / "speed.png")
    print(text)
    return 1 if any(one.errors for one in found) else 0


def _servers(args: argparse.Namespace) -> list[Server]:
    options = tuple(args.serve.split())
    servers = [
        Server(OURS, hotswap(options), frozenset({"none", "one", "sixteen", "mixed"})),
        Server(OURS, hotswap((*options, *cache_of(args.base, CACHE_TOKENS))), frozenset({"sized"})),
    ]
    if args.llama_cpp:
        servers.append(
            Server("llama.cpp", llama_cpp(args.llama_cpp, args.gguf, args.llama_loras), frozenset({"none", "one"}))
        )
    if args.vllm:
        servers.append(Server("vLLM", vllm(args.vllm), frozenset({"none", "one", "sixteen"})))
    return servers


def _machine() -> str:
    capabilities = torch.cpu.get_capabilities()
    kinds = [name for name in ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8") if capabilities.get(name)]
    return f"{capabilities.get('cpu_name') or platform.machine()} with {', '.join(kinds)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--rounds", type=int, default=3, help="times that every load is run (default 3)")
    parser.add_argument("--only", default="", help="only loads whose name contains this")
    parser.add_argument("--serve", default="", help="more options for hotswap serve, as one argument")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's llama-server")
    parser.add_argument("--gguf", type=Path, help="the base as GGUF, for llama.cpp")
    parser.add_argument("--llama-loras", type=Path, help="folder with l0.gguf, for llama.cpp")
    parser.add_argument("--vllm", type=Path, help="virtual environment with vLLM's CPU build")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the results")
    return parser


if __name__ == "__main__":
    sys.exit(main())
