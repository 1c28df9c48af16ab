"""How fast the native ops are, beside their twins and beside torch.

    python -m benchmarks.kernels linear --rows 1,8,32 --formats q4_1,q8_0
    python -m benchmarks.kernels attention --rows 1,8,32
    HOTSWAP_KERNELS=avx2 python -m benchmarks.kernels linear

The shapes are those of the default base. Each layer has weights of its own, so that what does not fit the caches is
read from memory, as in a step. A line's time is the sum of every call's fastest of many: other work on the machine
makes some calls slow, and does not change which is the fastest. A new op is one function in ``OPS``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hotkernels import native
from hotkernels.activation import gated, gated_torch
from hotkernels.attention import AttentionRule, Sequences, paged_attention, paged_attention_torch
from hotkernels.linear import PackedWeight, StoredWeight, linear, linear_torch, pack
from hotkernels.logits import argmax, argmax_torch
from hotkernels.low_rank import LowRankFactors, LowRankMaps, LowRankRows, LowRankTable, add_low_rank
from hotkernels.norm import rms_norm, rms_norm_torch
from hotkernels.rotary import rotate, rotate_torch


@dataclass(frozen=True)
class Line:
    """A line of a table: what is called in turn, and what all the calls do together."""

    name: str
    rows: int
    calls: Sequence[Callable[[], object]]
    multiplications: float
    bytes_read: float


def fastest(calls: Sequence[Callable[[], object]], budget: float) -> float:
    """Seconds of all calls, each taken at its fastest. At least three rounds, then what ``budget`` seconds hold."""
    best = [float("inf")] * len(calls)
    end, rounds = time.perf_counter() + budget, 0
    while rounds < 3 or time.perf_counter() < end:
        rounds += 1
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return sum(best)


@dataclass(frozen=True)
class Format:
    """A format of weights: how codes, scales and minima are stored."""

    codes: torch.dtype
    scale: torch.dtype | None = None
    block: int = 32
    minimum: bool = False
    centred: bool = False
    book: bool = False

    def random(self, n: int, k: int) -> StoredWeight:
        """A weight [n, k]."""
        if self.scale is None:
            return StoredWeight(torch.randn(n, k).div_(k**0.5).to(self.codes))
        scale = torch.rand(n, k // self.block if self.block else 1).to(self.scale) / 100
        if self.codes == torch.int8:
            return StoredWeight(torch.randint(-127, 128, (n, k), dtype=torch.int8), scale)
        codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8)
        minimum = scale * -8 if self.centred else torch.randn(scale.shape).to(self.scale) / 100
        book = torch.linspace(-1, 1, 16) if self.book else None
        return StoredWeight(codes, scale, minimum if self.minimum else None, book)


FORMATS = {
    "q4_1": Format(torch.uint8, torch.float16, minimum=True),
    "q4_0": Format(torch.uint8, torch.float16, minimum=True, centred=True),
    "nf4": Format(torch.uint8, torch.float32, block=64, book=True),
    "q8_0": Format(torch.int8, torch.float16),
    "int8": Format(torch.int8, torch.float32, block=0),
    "bf16": Format(torch.bfloat16),
    "fp16": Format(torch.float16),
    "fp32": Format(torch.float32),
}
LAYERS = 30
SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))  # qkv, o, gate and up, down
HEAD = (49152, 576)


def linear_lines(args: argparse.Namespace) -> Iterator[Line]:
    """All linear maps of the default base's layers, then its head, in each format; and F.linear in fp32 and bf16."""
    for part, shapes in (("layers", SHAPES * LAYERS), ("head", (HEAD,))):
        size = sum(n * k for n, k in shapes)
        for name in args.formats.split(","):
            weights = [pack([FORMATS[name].random(n, k)]) for n, k in shapes]
            moved = sum(weight.nbytes for weight in weights)
            for rows in args.rows:
                yield Line(f"{part} {name}", rows, _ours(weights, rows), size * rows, moved)
            if args.twins:
                twins = [_twin(weight, torch.randn(1, weight.in_features)) for weight in weights]
                yield Line(f"{part} {name} twin", 1, twins, size, moved)
        for dtype in (torch.float32, torch.bfloat16) if args.torch else ():
            dense = [torch.randn(n, k).to(dtype) for n, k in shapes]
            for rows in args.rows:
                name = f"{part} torch {str(dtype).removeprefix('torch.')}"
                yield Line(name, rows, _torchs(dense, rows), size * rows, size * dtype.itemsize)


def _ours(weights: Sequence[PackedWeight], rows: int) -> list[Callable[[], object]]:
    def call(weight: PackedWeight) -> Callable[[], object]:
        x, out = torch.randn(rows, weight.in_features), torch.empty(rows, weight.out_features)
        return lambda: linear(x, weight, out=out)

    return [call(weight) for weight in weights]


def _twin(weight: PackedWeight, x: Tensor) -> Callable[[], object]:
    return lambda: linear_torch(x, weight)


def _torchs(weights: Sequence[Tensor], rows: int) -> list[Callable[[], object]]:
    def call(weight: Tensor) -> Callable[[], object]:
        x = torch.randn(rows, weight.shape[1], dtype=weight.dtype)
        return lambda: F.linear(x, weight)

    return [call(weight) for weight in weights]


STORED = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 9, 3, 64, 16


def attention_lines(args: argparse.Namespace) -> Iterator[Line]:
    """Attention of all layers: rows that decode, each of a sequence of its own, then a prompt's rows, by context."""
    for stored in STORED:
        name = str(stored).removeprefix("torch.")
        for context in (64, 1024):
            for rows in (n for n in args.rows if n <= 32):
                yield _attention(f"decode at {context} {name}", rows, 1, context, stored)
        for count, context in ((128, 128), (512, 1024)):
            yield _attention(f"prompt of {context} {name}", 1, count, context, stored)
    if args.twins:
        yield _attention("decode at 1024 float32 twin", 8, 1, 1024, torch.float32, op=paged_attention_torch)


def _attention(
    name: str,
    sequences: int,
    count: int,
    context: int,
    stored: torch.dtype,
    *,
    op: Callable[..., Tensor] = paged_attention,
) -> Line:
    """``count`` last rows of each sequence of ``context`` positions, whose blocks lie in random order."""
    width = -(-context // BLOCK_SIZE)
    blocks = torch.randperm(sequences * width).view(sequences, width).int()
    row, count_of, start = (
        torch.tensor(v, dtype=torch.int32)
        for v in ([i * count for i in range(sequences)], [count] * sequences, [context - count] * sequences)
    )
    where, rule = Sequences(row, count_of, start, blocks, BLOCK_SIZE), AttentionRule(HEAD_DIM**-0.5)
    shape = 1, blocks.numel() * BLOCK_SIZE, KV_HEADS  # one page
    shared = (torch.rand(shape), torch.rand(shape)) if stored == torch.int8 else None

    def call() -> Callable[[], object]:
        q = torch.randn(sequences * count, HEADS, HEAD_DIM)
        keys, values = ((torch.randn(*shape, HEAD_DIM) * 20).to(stored) for _ in range(2))
        return lambda: op(q, keys, values, where, rule, scales=shared)

    seen = sequences * sum(context - i for i in range(count))  # keys of all rows together
    read = sequences * context * KV_HEADS * HEAD_DIM * 2 * stored.itemsize
    multiplications = seen * HEADS * HEAD_DIM * 2
    return Line(name, sequences * count, [call() for _ in range(LAYERS)], multiplications * LAYERS, read * LAYERS)


def low_rank_lines(args: argparse.Namespace) -> Iterator[Line]:
    """Adapters of rank 8 on all linear maps of the layers, each on its share of the rows; and torch's grouped bmm."""
    for count in (1, 16):
        for dtype in (torch.float32, torch.bfloat16):
            members = [_module(count, widths, k, dtype) for widths, k in MAPS * LAYERS]
            size = sum(f.a.numel() + f.b.numel() for module in members for m in module for f in m)
            for rows in args.rows:
                if rows % count:
                    continue
                name = f"{count} adapters, {str(dtype).removeprefix('torch.')}"
                moved = size * dtype.itemsize
                yield Line(name, rows, _low_rank(members, rows, count), size * rows // count, moved)
                if args.torch and dtype == torch.float32:
                    yield Line(f"{name} torch", rows, _grouped(members, rows, count), size * rows // count, moved)


MAPS = (((576, 192, 192), 576), ((576,), 576), ((1536, 1536), 576), ((576,), 1536))
Factors = list[list[LowRankFactors]]  # of a module: of each member, of each map


def _module(count: int, widths: Sequence[int], k: int, dtype: torch.dtype) -> Factors:
    def factors(out: int) -> LowRankFactors:
        return LowRankFactors(torch.randn(k, 8).to(dtype), torch.randn(8, out).to(dtype) / 100)

    return [[factors(out) for out in widths] for _ in range(count)]


def _low_rank(members: Sequence[Factors], rows: int, count: int) -> list[Callable[[], object]]:
    size = rows // count

    def call(module: Factors) -> Callable[[], object]:
        widths = [f.b.shape[1] for f in module[0]]
        maps = LowRankMaps([(place, sum(widths[:place])) for place in range(len(widths))])
        of_rows = LowRankRows([(LowRankTable(f), m * size, (m + 1) * size) for m, f in enumerate(module)])
        x, y = torch.randn(rows, module[0][0].a.shape[0]), torch.zeros(rows, sum(widths))
        return lambda: add_low_rank(x, y, maps, of_rows)

    return [call(module) for module in members]


def _grouped(members: Sequence[Factors], rows: int, count: int) -> list[Callable[[], object]]:
    def call(parts: Sequence[LowRankFactors]) -> Callable[[], object]:
        a, b = torch.stack([f.a for f in parts]), torch.stack([f.b for f in parts])
        x, y = torch.randn(rows, a.shape[1]), torch.zeros(rows, b.shape[2])
        return lambda: y.add_(torch.bmm(torch.bmm(x.view(count, -1, x.shape[1]), a), b).view(rows, -1))

    return [call(parts) for module in members for parts in zip(*module, strict=True)]


def small_lines(args: argparse.Namespace) -> Iterator[Line]:
    """The ops between products, as often as a step of the default base has them."""
    weight, angles = torch.randn(576), torch.randn(max(args.rows), 32)
    for rows in args.rows:
        x, residual, heads = torch.randn(rows, 576), torch.randn(rows, 576), torch.randn(rows, 12, 64)
        pair, logits, cos = torch.randn(rows, 3072), torch.randn(rows, HEAD[0]), angles[:rows]
        added: dict[str, Any] = {"residual": residual, "scale": 0.0}
        calls: dict[str, tuple[int, Callable[[], object]]] = {
            "norm with residual": (2 * LAYERS, partial(rms_norm, x, weight, 1e-5, **added)),
            "norm with residual twin": (
                2 * LAYERS,
                partial(rms_norm_torch, x, weight, 1e-5, **added),
            ),
            "rotary": (LAYERS, partial(rotate, heads, cos, cos)),
            "rotary twin": (LAYERS, partial(rotate_torch, heads, cos, cos)),
            "silu, gated": (LAYERS, partial(gated, pair, "silu")),
            "silu, gated twin": (LAYERS, partial(gated_torch, pair, "silu")),
            "argmax": (1, partial(argmax, logits)),
            "argmax twin": (1, partial(argmax_torch, logits)),
        }
        for name, (times, call) in calls.items():
            if args.twins or not name.endswith("twin"):
                yield Line(name, rows, [call] * times, 0, 0)


OPS: dict[str, Callable[[argparse.Namespace], Iterator[Line]]] = {
    "linear": linear_lines,
    "attention": attention_lines,
    "low_rank": low_rank_lines,
    "small": small_lines,
}


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each case of the ops asked for."""
    args = _parse(argv)
    torch.set_num_threads(args.threads)
    native.set_num_threads(args.threads)
    print(f"{native.variant()}, {args.threads} threads")
    for op in args.ops:
        print(f"{op:30} {'rows':>5} {'ms':>9} {'GMAC/s':>8} {'GB/s':>7}")
        for line in OPS[op](args):
            took = fastest(line.calls, args.seconds)
            rate, read = line.multiplications / took / 1e9, line.bytes_read / took / 1e9
            print(f"{line.name:30} {line.rows:5} {took * 1e3:9.3f} {rate:8.1f} {read:7.1f}", flush=True)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description="Ops against their twins and torch.")
    parser.add_argument("ops", nargs="*", choices=[*OPS, []], default=list(OPS), metavar="op", help=", ".join(OPS))
    parser.add_argument("--rows", type=_numbers, default=(1, 2, 4, 8, 16, 32, 64, 128, 256), help="rows of a batch")
    parser.add_argument("--formats", default=",".join(FORMATS), help="formats of weights, with commas between")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each line (default 1)")
    parser.add_argument("--no-torch", dest="torch", action="store_false", help="leave torch's own products out")
    parser.add_argument("--no-twins", dest="twins", action="store_false", help="leave the twins out")
    return parser.parse_args(argv)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


if __name__ == "__main__":
    raise SystemExit(main())
