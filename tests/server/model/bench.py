"""A runner driven by hand, every row of it held against peft running that row's adapter alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.model_runner import ModelRunner, load_runner
from tests import oracle
from tests.bounds import LOGITS

BLOCK_SIZE = 4
TOLERANCE = LOGITS


@dataclass
class Row:
    """A sequence being fed to the runner by hand, with blocks of its own."""

    adapter: Path | None
    key: AdapterKey | None
    tokens: list[int]
    virtual: int
    blocks: list[int]
    done: int = 0
    fed: list[int] = field(default_factory=list)

    def take(self, count: int) -> SequenceInput:
        """The next ``count`` positions, with logits wanted at the last."""
        ids = ([VIRTUAL] * self.virtual + self.tokens)[self.done : self.done + count]
        assert len(ids) == count, "the row has too few tokens left"
        start, self.done = self.done, self.done + count
        self.fed += [t for t in ids if t != VIRTUAL]
        return SequenceInput(self.key, ids, start, self.blocks, [count - 1])


class Bench:
    """A runner, its installed adapters, and rows over hand-made block tables."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        self.base = base
        config = EngineConfig(
            model=str(base), quantize="none", dtype="float32", kv_cache_gb=0.02, block_size=BLOCK_SIZE, threads=1
        )
        self.runner: ModelRunner = load_runner(config)
        self.adapters = adapters
        self.keys = {name: AdapterKey(name, 1, name) for name in adapters}
        self.sizes: dict[str, tuple[int, bool]] = {}
        for name, path in adapters.items():
            adapter = self.runner.prepare(path).adapter
            self.runner.install(self.keys[name], adapter)
            self.sizes[name] = (adapter.num_virtual_tokens, adapter.prefix is not None)
        self.next_block = 0

    def row(self, name: str | None, length: int, seed: int) -> Row:
        virtual, given = self.sizes[name] if name else (0, False)
        need = (virtual + length + BLOCK_SIZE - 1) // BLOCK_SIZE
        blocks = list(range(self.next_block, self.next_block + need))
        self.next_block += need
        tokens = torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        row = Row(self.adapters[name] if name else None, self.keys[name] if name else None, tokens, virtual, blocks)
        if name and given:
            self.runner.write_prefix(self.keys[name], blocks)
            row.done = virtual
        return row

    def step(self, rows: list[Row], counts: list[int]) -> None:
        """Feed ``counts`` positions and compare the last logits of every row with the oracle."""
        got = self.runner.execute(ModelInput([r.take(n) for r, n in zip(rows, counts, strict=True)]))
        for row, logits in zip(rows, got, strict=True):
            if row.fed:
                want = oracle.logits(self.base, row.adapter, row.fed)[-1]
                torch.testing.assert_close(logits, want, rtol=0, atol=TOLERANCE)
