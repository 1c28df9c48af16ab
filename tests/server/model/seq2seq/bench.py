"""A runner of an encoder-decoder driven by hand, every row of it held against peft running that row's adapter alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.model_runner import ModelRunner, load_runner
from tests.bounds import LOGITS, SEQ2SEQ_LOGITS, packed_logits
from tests.server.model.seq2seq import support

BLOCK_SIZE = 4
TOLERANCE = SEQ2SEQ_LOGITS


def random_tokens(length: int, seed: int) -> list[int]:
    """Tokens below the special ones."""
    tokens: list[int] = torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return tokens


@dataclass
class Row:
    """A sequence being fed to the runner by hand, with blocks of its own."""

    adapter: Path | None
    key: AdapterKey | None
    source: list[int]
    target: list[int]
    virtual: int
    given: int
    blocks: list[int]
    done: int = 0
    fed: int = 0

    def take(self, count: int) -> SequenceInput:
        """The next ``count`` tokens of the decoder, the first time after the whole source; logits at each."""
        decoder_start = self.virtual + len(self.source)
        ids = [VIRTUAL] * self.virtual + self.source + [support.START, *self.target]
        end = decoder_start + self.fed + count
        assert end <= len(ids), "the row has too few tokens left"
        start, self.done, self.fed = self.done, end, self.fed + count
        wanted = list(range(end - count - start, end - start))
        return SequenceInput(self.key, ids[start:end], start, self.blocks, wanted, decoder_start)

    def forget(self) -> None:
        """As a preempted sequence: everything is to be computed again."""
        self.done, self.fed = self.given, 0


class Bench:
    """A runner, its installed adapters, and rows over hand-made block tables."""

    def __init__(
        self, base: Path, adapters: Mapping[str, Path], quantize: str = "none", dtype: str = "float32"
    ) -> None:
        self.base, self.adapters, self.quantize = base, adapters, quantize
        config = EngineConfig(
            model=str(base), quantize=quantize, dtype=dtype, kv_dtype=dtype, kv_cache_gb=0.02, block_size=BLOCK_SIZE,
            threads=1,
        )  # fmt: skip
        self.runner: ModelRunner = load_runner(config)
        self.keys = {name: AdapterKey(name, 1, name) for name in adapters}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.next_block = 0
        for name, path in adapters.items():
            adapter = self.runner.prepare(path).adapter
            self.runner.install(self.keys[name], adapter)
            virtual = adapter.num_virtual_tokens
            self.sizes[name] = (virtual, virtual if adapter.prefix is not None else 0)

    def row(self, name: str | None, source: int, target: int, seed: int) -> Row:
        virtual, given = self.sizes[name] if name else (0, 0)
        need = (virtual + source + 1 + target + BLOCK_SIZE - 1) // BLOCK_SIZE
        blocks = list(range(self.next_block, self.next_block + need))
        self.next_block += need
        path, key = (self.adapters[name], self.keys[name]) if name else (None, None)
        if key is not None and given:
            self.runner.write_prefix(key, blocks)
        tokens = random_tokens(source, seed), random_tokens(target, seed + 1000)
        return Row(path, key, *tokens, virtual, given, blocks, done=given)

    def step(self, rows: list[Row], counts: list[int]) -> None:
        """Feed ``counts`` decoder tokens and compare the logits after each with the oracle."""
        firsts = [row.fed for row in rows]
        got = self.runner.execute(ModelInput([r.take(n) for r, n in zip(rows, counts, strict=True)]))
        for row, first, logits in zip(rows, firsts, torch.split(got, counts), strict=True):
            fed = row.target[: row.fed - 1]
            want = support.logits(self.base, row.adapter, row.source, fed, self.quantize)[first:]
            torch.testing.assert_close(logits, want, rtol=0, atol=TOLERANCE + packed_logits(self.quantize) - LOGITS)
