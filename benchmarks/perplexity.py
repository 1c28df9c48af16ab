"""Perplexity, memory and speed of a base under each quantization: starts ``hotswap serve`` for each.

    python -m benchmarks.perplexity --text FILE --quantize none,gguf,int8,nf4

Speed is that of the scoring, and of one stream that decodes.

The text is cut into windows that are scored alone, so each token but the first of a window is predicted from those
before it in the window. With JSONL, ``--fields`` names what of each row is the text.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bases.names import QUANTIZATIONS
from benchmarks.own_server import OwnServer, own_server

NAMES = ",".join(QUANTIZATIONS)  # the first, none, is what the others are compared with


@dataclass(frozen=True)
class QuantizationScore:
    """What one quantization costs and gives. ``base_bytes`` are those of the resident weights.

    ``seconds`` are of scoring ``tokens``, ``decode_rate`` is tokens a second of one stream.
    """

    quantize: str
    base_bytes: int
    engine_bytes: int
    tokens: int
    perplexity: float
    seconds: float
    decode_rate: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 when there is no text to score."""
    args = _parser().parse_args(argv)
    if not args.text.is_file():
        print(f"benchmarks.perplexity: skipped, there is no text {args.text}", file=sys.stderr)
        return 1
    text = read_text(args.text, args.fields)
    scores = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.quantize.split(","):
            options = ["--model", args.model, "--served-model-name", "base", "--quantize", name, "--dtype", args.dtype]
            options += ["--kv-dtype", args.kv_dtype]
            with own_server([*options, "--kv-cache-gb", "0.2"], Path(folder) / f"{name}.log") as server:
                scores.append(score(server, name, text, args.tokens, args.window))
            print(f"{name}: perplexity {scores[-1].perplexity:.4f}", file=sys.stderr)
    print(table(scores))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="plain text, or JSONL with --fields")
    parser.add_argument("--fields", default="", help="fields of each JSONL row, joined by newlines: question,answer")
    parser.add_argument("--model", default="default", help="as for hotswap serve (default: the built-in base)")
    parser.add_argument("--dtype", default="auto", help="as for hotswap serve (default auto)")
    parser.add_argument("--kv-dtype", default="auto", help="as for hotswap serve (default auto)")
    parser.add_argument("--quantize", default=NAMES, help="comma-separated (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=8192, help="how many to score (default %(default)s)")
    parser.add_argument("--window", type=int, default=512, help="tokens scored together (default %(default)s)")
    return parser


def read_text(path: Path, fields: str) -> str:
    """The whole text; rows of JSONL are separated by empty lines."""
    content = path.read_text(encoding="utf-8")
    if not fields:
        return content
    rows = [json.loads(line) for line in content.splitlines() if line.strip()]
    return "\n\n".join("\n".join(str(row[field]) for field in fields.split(",")) for row in rows)


def score(server: OwnServer, quantize: str, text: str, tokens: int, window: int) -> QuantizationScore:
    """Score the beginning of ``text``, ``tokens`` long."""
    text = text[: 16 * tokens]  # more characters than a token has
    ids = server.post("/tokenize", {"prompt": text})["tokens"][:tokens]
    started, logprobs = time.monotonic(), []
    for start in range(0, len(ids), window):
        body = {"model": "base", "prompt": ids[start : start + window], "max_tokens": 0, "echo": True, "logprobs": 0}
        answer = server.post("/v1/completions", body)
        logprobs += [value for value in answer["choices"][0]["logprobs"]["token_logprobs"] if value is not None]
    scored = time.monotonic()
    return QuantizationScore(
        quantize=quantize,
        base_bytes=int(server.metric("hotswap_base_bytes")),
        engine_bytes=server.private_bytes()["engine"],
        tokens=len(logprobs),
        perplexity=math.exp(-sum(logprobs) / len(logprobs)),
        seconds=scored - started,
        decode_rate=decode_rate(server),
    )


def decode_rate(server: OwnServer, short: int = 8, long: int = 72) -> float:
    """Tokens a second of one stream, between its first ones and its last."""
    seconds = []
    for count in (short, long):
        started = time.monotonic()
        body = {"model": "base", "prompt": "Once", "max_tokens": count, "temperature": 0, "ignore_eos": True}
        server.post("/v1/completions", body)
        seconds.append(time.monotonic() - started)
    return (long - short) / (seconds[1] - seconds[0])


def table(scores: Sequence[QuantizationScore]) -> str:
    """Markdown. The change is against the first quantization."""
    rows = [
        "| quantize | base, MB | engine process, MB | perplexity | change | scored, tokens/s | decoded, tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {s.quantize} | {s.base_bytes / 1e6:.1f} | {s.engine_bytes / 1e6:.0f} | {s.perplexity:.3f} | "
        f"{s.perplexity / scores[0].perplexity - 1:+.2%} | {s.tokens / s.seconds:.0f} | {s.decode_rate:.0f} |"
        for s in scores
    ]
    return "\n".join([*rows, "", f"{scores[0].tokens:,} tokens scored"])


if __name__ == "__main__":
    sys.exit(main())
