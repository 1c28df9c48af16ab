"""Memory of many resident adapters: starts ``hotswap serve`` and uploads random LoRA packages of mixed rank.

    python -m benchmarks.adapter_memory --base DIR --counts 1,100,1000

At each count it compares what the server says its adapters weigh with what its processes have grown by since they
held none. Packages are written one at a time, as PEFT saves them, on the query and value projections.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.own_server import OwnServer, own_server

TARGETS = ("q_proj", "v_proj")
ON_DEVICE = 'tier="device"'
MLP = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Sample:
    """Bytes with ``count`` adapters resident. ``tensors`` is what their tensors weigh by their shapes."""

    count: int
    tensors: int
    reported: int
    api: int
    engine: int


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    args = _parser().parse_args(argv)
    counts, ranks = _numbers(args.counts), _numbers(args.ranks)
    config = json.loads((args.base / "config.json").read_text(encoding="utf-8"))
    width = {"float32": 4, "bfloat16": 2, "float16": 2}[args.dtype]
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        options = ["--model", str(args.base), "--dtype", args.dtype, "--kv-cache-gb", "0.2", "--log-level", "warning"]
        with own_server([*options, "--quantize", args.quantize], Path(folder) / "server.log") as server:
            samples.append(measure(server, 0, 0))
            tensors = 0
            for number in range(max(counts)):
                package = Path(folder) / "package"
                tensors += width * write_package(package, config, ranks[number % len(ranks)], seed=number)
                upload(server, f"a{number}", package)
                if number + 1 in counts:
                    samples.append(measure(server, number + 1, tensors))
                    print(samples[-1], file=sys.stderr)
    print(table(samples))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="directory of a Llama-type base")
    parser.add_argument("--counts", default="1,100,1000", help="adapters at which to measure (default %(default)s)")
    parser.add_argument("--ranks", default="4,8,16,32,64", help="ranks, in turn (default %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--quantize", default="nf4", help="as for hotswap serve (default %(default)s)")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def write_package(folder: Path, config: dict[str, Any], rank: int, seed: int, targets: Sequence[str] = TARGETS) -> int:
    """A random LoRA package of ``rank`` in fp32 for ``targets``; returns how many numbers it holds."""
    generator = torch.Generator().manual_seed(seed)
    sides = linear_sides(config)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for target in targets:
            block = "mlp" if target in MLP else "self_attn"
            prefix = f"base_model.model.model.layers.{layer}.{block}.{target}"
            into, out = sides[target]
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, into, generator=generator) * into**-0.5
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.02
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": list(targets)}))
    return sum(tensor.numel() for tensor in tensors.values())


def linear_sides(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear maps of one layer of a Llama-type base."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    return {
        "q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys), "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
    }  # fmt: skip


def upload(server: OwnServer, name: str, package: Path) -> None:
    """Serve ``package`` as ``name``."""
    files = [("files", (path.name, path.read_bytes())) for path in sorted(package.iterdir())]
    answer = server.client.post("/v1/adapters", data={"name": name}, files=files)
    if answer.status_code != 201:
        raise RuntimeError(f"the server refused {name}: {answer.text}")


def measure(server: OwnServer, count: int, tensors: int) -> Sample:
    """The state of the server now."""
    assert int(server.metric("hotswap_adapters_resident", ON_DEVICE)) == count
    private = server.private_bytes()
    reported = int(server.metric("hotswap_adapter_bytes", ON_DEVICE))
    return Sample(count, tensors, reported, private["api"], private["engine"])


def table(samples: Sequence[Sample]) -> str:
    """Markdown. Growth is against no adapters; the overhead is what the engine grew by beyond the tensors, for each."""
    first, rows = samples[0], []
    for s in samples[1:]:
        engine, api = s.engine - first.engine, s.api - first.api
        rows.append(
            f"| {s.count:,} | {s.tensors / 1e6:,.1f} | {s.reported / 1e6:,.1f} | {engine / 1e6:,.1f} | "
            f"{(engine - s.tensors) / s.count / 1e3:,.0f} | {api / 1e6:,.1f} |"
        )
    titles = (
        "adapters",
        "tensors, MB",
        "reported, MB",
        "engine grew by, MB",
        "beyond tensors, kB each",
        "API grew by, MB",
    )
    base = f"without adapters: engine {first.engine / 1e6:,.0f} MB, API process {first.api / 1e6:,.0f} MB"
    return "\n".join([f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *rows, "", base])


if __name__ == "__main__":
    sys.exit(main())
