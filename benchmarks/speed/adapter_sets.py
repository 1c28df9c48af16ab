"""The adapters that are served: sixteen LoRA, and sixteen of mixed kinds."""

from __future__ import annotations

from pathlib import Path

from benchmarks.make_adapters import KINDS, write_adapter

COUNT = 16


def write_sets(base: Path, out: Path, names: set[str]) -> dict[str, tuple[Path, ...]]:
    """Those of the sets ``none``, ``one``, ``sixteen``, ``mixed`` and ``sized`` in ``names``, as PEFT packages.

    ``sized`` are the sixteen again, for a server with a small KV cache.
    """
    loras = tuple(out / f"l{number}" for number in range(COUNT))
    mixed = tuple(out / f"{list(KINDS)[number % len(KINDS)]}-{number}" for number in range(COUNT))
    sets = {"none": (), "one": loras[:1], "sixteen": loras, "mixed": mixed, "sized": loras}
    kinds = dict.fromkeys(loras, "lora") | {path: path.name.split("-")[0] for path in mixed}
    for seed, (path, kind) in enumerate(kinds.items()):
        if any(path in sets[name] for name in names):
            write_adapter(base, path, kind, seed)
    return {name: sets[name] for name in names}
