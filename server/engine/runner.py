"""What the engine needs of a model: token ids and block tables in, logits out.

The engine does not know what runs behind this: architecture, quantization, device and adapter mathematics are
the runner's own business.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from adapters.ops import Adapter
from server.model.inputs import ModelInput
from server.model.prepared import PreparedAdapter
from server.registry import AdapterKey


class Runner(Protocol):
    """A resident base model with its KV cache and the adapters installed on it.

    Only ``prepare`` may be called from another thread than the one that steps.
    """

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""

    @property
    def num_blocks(self) -> int:
        """KV blocks, numbered from 0; all of them are the engine's to hand out."""

    @property
    def block_size(self) -> int:
        """Positions in one KV block."""

    @property
    def max_model_len(self) -> int:
        """The most positions of one sequence."""

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end an output unless the request says otherwise."""

    @property
    def start_ids(self) -> list[int]:
        """Tokens that the decoder starts from after an encoder has read the prompt; empty without an encoder."""

    @property
    def base_fingerprint(self) -> str:
        """Identifies the base's weights; part of every KV block's hash."""

    @property
    def adapter_bytes(self) -> int:
        """Memory of all installed adapters."""

    def execute(self, inputs: ModelInput) -> Tensor:
        """Compute one step; logits fp32 [sum(len(s.logits_at)), width] in the order of ``inputs.sequences``.

        ``width`` is ``vocab_size``, or that of the adapter in the batch that knows the most tokens; logits of tokens
        that a row's adapter does not have are minus infinity.

        Must be safe to repeat on a part of the sequences after it raised: all writes are to the positions given.
        """

    def prepare(self, path: Path) -> PreparedAdapter:
        """Read, validate and place the package in ``path``, in the loader's thread.

        Raises AdapterError.
        """

    def install(self, key: AdapterKey, adapter: Adapter) -> None:
        """Make a prepared adapter usable under ``key``, between two steps. Raises AdapterError."""

    def remove(self, key: AdapterKey) -> None:
        """Forget an installed adapter, between two steps."""

    def write_prefix(self, key: AdapterKey, block_table: list[int]) -> None:
        """Write the KV of an installed prefix adapter to positions ``0 .. num_virtual_tokens`` of these blocks."""
