"""What is asked of which server, and what its figures are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Figure = Literal["tok_s", "ttft_p50_ms", "itl_p50_ms", "itl_together_p50_ms", "pss_mb"]
Asked = Literal["base", "one", "all"]


@dataclass(frozen=True)
class Load:
    """A closed loop of ``concurrency`` streams against a server that holds ``adapters`` (a set of ``servers``).

    ``asked`` is whose answers are wanted: the base's, one adapter's, or all adapters' in turn. Beside a ``neighbour``
    another process keeps one core busy; no request starts after ``seconds`` of that, since some servers then take one
    for a token. Beside ``rivals`` only the loads so marked are run.
    """

    name: str
    adapters: str
    asked: Asked
    concurrency: int
    requests: int
    prompt_tokens: int = 128
    max_tokens: int = 64
    neighbour: bool = False
    rivals: bool = False
    seconds: float | None = None


CACHE_TOKENS = 8192  # of rivals, and of the set "sized": keys and values of so many, all in use when its load ends
# The two at a context ask once a stream, all at once, and for so many tokens that the first answer goes on after the
# last prompt: decode at a context is measured over the steps between, in which all generate.
# Servers in turn, each with its loads: one start of a server does them all.
LOADS = (
    Load("base, 1 stream", "none", "base", 1, 4, rivals=True),
    Load("base, 8 streams", "none", "base", 8, 24, rivals=True),
    Load("base, 32 streams", "none", "base", 32, 64, rivals=True),
    Load("base, 1 stream, beside a busy process", "none", "base", 1, 4, neighbour=True, rivals=True, seconds=20),
    Load("base, 8 streams, after 64 tokens", "none", "base", 8, 8, prompt_tokens=32, max_tokens=96),
    Load("base, 8 streams, after 1,024 tokens", "none", "base", 8, 8, prompt_tokens=900, max_tokens=400),
    Load("one LoRA, 1 stream", "one", "one", 1, 4, rivals=True),
    Load("base, 8 streams, 16 LoRA idle", "sixteen", "base", 8, 24),
    Load("16 LoRA, 8 streams", "sixteen", "all", 8, 24, rivals=True),
    Load("16 LoRA, 32 streams", "sixteen", "all", 32, 64, rivals=True),
    Load("16 LoRA, 16 streams", "sixteen", "all", 16, 32),
    Load("one of 16 LoRA, 16 streams", "sixteen", "one", 16, 32),
    Load("16 adapters of mixed kinds, 16 streams", "mixed", "all", 16, 32),
    Load("16 LoRA, 16 streams, to 8,192 tokens in all", "sized", "all", 16, 16, prompt_tokens=32, max_tokens=480),
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


@dataclass(frozen=True)
class Limit:
    """A bar for one figure of ours that is to stay below it."""

    name: str
    load: str
    figure: Figure
    bar: float
    stretch: float


OWN_LIMITS = (
    Limit("memory with 16 LoRA and 8,192 tokens, PSS MB", "16 LoRA, 16 streams, to 8,192 tokens in all", "pss_mb", 900,
          700),
)  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """What a ratio should reach, and what it could."""

    bar: float
    stretch: float | None = None


@dataclass(frozen=True)
class RivalBar:
    """A bar: a figure of one load of ours over a rival's figure of the same load, or of its load ``theirs``.

    ``rival`` is one of them, or empty for the best of those measured. ``bf16`` takes the place of ``goal`` on a CPU
    with units for BF16 or AMX, which multiply faster what rivals compute in.
    """

    load: str
    figure: Figure
    goal: Goal
    bf16: Goal | None = None
    rival: str = ""
    theirs: str = ""


RIVAL_BARS = (
    RivalBar("base, 1 stream", "tok_s", Goal(1.2, 2), rival="llama.cpp"),
    RivalBar("base, 1 stream", "itl_p50_ms", Goal(1.2, 2), rival="llama.cpp"),
    RivalBar("base, 1 stream", "ttft_p50_ms", Goal(1, 2)),
    RivalBar("base, 8 streams", "tok_s", Goal(2, 3), bf16=Goal(1.2, 1.5)),
    RivalBar("base, 32 streams", "tok_s", Goal(2, 3), bf16=Goal(1.2, 1.5)),
    RivalBar("one LoRA, 1 stream", "tok_s", Goal(1.1, 1.8), rival="llama.cpp"),
    RivalBar("16 LoRA, 8 streams", "tok_s", Goal(2), bf16=Goal(1), theirs="base, 8 streams"),
    RivalBar("16 LoRA, 32 streams", "tok_s", Goal(2), bf16=Goal(1), theirs="base, 32 streams"),
    RivalBar("16 LoRA, 8 streams", "tok_s", Goal(3)),
    RivalBar("16 LoRA, 32 streams", "tok_s", Goal(3)),
)
