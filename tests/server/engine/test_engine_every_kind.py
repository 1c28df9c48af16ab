"""Every adapter kind in one continuous batch, every logit held against peft running that request alone.

The base is scaled so that logits are of order one: 1e-6 is then a few roundings of fp32 over the whole model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from bases import packed
from hotkernels import native
from hotkernels.changed_linear import ChangedLinear
from hotkernels.linear import NATIVE_LINEAR, NATIVE_LINEAR_UPDATED, linear
from hotkernels.native import Function
from hotkernels.program import Program
from hotkernels.row_ops import RowOpRows
from server.adapter_key import AdapterKey
from server.engine.messages import FinishReason
from server.model.inputs import ModelInput
from server.model.lean import parts
from tests import oracle
from tests.bounds import LOGITS, packed_logits
from tests.factory import make_base
from tests.kinds import CASES
from tests.kinds.case import Case
from tests.server.engine.driver import Driver, prompt_of

TOLERANCE = 2e-6  # sixteen roundings of a logit near 2, where bounds.LOGITS would allow for hundreds
EFFECT = 1e-3  # what an adapter must change at least, so that the tolerance means something
COUNT = 6
_PRODUCTS = (NATIVE_LINEAR, NATIVE_LINEAR_UPDATED)
ACTIVATED, INVOCATION = "alora", [301, 302, 303]  # a LoRA that acts from these tokens on


class Recorder:
    """Keeps the logits that the runner gave each request, and counts base products by module."""

    def __init__(self, driver: Driver) -> None:
        self.logits: dict[str, list[Tensor]] = {}
        self.steps = 0
        self.calls: dict[str, int] = {}
        self._driver = driver
        self._execute = driver.engine.runner.execute
        driver.engine.runner.execute = self._recorded  # type: ignore[method-assign]

    def _recorded(self, inputs: ModelInput) -> Tensor:
        holders = {tuple(r.block_table): r.request_id for r in self._driver.engine.scheduler.running}
        logits = self._execute(inputs)
        self.steps += 1
        row = 0
        for sequence in inputs.sequences:
            count = len(sequence.logits_at)
            if count and (name := holders.get(tuple(sequence.block_table))):
                self.logits.setdefault(name, []).append(logits[row + count - 1])
            row += count
        return logits


@pytest.fixture(scope="module")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("toy") / "toy", std=0.04, attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="module")
def toy_adapters(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    activated = LoraConfig(r=4, alora_invocation_tokens=INVOCATION, target_modules="all-linear", task_type="CAUSAL_LM")
    cases = {**CASES, ACTIVATED: Case(lambda: activated)}
    return {name: case.save(toy_base, root / name, seed=i) for i, (name, case) in enumerate(cases.items())}


BLOCK_BYTES = 4 * 2 * 2 * (16 + 16) * 4  # positions, layers, heads, key and value, fp32


ROOMY = 4000


class MixedEngine:
    """An engine with every adapter resident, and what it was asked.

    ``rounded`` is the base with the weights that ``quantize`` makes of it, in plain fp32: what the oracle runs on.
    """

    def __init__(
        self,
        base: Path,
        adapters: Mapping[str, Path],
        num_blocks: int = ROOMY,
        quantize: str = "none",
        rounded: Path | None = None,
    ) -> None:
        self.adapters, self.oracle_base = adapters, rounded or base
        self.tolerance = TOLERANCE + (packed_logits(quantize) - LOGITS) / 4  # logits are smaller than those of TINY
        kv = num_blocks * BLOCK_BYTES / 1e9
        settings = {"max_num_batched_tokens": 96, "max_num_seqs": 256, "quantize": quantize}
        settings |= {"speculation": "off", "kv_dtype": "float32"}
        self.driver = Driver(base, kv_cache_gb=kv, **settings)
        self.keys: dict[str, AdapterKey | None] = {n: self.driver.load(n, path) for n, path in adapters.items()}
        self.keys |= {"base": None, "base again": None}
        self.prompts = {name: prompt_of(i, 9 + i % 23) for i, name in enumerate(self.keys)}
        self.prompts[ACTIVATED][6:6] = INVOCATION
        self.recorder = Recorder(self.driver)

    def wave(self, wave: str) -> None:
        """Everybody at once, and one request that is cancelled midway."""
        for name, key in self.keys.items():
            self.driver.submit(f"{wave}/{name}", self.prompts[name], key, COUNT)
        self.driver.submit(f"{wave}/cancelled", prompt_of(99, 40), self.keys["lora-r8"], 40)
        for _ in range(7):
            self.driver.step()
        self.driver.engine.abort(f"{wave}/cancelled")
        self.driver.run()

    def check(self, wave: str) -> None:
        """Every logit of every request of the wave."""
        errors = {name: self._error(f"{wave}/{name}", name) for name in self.keys}
        wrong = {name: error for name, error in errors.items() if not error <= self.tolerance}
        assert not wrong, f"of {len(errors)} requests: {wrong}"

    def _error(self, request: str, name: str) -> float:
        tokens, adapter = self.driver.tokens(request), self.adapters.get(name)
        assert len(tokens) == COUNT, request
        assert self.driver.outputs[request][-1].finish_reason is FinishReason.LENGTH
        sequence = self.prompts[name] + tokens[:-1]
        if name == ACTIVATED and adapter is not None:
            want = oracle.activated_logits(self.oracle_base, adapter, self.prompts[name], sequence)[-COUNT:]
        else:
            want = oracle.logits(self.oracle_base, adapter, sequence)[-COUNT:]
        if adapter is not None:
            plain = oracle.logits(self.oracle_base, None, sequence)[-COUNT:]
            effect = (want[:, : plain.shape[1]] - plain).abs().max()
            assert effect > EFFECT, f"{name} changes logits by {effect:.1e} only"
        got = torch.stack(self.recorder.logits[request][-COUNT:])[:, : want.shape[-1]]
        return float((got - want).abs().max())


def test_mixed_and_from_the_prefix_cache(toy_base: Path, toy_adapters: Mapping[str, Path]) -> None:
    mixed = MixedEngine(toy_base, toy_adapters)
    for wave in ("first", "again"):
        mixed.wave(wave)
        mixed.check(wave)
    for name in mixed.keys:
        cached = mixed.driver.outputs[f"again/{name}"][0].cached_tokens
        assert cached > 0 or len(mixed.prompts[name]) < 12, f"{name} found nothing in the cache"
    mixed.driver.engine.check_integrity()


@torch.no_grad()
def round_base(base: Path, quantize: str, path: Path) -> Path:
    """``base`` with the weights that bitsandbytes keeps of it, in plain fp32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        if quantize == "int8":
            rounded, scale, _ = bnb.int8_vectorwise_quant(module.weight.data.half())
            module.weight.data = rounded.float() * scale[:, None] / 127
        else:
            module.weight.data = bnb.dequantize_4bit(*bnb.quantize_4bit(module.weight.data, quant_type=quantize))
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_mixed_over_a_quantized_base(
    toy_base: Path, toy_adapters: Mapping[str, Path], quantize: str, tmp_path: Path
) -> None:
    # peft puts FRoD's saved basis beside a factor found from a basis of the rounded weights: no adapter at all
    served = {name: path for name, path in toy_adapters.items() if not name.startswith("frod")}
    mixed = MixedEngine(toy_base, served, ROOMY, quantize, round_base(toy_base, quantize, tmp_path / "rounded"))
    mixed.wave(quantize)
    mixed.check(quantize)
    mixed.driver.engine.check_integrity()


def test_mixed_and_preempted(toy_base: Path, toy_adapters: Mapping[str, Path]) -> None:
    driver = Driver(toy_base, kv_cache_gb=ROOMY * BLOCK_BYTES / 1e9)
    for name, path in toy_adapters.items():
        driver.load(name, path)
    prefixes = sum(len(slot.prefix_blocks) for slot in driver.engine.scheduler.slots.values())
    mixed = MixedEngine(toy_base, toy_adapters, max(2 * prefixes + 2, prefixes + 60))
    mixed.wave("tight")
    assert mixed.driver.engine.stats().preemptions > 0
    mixed.check("tight")
    mixed.driver.engine.check_integrity()


def test_one_base_product_per_linear_map(
    toy_base: Path, toy_adapters: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[Program, list[tuple[int, int]]] = {}  # of each program, where its products begin, and of which weight
    add = Program.add

    def noted(self: Program, function: Function, *arguments: Any) -> None:
        if function in _PRODUCTS:
            written.setdefault(self, []).append((len(self), arguments[0]))
        add(self, function, *arguments)

    write = ChangedLinear.write

    def wrote(self: ChangedLinear, program: Program, *arguments: Any) -> None:
        for part in self._parts:
            written.setdefault(program, []).append((len(program), part.weight.address or 0))
        write(self, program, *arguments)

    monkeypatch.setattr(Program, "add", noted)
    monkeypatch.setattr(ChangedLinear, "write", wrote)
    mixed = MixedEngine(toy_base, toy_adapters)
    model = mixed.driver.engine.runner._base.model  # type: ignore[attr-defined]
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    products: Counter[tuple[str, int]] = Counter()
    names: dict[int, set[str]] = {}  # of the maps in a weight, by its id or its address
    for name, module in linears.items():
        own, joined = getattr(module, "packed", module.weight), getattr(module, "joined", None)
        for key in (id(own), getattr(own, "address", None), getattr(joined, "address", None)):
            names.setdefault(key or 0, set()).add(name)
    del names[0]

    def counted(key: int) -> None:
        products.update((name, mixed.recorder.steps) for name in names.get(key, ()))

    def counting(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
            if native.library() is None:  # else it calls a function
                counted(id(weight))
            return product(x, weight, bias)

        return call

    call, run = Function.__call__, Program.run

    def called(self: Function, *arguments: Any) -> None:
        if self in _PRODUCTS:
            counted(arguments[0])
        call(self, *arguments)

    changed = ChangedLinear.__call__

    def called_changed(self: ChangedLinear, x: Tensor, rows: RowOpRows) -> Tensor:
        for part in self._parts:
            counted(part.weight.address or 0)
        return changed(self, x, rows)

    def ran(self: Program, start: int, stop: int, variables: Any) -> None:
        for place, address in written.get(self, ()):
            if start <= place < stop:
                counted(address)
        run(self, start, stop, variables)

    monkeypatch.setattr(nn.functional, "linear", counting(nn.functional.linear))
    monkeypatch.setattr(packed, "linear", counting(linear))
    monkeypatch.setattr(parts, "linear", counting(linear))
    monkeypatch.setattr(Function, "__call__", called)
    monkeypatch.setattr(ChangedLinear, "__call__", called_changed)
    monkeypatch.setattr(Program, "run", ran)
    mixed.wave("counted")
    assert len(products) == len(linears) * mixed.recorder.steps
    assert set(products.values()) == {1}
