"""Measures hotswap over HTTP, and rivals beside it in the same run.

    python -m benchmarks.speed --base DIR
    python -m benchmarks.speed --base DIR --rivals --llama-server FILE --llama-source DIR --vllm VENV

Loads are closed loops of 128 prompt and 64 output tokens, greedy, streaming, over HTTP, without a prefix cache, ours
without drafts. Servers take turns, round after round; figures are medians of the rounds, ratios are taken within a
round. Results go to --out: speed.json, speed.md, speed.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.speed.adapter_sets import write_sets
from benchmarks.speed.loads import LOADS
from benchmarks.speed.measuring import measure
from benchmarks.speed.report import plot, tables, write_section
from benchmarks.speed.rivals import CONVERTER, default_base_file, llama_cpp, missing, vllm
from benchmarks.speed.servers import Server, ServerError, Work, hotswap
from trainer.commands.common import end_on_sigterm


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    args = _parser().parse_args(argv)
    if args.rivals and (why := missing(args.llama_server, args.llama_source, args.vllm)):
        print(f"bench-peers: {why}", file=sys.stderr)
        return 2
    out: Path = args.out
    (out / "logs").mkdir(parents=True, exist_ok=True)
    loads = [load for load in LOADS if args.only in load.name and (load.rivals or not args.rivals)]
    work = Work(args.base, write_sets(args.base, out / "adapters", {load.adapters for load in loads}), out / "logs")
    servers = _servers(args)
    try:
        found = measure(servers, loads, work, args.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    except ServerError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    (out / "speed.json").write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")
    text = f"{_conditions(args, servers)}\n\n{tables(found, _has_bf16())}"
    (out / "speed.md").write_text(text, encoding="utf-8")
    plot(found, out / "speed.png")
    if args.page:
        write_section(args.page, args.title, text)
    print(text)
    return 1 if any(one.errors for one in found) else 0


def _servers(args: argparse.Namespace) -> list[Server]:
    servers = [hotswap(tuple(args.serve.split()))]
    if args.rivals and args.llama_server:
        gguf = args.gguf or default_base_file(args.out)
        servers.append(llama_cpp(args.llama_server, args.llama_source, gguf))
    if args.rivals and args.vllm:
        servers.append(vllm(args.vllm))
    return servers


def _conditions(args: argparse.Namespace, servers: Sequence[Server]) -> str:
    """The machine, the work and who was measured, in words."""
    who = "; ".join(f"{server.name}: {server.about}" for server in servers)
    work = "128 prompt and 64 output tokens unless said, greedy, streaming over HTTP, closed loop, no prefix cache"
    return f"{_machine()}, the client on the same cores. {work}; medians of {args.rounds} rounds in turns. {who}."


def _has_bf16() -> bool:
    """Whether rivals can use units for BF16 or AMX: the CPU has them, and the run is not held to less."""
    capabilities = torch.cpu.get_capabilities()
    has = capabilities.get("avx512_bf16") or capabilities.get("amx_tile")
    return bool(has) and os.environ.get("HOTSWAP_KERNELS") not in ("generic", "avx2")


def _machine() -> str:
    """The CPU."""
    capabilities = torch.cpu.get_capabilities()
    kinds = [name for name in ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8") if capabilities.get(name)]
    name = capabilities.get("cpu_name") or platform.machine()
    return f"{os.cpu_count()} cores of {name} with {', '.join(kinds)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of the base model")
    parser.add_argument("--rounds", type=int, default=3, help="times that every load is run (default 3)")
    parser.add_argument("--only", default="", help="only loads whose name contains this")
    parser.add_argument("--serve", default="", help="more options for hotswap serve, as one argument")
    parser.add_argument("--rivals", action="store_true", help="the loads that rivals are asked too, and those named")
    parser.add_argument("--llama-server", type=_path, help="llama.cpp's llama-server")
    parser.add_argument("--llama-source", type=_path, help=f"llama.cpp's source tree, which holds {CONVERTER}")
    parser.add_argument("--gguf", type=_path, help="the base as GGUF, for llama.cpp (default: the default base's)")
    parser.add_argument("--vllm", type=_path, help="virtual environment with vLLM's CPU build")
    parser.add_argument("--page", type=_path, help="Markdown page to write the figures into")
    parser.add_argument("--title", default="Beside llama.cpp and vLLM", help="heading of their section on the page")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the results")
    return parser


def _path(text: str) -> Path | None:
    """None for an empty text, as an unset variable of make is."""
    return Path(text).expanduser() if text else None


if __name__ == "__main__":
    end_on_sigterm()  # no server outlives it
    sys.exit(main())
