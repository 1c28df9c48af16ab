"""Holds a lean decoder against the model's own forward, on prompts that it has not been read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from server.model.adapter_pool import AdapterPool
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache, LayerShape
from server.model.layout import Assembled, assemble
from server.model.prepared import distance
from server.model.step import computing

Forward = Callable[[Assembled], Tensor]

BLOCK_SIZE = 16
LENGTHS = (1, 9, 37)
# Both add the same products in other orders: each of the ten sums of a layer is off by some 2**-24 times the root of
# its length, which is 1e-5 after 30 layers, and norms may make ten times more of it. A norm left out, or an angle of
# another position, moves logits by a tenth of their spread and more.
_ROUNDING = 1e-3
# Products with codes round their input to 14 bits of the largest of 32 numbers, and what differs in its last bit may be
# rounded to the other side: that weighs 2**9 times more. On the default base 0.004 is measured, for nf4.
_ROUNDING_OF_CODES = 0.03


def tolerance(quantization: str) -> float:
    """How far apart the two may be on a base that is kept so."""
    return _ROUNDING if quantization == "none" else _ROUNDING_OF_CODES


@torch.inference_mode()
def disagreement(lean: Forward, generic: Forward, layers: Sequence[LayerShape], vocab_size: int) -> float:
    """The largest distance of the two in a step that reads prompts, one that reads on, and one that decodes."""
    device = torch.device("cpu")
    found = []
    for forward in (lean, generic):
        cache = KVCache(layers, 4 * len(LENGTHS), BLOCK_SIZE, torch.float32, device)
        logits = []
        for inputs in _steps(vocab_size):
            batch = assemble(inputs, cache, AdapterPool(), device)
            with computing(batch.step):
                logits.append(forward(batch))
        found.append(torch.cat(logits))
    measured, expected = found
    return distance(measured, expected)


def _steps(vocab_size: int) -> list[ModelInput]:
    prompts = [[(31 + 7907 * i * i + 101 * n) % vocab_size for i in range(n + 5)] for n in LENGTHS]
    blocks = [list(range(4 * i, 4 * i + 4)) for i in range(len(LENGTHS))]
    steps = []
    for skipped, count in ((0, 0), (0, 4), (4, 1)):
        sequences = []
        for prompt, table, length in zip(prompts, blocks, LENGTHS, strict=True):
            start, stop = (length + skipped, length + skipped + count) if count else (0, length)
            sequences.append(SequenceInput(None, prompt[start:stop], start, table, list(range(stop - start))))
        steps.append(ModelInput(sequences))
    return steps
