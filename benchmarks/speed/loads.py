"""What is asked of which server, and what its figures are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Figure = Literal["tok_s", "ttft_p50_ms", "itl_p50_ms", "itl_together_p50_ms"]
Asked = Literal["base", "one", "all"]


@dataclass(frozen=True)
class Load:
    """A closed loop of ``concurrency`` streams against a server that holds ``adapters`` (a set of ``servers``).

    ``asked`` is whose answers are wanted: the base's, one adapter's, or all adapters' in turn. Beside a ``neighbour``
    another process keeps one core busy.
    """

    name: str
    adapters: str
    asked: Asked
    concurrency: int
    requests: int
    prompt_tokens: int = 128
    max_tokens: int = 64
    neighbour: bool = False


# The two at a context ask once a stream, all at once, and for so many tokens that the first answer goes on after the
# last prompt: decode at a context is measured over the steps between, in which all generate.
# Servers in turn, each with its loads: one start of a server does them all.
LOADS = (
    Load("base, 1 stream", "none", "base", 1, 4),
    Load("base, 8 streams", "none", "base", 8, 24),
    Load("base, 32 streams", "none", "base", 32, 64),
    Load("base, 1 stream, beside a busy process", "none", "base", 1, 4, neighbour=True),
    Load("base, 8 streams, after 64 tokens", "none", "base", 8, 8, prompt_tokens=32, max_tokens=96),
    Load("base, 8 streams, after 1,024 tokens", "none", "base", 8, 8, prompt_tokens=900, max_tokens=400),
    Load("one LoRA, 1 stream", "one", "one", 1, 4),
    Load("base, 8 streams, 16 LoRA idle", "sixteen", "base", 8, 24),
    Load("16 LoRA, 8 streams", "sixteen", "all", 8, 24),
    Load("16 LoRA, 32 streams", "sixteen", "all", 32, 64),
    Load("16 LoRA, 16 streams", "sixteen", "all", 16, 32),
    Load("one of 16 LoRA, 16 streams", "sixteen", "one", 16, 32),
    Load("16 adapters of mixed kinds, 16 streams", "mixed", "all", 16, 32),
)


@dataclass(frozen=True)
class Ratio:
    """A bar: a figure of one load over a figure of another, of ours; where less is better, the other way round."""

    name: str
    load: str
    against: str
    figure: Figure
    bar: float
    stretch: float


OWN_RATIOS = (
    Ratio("16 distinct against one adapter", "16 LoRA, 16 streams", "one of 16 LoRA, 16 streams", "tok_s", 0.95, 0.98),
    Ratio("idle adapters against none", "base, 8 streams, 16 LoRA idle", "base, 8 streams", "tok_s", 0.98, 1.0),
    Ratio("mixed kinds against all LoRA", "16 adapters of mixed kinds, 16 streams", "16 LoRA, 16 streams", "tok_s", 0.8,
          0.95),
    Ratio("decode at 1,024 tokens against 64", "base, 8 streams, after 1,024 tokens",
          "base, 8 streams, after 64 tokens", "itl_together_p50_ms", 0.7, 0.85),
    Ratio("beside one busy process", "base, 1 stream, beside a busy process", "base, 1 stream", "tok_s", 0.4, 0.5),
    Ratio("16 LoRA against the base", "16 LoRA, 8 streams", "base, 8 streams", "tok_s", 0.9, 0.95),
)  # fmt: skip
