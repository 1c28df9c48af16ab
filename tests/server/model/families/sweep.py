"""One architecture through the whole engine, adapters mixed, against peft running each of them alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.adapter_key import AdapterKey
from tests import oracle
from tests.factory import VOCAB_SIZE, make_adapter, make_base
from tests.server.engine.driver import Driver, prompt_of
from tests.server.model.families.catalog import FAMILIES, Family, model_type_of

COUNT = 3
TOLERANCE = 1e-5
STD = 0.04  # log-probabilities of magnitude 6: finer roundings than with the default
LENGTHS = {"base": 17, "LoRA": 23, "prefix": 9, "prompt": 12, "expert LoRA": 13, "base again": 5}


def lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})


def prefix(**options: Any) -> Any:
    from peft import PrefixTuningConfig

    return PrefixTuningConfig(num_virtual_tokens=6, task_type="CAUSAL_LM", **options)


def prompt(**options: Any) -> Any:
    from peft import PromptTuningConfig

    return PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM", **options)


def make_family(name: str, root: Path) -> tuple[Path, dict[str, Path]]:
    """A tiny base of the family ``name`` and its adapters by kind, saved by peft."""
    family = FAMILIES[name]
    base = make_base(root / "base", model_type=model_type_of(name), std=STD, **family.config)
    adapters = {
        "LoRA": make_adapter(base, root / "lora", lora(**family.lora)),
        "prompt": make_adapter(base, root / "prompt", prompt(**family.virtual), std=0.3),
    }
    if not family.no_prefix:
        config = prefix(**family.virtual, **family.prefix)
        adapters["prefix"] = make_adapter(base, root / "prefix", config, std=0.3)
    if family.experts:
        config = lora(target_modules=["o_proj"], target_parameters=list(family.experts))
        adapters["expert LoRA"] = make_adapter(base, root / "experts", config, seed=2)
    return base, adapters


def measure(name: str, root: Path) -> dict[str, float]:
    """The largest |difference| of log-probabilities by kind, "base" included.

    Two waves of the same ragged prompts: chunked prefill and decode mixed, then again out of the prefix cache.
    """
    base, adapters = make_family(name, root)
    _hold_against(FAMILIES[name], base, adapters)
    driver = Driver(base)
    keys: dict[str, AdapterKey | None] = {"base": None, "base again": None}
    keys |= {kind: driver.load(kind, path) for kind, path in adapters.items()}
    prompts = {kind: prompt_of(seed, LENGTHS[kind]) for seed, kind in enumerate(keys)}
    for wave in ("first", "second"):
        for kind, key in keys.items():
            driver.submit(f"{wave} {kind}", prompts[kind], key, COUNT)
        driver.run()
    driver.engine.check_integrity()
    worst: dict[str, float] = {}
    for kind in keys:
        assert driver.outputs[f"first {kind}"][0].cached_tokens == 0
        assert driver.outputs[f"second {kind}"][0].cached_tokens >= 4, f"{kind} found nothing in the prefix cache"
        for wave in ("first", "second"):
            far = difference(driver, f"{wave} {kind}", prompts[kind], adapters.get(kind))
            column = kind.removesuffix(" again")
            worst[column] = max(worst.get(column, 0.0), far)
    return worst


def _hold_against(family: Family, base: Path, adapters: dict[str, Path]) -> None:
    """Let the oracle's models attend as ``family.attention`` says; the oracle keeps them."""
    for path in (None, *adapters.values()):
        oracle._model(base, path, "none").config._attn_implementation = family.attention


def difference(driver: Driver, name: str, prompt: list[int], path: Path | None) -> float:
    """The largest |difference| of a request's log-probabilities, over its tokens and the whole vocabulary."""
    tokens = driver.tokens(name)
    want = oracle.logits(driver.base, path, prompt + tokens[:-1])[-len(tokens) :].double().log_softmax(-1)
    assert tokens == want.argmax(-1).tolist()
    return float((logprobs(driver, name) - want).abs().max())


def logprobs(driver: Driver, name: str) -> Tensor:
    """What a request was told of every token, [tokens, vocab_size]."""
    entries = [entry for output in driver.outputs[name] for entry in output.logprobs or []]
    told = torch.full((len(entries), VOCAB_SIZE), float("nan"))
    for row, entry in zip(told, entries, strict=True):
        ids, values = zip(*entry.top, strict=True)
        row[list(ids)] = torch.tensor(values)
    return told
