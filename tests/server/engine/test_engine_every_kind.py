"""Every adapter kind in one continuous batch, every logit held against peft running that request alone.

The base is scaled so that logits are of order one: 1e-6 is then a few roundings of fp32 over the whole model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hotkernels.changed_linear import ChangedLinear
from hotkernels.linear import NATIVE_LINEAR, NATIVE_LINEAR_UPDATED
from hotkernels.native import Function
from hotkernels.program import Program
from server.adapter_key import AdapterKey
from server.engine.messages import FinishReason
from server.model.inputs import ModelInput
from server.model.outputs import ModelOutput
from tests import oracle
from tests.bounds import LOGITS, packed_logits
from tests.factory import make_base
from tests.kinds import CASES
from tests.kinds.case import Case
from tests.once import Once
from tests.server.engine.driver import Driver, prompt_of

TOLERANCE = 2e-6  # sixteen roundings of a logit near 2, where bounds.LOGITS would allow for hundreds
EFFECT = 1e-3  # what an adapter must change at least, so that the tolerance means something
COUNT = 6
_PRODUCTS = (NATIVE_LINEAR, NATIVE_LINEAR_UPDATED)
ACTIVATED, INVOCATION = "alora", [301, 302, 303]  # a LoRA that acts from these tokens on


class Recorder:
    """Keeps the logits that the runner gave each request, and counts steps."""

    def __init__(self, driver: Driver) -> None:
        self.logits: dict[str, list[Tensor]] = {}
        self.steps = 0
        self._driver = driver
        self._compute = driver.engine.runner.compute
        driver.engine.runner.compute = self._recorded  # type: ignore[method-assign]

    def _recorded(self, inputs: ModelInput) -> ModelOutput:
        holders = {tuple(r.block_table): r.request_id for r in self._driver.engine.scheduler.running}
        output = self._compute(inputs)
        self.steps += 1
        row = 0
        for sequence in inputs.sequences:
            count = len(sequence.logits_at)
            if count and (name := holders.get(tuple(sequence.block_table))):
                self.logits.setdefault(name, []).append(output.logits[row + count - 1])
            row += count
        return output


@pytest.fixture(scope="module")
def toy_base(once: Once) -> Path:
    return once.make("toy", lambda path: make_base(path, std=0.04, attention_bias=True, mlp_bias=True))


@pytest.fixture(scope="module")
def toy_adapters(toy_base: Path, once: Once) -> dict[str, Path]:
    activated = LoraConfig(r=4, alora_invocation_tokens=INVOCATION, target_modules="all-linear", task_type="CAUSAL_LM")
    cases = {**CASES, ACTIVATED: Case(lambda: activated)}
    return {
        name: once.make(f"toy-adapters/{name}", partial(case.save, toy_base, seed=i))
        for i, (name, case) in enumerate(cases.items())
    }


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


@pytest.mark.parametrize("quantize", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
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


class BaseProducts:
    """Counts products with the base's weights step by step, each weight by its address; made before the engine is.

    A product is a call of the library, alone or in a program, or torch's own.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._steps = [Counter[int]()]
        self._written: dict[Program, list[tuple[int, int]]] = {}  # where products begin, and of which weight
        self._note(Program, "add", self._added)
        self._note(Program, "run", self._ran)
        self._note(ChangedLinear, "write", self._wrote)
        self._note(ChangedLinear, "__call__", lambda changed, *_: self._made(_addresses(changed)))
        self._note(Function, "__call__", self._called)
        self._note(nn.functional, "linear", lambda _, weight, *__: self._made([weight.data_ptr()]))

    def steps(self, runner: Any) -> list[Counter[int]]:
        """The products of every step that ``runner`` makes from now on, in a list that grows."""
        self._steps = []
        self._note(runner, "compute", lambda _: self._steps.append(Counter()))
        return self._steps

    def _note(self, owner: Any, name: str, note: Callable[..., object]) -> None:
        """Give ``note`` the arguments of a function before each call of it."""
        function = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            note(*arguments)
            return function(*arguments, **named)

        self._monkeypatch.setattr(owner, name, call)

    def _made(self, addresses: Sequence[int]) -> None:
        self._steps[-1].update(addresses)

    def _called(self, function: Function, *arguments: Any) -> None:
        if function in _PRODUCTS:
            self._made(arguments[:1])

    def _added(self, program: Program, function: Function, *arguments: Any) -> None:
        if function in _PRODUCTS:
            self._written.setdefault(program, []).append((len(program), arguments[0]))

    def _wrote(self, changed: ChangedLinear, program: Program, *_: Any) -> None:
        self._written.setdefault(program, []).extend((len(program), address) for address in _addresses(changed))

    def _ran(self, program: Program, start: int, stop: int, _: Any) -> None:
        self._made([address for place, address in self._written.get(program, ()) if start <= place < stop])


def _addresses(changed: ChangedLinear) -> list[int]:
    """Of the weights of its parts, where the library knows them."""
    return [part.weight.address for part in changed._parts if part.weight.address is not None]


def test_one_base_product_per_linear_map(
    toy_base: Path, toy_adapters: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    products = BaseProducts(monkeypatch)
    mixed = MixedEngine(toy_base, toy_adapters)
    runner = mixed.driver.engine.runner
    weights: dict[str, set[int]] = {}  # alone, and joined with its neighbours'
    for name, module in runner._base.model.named_modules():  # type: ignore[attr-defined]
        if isinstance(module, nn.Linear):
            own = [getattr(module, kind, None) for kind in ("packed", "joined")]
            weights[name] = {module.weight.data_ptr(), *(weight.address for weight in own if weight is not None)}
    steps = products.steps(runner)
    mixed.wave("counted")
    assert len(steps) == mixed.recorder.steps > 0
    for step in steps:
        assert {name: sum(step[address] for address in weights[name]) for name in weights} == dict.fromkeys(weights, 1)
