"""A small causal transformer with a real paged KV cache, and the same model without blocks to compare with.

Logits depend on every position before them through what lies in the blocks, so a wrong block table, a missing copy or
a block overwritten too early changes them. Slots never written hold NaN.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.combining import Member, combine
from adapters.errors import PackageError
from adapters.ops import Adapter, LowRank, PrefixKV, PromptEmbeds
from server.adapter_key import AdapterKey
from server.model.host_tier import HostTier
from server.model.inputs import VIRTUAL, ModelInput, SequenceInput
from server.model.outputs import ModelOutput
from server.model.prepared import PreparedAdapter

VOCAB, HIDDEN, LAYERS, EOS = 64, 16, 2, 63
RAISES, NOT_FINITE = 61, 62  # prompts with these tokens make the model raise, or compute NaN


class ToyRunner:
    """Satisfies ``server.engine.executor.Runner``."""

    vocab_size = VOCAB
    base_fingerprint = "toy"
    how = "toy"
    has_exact_rows = True
    hidden_size = HIDDEN
    host: HostTier | None = None

    def __init__(self, num_blocks: int = 32, block_size: int = 4, max_model_len: int = 64) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.eos_token_ids = [EOS]
        self.start_ids: list[int] = []
        self.adapters: dict[AdapterKey, Adapter] = {}
        self.inputs: list[ModelInput] = []
        self._hidden: list[Tensor] = []  # of the step at hand, by sequence
        generator = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self._embed, self._positions = weight(VOCAB, HIDDEN), weight(max_model_len, HIDDEN) / 2
        self._q, self._k, self._v, self._o = (weight(LAYERS, HIDDEN, HIDDEN) / 4 for _ in range(4))
        self._kv = torch.full((2, LAYERS, num_blocks * block_size, HIDDEN), torch.nan, dtype=torch.float64)

    @property
    def adapter_bytes(self) -> int:
        return sum(adapter.nbytes for adapter in self.adapters.values())

    def prepare(self, path: Path, digest: str = "") -> PreparedAdapter:
        if not path.exists():
            raise PackageError("there is no package")
        return PreparedAdapter(compile_toy(load_file(path)), {"read": 0.1, "copy": 0.0})

    def combine(self, members: Sequence[Member]) -> PreparedAdapter:
        return PreparedAdapter(combine(members), {"combine": 0.0})

    def weight(self, adapter: Adapter) -> int:
        return adapter.nbytes

    def install(self, key: AdapterKey, adapter: Adapter) -> None:
        assert key not in self.adapters
        self.adapters[key] = adapter

    def remove(self, key: AdapterKey) -> None:
        del self.adapters[key]

    def write_prefix(self, key: AdapterKey, block_table: list[int]) -> None:
        prefix = self.adapters[key].prefix
        assert prefix is not None
        slots = self._slots(block_table, prefix.keys.shape[1])
        self._kv[0][:, slots] = prefix.keys[:, :, 0].double()
        self._kv[1][:, slots] = prefix.values[:, :, 0].double()

    def execute(self, inputs: ModelInput) -> Tensor:
        self.inputs.append(inputs)
        self._check_writes(inputs)
        if any(RAISES in sequence.token_ids for sequence in inputs.sequences):
            raise RuntimeError("the toy model was asked to raise")
        kv = self._kv.view(2, LAYERS, self.num_blocks, self.block_size, HIDDEN)
        for source, target in inputs.copies:
            kv[:, :, target] = kv[:, :, source]
        rows = [self._forward(sequence) for sequence in inputs.sequences]
        return torch.cat(rows).float() if rows else torch.zeros(0, VOCAB)

    def compute(self, inputs: ModelInput) -> ModelOutput:
        self._hidden = []
        return ModelOutput(self.execute(inputs), [rows for rows in self._hidden if len(rows)])

    def reference(self, key: AdapterKey | None, token_ids: list[int]) -> Tensor:
        """Logits at every position of ``token_ids`` (a prompt and outputs), computed at once and without blocks."""
        return self._alone(key, token_ids).logits

    def reference_hidden(self, key: AdapterKey | None, token_ids: list[int]) -> Tensor:
        """The hidden states likewise."""
        return self._alone(key, token_ids).hidden[0]

    def _alone(self, key: AdapterKey | None, token_ids: list[int]) -> ModelOutput:
        adapter = self.adapters[key] if key else None
        alone = ToyRunner(num_blocks=1, block_size=self.max_model_len, max_model_len=self.max_model_len)
        start = 0
        if key and adapter:
            alone.adapters[key] = adapter
            if adapter.prefix is not None:
                alone.write_prefix(key, [0])
                start = adapter.num_virtual_tokens
            elif adapter.prompt is not None:
                token_ids = [VIRTUAL] * adapter.num_virtual_tokens + token_ids
        wanted = list(range(token_ids.count(VIRTUAL), len(token_ids)))
        return alone.compute(ModelInput([SequenceInput(key, token_ids, start, [0], wanted, hidden_at=wanted)]))

    def greedy(self, key: AdapterKey | None, prompt: list[int], count: int) -> list[int]:
        """What greedy decoding of ``prompt`` must give."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.reference(key, tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def _forward(self, sequence: SequenceInput) -> Tensor:
        adapter = self.adapters[sequence.adapter] if sequence.adapter else None
        end = sequence.start + len(sequence.token_ids)
        slots = self._slots(sequence.block_table, end)
        hidden = self._inputs(sequence, adapter) + self._positions[sequence.start : end]
        later = torch.arange(end)[None] > torch.arange(sequence.start, end)[:, None]
        for layer in range(LAYERS):
            values = hidden @ self._v[layer]
            for op in adapter.ops.get(f"layers.{layer}.v", ()) if adapter else ():
                assert isinstance(op, LowRank)
                values = values + hidden @ op.a.double() @ op.b.double()
            self._kv[0, layer, slots[sequence.start :]] = hidden @ self._k[layer]
            self._kv[1, layer, slots[sequence.start :]] = values
            scores = (hidden @ self._q[layer]) @ self._kv[0, layer, slots].T / HIDDEN**0.5
            weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1)
            hidden = hidden + (weights @ self._kv[1, layer, slots]) @ self._o[layer]
        if NOT_FINITE in sequence.token_ids:
            hidden = hidden * torch.nan
        self._hidden.append(hidden[list(sequence.hidden_at)].float())
        logits = hidden @ self._embed.T
        logits[:, [RAISES, NOT_FINITE]] = -100.0  # never an output
        return logits[sequence.logits_at]

    def _inputs(self, sequence: SequenceInput, adapter: Adapter | None) -> Tensor:
        rows = self._embed[torch.tensor(sequence.token_ids).clamp(min=0)]
        for i, token in enumerate(sequence.token_ids):
            if token == VIRTUAL:
                assert adapter is not None
                assert adapter.prompt is not None
                rows[i] = adapter.prompt.embeds[sequence.start + i].double()
        return rows

    def _slots(self, block_table: list[int], count: int) -> Tensor:
        blocks = torch.tensor(block_table)[:, None] * self.block_size
        slots = (blocks + torch.arange(self.block_size)).flatten()[:count]
        assert len(slots) == count, "the block table is long enough"
        return slots

    def _check_writes(self, inputs: ModelInput) -> None:
        """No sequence may write a block that another one of the batch uses."""
        uses = Counter(block for sequence in inputs.sequences for block in sequence.block_table)
        for sequence in inputs.sequences:
            assert sequence.token_ids
            end = sequence.start + len(sequence.token_ids)
            first, last = sequence.start // self.block_size, (end - 1) // self.block_size
            assert all(uses[block] == 1 for block in sequence.block_table[first : last + 1])


def compile_toy(tensors: dict[str, Tensor]) -> Adapter:
    """The adapter in a toy package, by the names of its tensors."""
    if "keys" in tensors:
        return Adapter("prefix", prefix=PrefixKV(tensors["keys"], tensors["values"]))
    if "embeds" in tensors:
        return Adapter("prompt", prompt=PromptEmbeds(tensors["embeds"]))
    return Adapter("lora", {f"layers.{i}.v": (LowRank(tensors["a"].T, tensors["b"].T),) for i in range(LAYERS)})


def make_package(path: Path, kind: str, *, seed: int = 1, num_virtual_tokens: int = 6) -> Path:
    """Save a random toy package of ``kind`` (lora, prefix, prompt) as the file ``path``; returns ``path``."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "lora": {"a": (2, HIDDEN), "b": (HIDDEN, 2)},
        "prefix": dict.fromkeys(("keys", "values"), (LAYERS, num_virtual_tokens, 1, HIDDEN)),
        "prompt": {"embeds": (num_virtual_tokens, HIDDEN)},
    }
    save_file({name: torch.randn(*shape, generator=generator) for name, shape in shapes[kind].items()}, path)
    return path
