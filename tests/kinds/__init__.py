"""Adapters of every served kind, as peft itself configures them: what the tests of all kinds run over.

A module here is a family of kinds, as in ``adapters.kinds``, and holds ``CASES``; a new kind adds a case, and is then
tested alone and mixed with all others, over every executor and quantization.
"""

from __future__ import annotations

from tests.kinds import activations, delta, factors, lora, prompt, replacement, rotation, shared_factors
from tests.kinds.case import Case

# The random weights of a case, and its place in a batch of all kinds, follow from its number. Cases that are not named
# here come after these, so that a new one changes none of them.
ORDER = [
    "fourierft", "fourierft-patterns", "shira", "shira-r1", "c3a", "c3a-patterns", "waveft", "waveft-db4",
    "waveft-coif2", "waveft-direct", "hira", "hira-patterns", "glora", "glora-vector", "glora-constant",
    "glora-none", "osf", "osf-patterns", "deft", "deft-qr", "para", "peanut", "peanut-deep", "adalora",
    "adalora-kept", "adalora-without-alpha", "vera", "vera-drawn", "pvera", "pvera-drawn", "loha",
    "loha-of-higher-rank", "loha-patterns", "lokr", "lokr-whole", "lokr-both", "lokr-factor", "randlora",
    "randlora-drawn", "randlora-sparse", "randlora-very-sparse", "vblora", "vblora-topk", "vblora-top1",
    "tinylora", "tinylora-drawn", "tinylora-embedding", "unilora", "unilora-saved", "unilora-longer", "gralora",
    "gralora-hybrid", "delora", "delora-patterns", "frod", "frod-mixed", "frod-diagonal", "lora-r4", "lora-r8",
    "lora-r8-attention", "rslora-r16", "lora-patterns", "lora-bias", "lora-bias-all", "lora-bias-on-b", "dora-r4",
    "dora-rslora-patterns", "dora-bias", "lora-embedding", "lora-head", "dora-embedding-and-head", "lora-tied",
    "bdlora", "bottleneck-houlsby", "bottleneck-pfeiffer", "freeze-last-layer", "freeze-norm", "freeze-embedding",
    "prefix-16", "prefix-21", "prefix-5", "prompt-7", "prompt-20", "p-tuning-mlp", "p-tuning-lstm",
    "multitask-prompt", "cpt", "cartridge", "oft-8", "oft-r4", "oft-exact", "oft-shared", "oft-constrained",
    "oft-terms", "oft-embedding", "boft-4", "boft-butterfly", "boft-wide", "boft-num", "hra-r4", "hra-r3",
    "hra-orthogonal", "miss-r8", "miss-padded", "miss-mini", "miss-bat", "miss-random", "road-1", "road-2",
    "road-4", "ia3", "ia3-regex", "ia3-attention", "ln-tuning", "ln-tuning-some", "supertuning",
    "supertuning-low-rank", "beft", "trainable-tokens", "trainable-tokens-head", "lora-tokens",
    "lora-tokens-apart", "lora-tokens-alike", "lora-head-saved", "lora-embedding-and-norms-saved",
    "lora-embedding-and-head-saved", "lora-saved-tied", "lora-saved-in-lora", "lora-layer-saved",
]  # fmt: skip

_FAMILIES = (activations, delta, factors, lora, prompt, replacement, rotation, shared_factors)
_found: dict[str, Case] = {name: case for family in _FAMILIES for name, case in family.CASES.items()}
CASES: dict[str, Case] = {name: _found[name] for name in dict.fromkeys([*ORDER, *_found])}
