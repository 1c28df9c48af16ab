"""Packages of every kind, broken in every way: refused in words, or sound; never another error, never slow."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.compiling import compile_package
from adapters.kinds.registry import KINDS, REFUSED
from adapters.ops import Adapter
from adapters.package.reading import AdapterPackage, read_package
from tests.adapters.support import StockSite, load_model, refusal, spec_of
from tests.kinds import CASES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SLOW = timedelta(seconds=8)  # module patterns alone may take five
# Kinds that save the same tensors, so that a package of one is a sound package of the other.
ALIKE = [{"PROMPT_TUNING", "P_TUNING", "CPT", "CARTRIDGE", "PREFIX_TUNING"}]
# Tensors that a package may do without: trained biases, copies of what the base has or the package has elsewhere.
OPTIONAL = re.compile(
    r".*(\.bias|\.base_layer\.weight|(embed_tokens|lm_head)\.weight|original_module.*|lm_head\.trainable_tokens_delta)"
)
# Tensors that may be larger than the base asks for: tables of a grown vocabulary, and projections cut to size.
CUT = re.compile(r".*((embed_tokens|lm_head)(\.base_layer)?\.weight|original_module.*|\.p?vera_[AB])")


class Bench:
    """A base, sound packages for it, and a folder to break copies of them in."""

    def __init__(self, base: Path, adapters: Mapping[str, Path], scratch: Path) -> None:
        self.adapters, self._scratch, self._count = adapters, scratch, 0
        self._model = load_model(base)
        self.spec: BaseSpec = spec_of(base)

    def tensors(self, name: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = load_file(self.adapters[name] / WEIGHTS)
        return tensors

    def config(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.adapters[name] / CONFIG).read_text())
        return config

    @cache  # noqa: B019
    def whole(self, name: str) -> tuple[AdapterPackage, Adapter]:
        package = read_package(self.adapters[name])
        return package, compile_package(package, self.spec)

    def folder(self) -> Path:
        self._count += 1
        path = self._scratch / str(self._count)
        path.mkdir()
        return path

    def broken(
        self, name: str, config: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor] | bytes | None = None
    ) -> str:
        """The words that refuse the package ``name`` with another config or other tensors; empty when it is sound."""
        path = self.folder()
        if config is None:
            os.link(self.adapters[name] / CONFIG, path / CONFIG)
        else:
            (path / CONFIG).write_text(json.dumps(config))
        if tensors is None:
            os.link(self.adapters[name] / WEIGHTS, path / WEIGHTS)
        elif isinstance(tensors, bytes):
            (path / WEIGHTS).write_bytes(tensors)
        else:
            save_file(dict(tensors), path / WEIGHTS)
        words = refusal(lambda: self._check(name, path))
        assert words.isprintable()
        assert len(words) < 2000
        for file in (CONFIG, WEIGHTS):
            (path / file).unlink()
        return words

    def _check(self, name: str, path: Path) -> None:
        package = read_package(path)
        adapter = compile_package(package, self.spec)
        known, same = self.whole(name)
        if package.digest == known.digest:
            assert all(torch.equal(a, b) for a, b in zip(adapter.tensors(), same.tensors(), strict=True))
        assert all(bool(torch.isfinite(tensor).all()) for tensor in adapter.tensors())
        for module in [module for module in adapter.ops if module in self.spec.linears][:2]:
            self._run(module, adapter)

    def _run(self, module: str, adapter: Adapter) -> None:
        """One row through what the adapter does at a linear map."""
        out_features, in_features = self.spec.linears[module]
        x, y = torch.ones(in_features), torch.ones(out_features)
        for op in adapter.ops[module]:
            if op.SIDE == "input":
                assert op.reference(x, x, StockSite(self._model.get_submodule(module))).shape == (in_features,)
            elif module != self.spec.head:  # whose outputs may be more, or fewer
                assert op.reference(x, y, StockSite(self._model.get_submodule(module))).shape == (out_features,)


@pytest.fixture(scope="module")
def bench(tiny_base: Path, tiny_adapters: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tiny_base, tiny_adapters, tmp_path_factory.mktemp("broken"))


def some(tensors: Mapping[str, Tensor], count: int = 4) -> list[str]:
    """Names from all over the file, one of each sort among them."""
    sorts = {name.rpartition(".layers.")[2].partition(".")[2] or name: name for name in tensors}
    names = [*sorts.values()]
    return names[:: max(1, len(names) // count)]


@pytest.mark.parametrize("name", CASES)
def test_the_package_as_saved_is_sound(name: str, bench: Bench) -> None:
    assert bench.broken(name) == ""


@pytest.mark.parametrize("name", CASES)
def test_a_missing_tensor(name: str, bench: Bench) -> None:
    tensors = bench.tensors(name)
    for missing in some(tensors):
        words = bench.broken(name, tensors={n: t for n, t in tensors.items() if n != missing})
        assert words or OPTIONAL.fullmatch(missing), missing


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_too_many(name: str, bench: Bench) -> None:
    tensors = bench.tensors(name)
    first = next(iter(tensors))
    layer = re.sub(r"\.\d+\.", ".7.", first)
    for extra in ("surprise", "base_model.model.surprise.weight", f"{first}.default", *({layer} - {first})):
        assert bench.broken(name, tensors={**tensors, extra: tensors[first].clone()}), extra


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "longer": lambda t: torch.cat((t, t)),
    "one more": lambda t: torch.cat((t, t[:1])),
    "one dimension more": lambda t: t[None],
    "flat": lambda t: t.flatten() if t.dim() > 1 else t[None, :, None],
    "wider": lambda t: torch.cat((t, t), dim=-1),
    "scalar": lambda t: t.sum(dtype=t.dtype),
    "one number": lambda t: t.flatten()[:1],
}


@pytest.mark.parametrize("name", CASES)
def test_another_shape(name: str, bench: Bench) -> None:
    tensors = bench.tensors(name)
    for changed in some(tensors, 3):
        for how, change in CHANGES.items():
            new = change(tensors[changed]).contiguous().clone()
            if new.shape != tensors[changed].shape:
                assert bench.broken(name, tensors={**tensors, changed: new}) or CUT.fullmatch(changed), (changed, how)


@pytest.mark.parametrize("name", CASES)
def test_no_numbers(name: str, bench: Bench) -> None:
    tensors = bench.tensors(name)
    for changed in some({n: t for n, t in tensors.items() if t.is_floating_point() and t.numel()}, 2):
        for value in (torch.nan, torch.inf):
            new = tensors[changed].clone()
            new.view(-1)[-1:] = value
            assert "NaN or infinity" in bench.broken(name, tensors={**tensors, changed: new})
        assert bench.broken(name, tensors={**tensors, changed: tensors[changed].long()}), changed


@pytest.mark.parametrize("name", CASES)
def test_huge_numbers(name: str, bench: Bench) -> None:
    tensors = bench.tensors(name)
    huge = {n: torch.full_like(t, 3e38) if t.is_floating_point() else t for n, t in tensors.items()}
    bench.broken(name, tensors=huge)


@pytest.mark.parametrize("name", CASES)
def test_the_name_of_another_kind(name: str, bench: Bench) -> None:
    config = bench.config(name)
    own = config["peft_type"]
    for kind in {*KINDS, *REFUSED, "", "NONE", own.lower()} - {own}:
        is_alike = any({own, kind} <= group for group in ALIKE)
        assert bench.broken(name, {**config, "peft_type": kind}) or is_alike, kind


@pytest.mark.parametrize("name", CASES)
def test_a_file_cut_short_or_lengthened(name: str, bench: Bench) -> None:
    data = (bench.adapters[name] / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for end in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(data) // 2, len(data) - 1):
        assert bench.broken(name, tensors=data[:end]), f"{end} bytes"
    assert bench.broken(name, tensors=data + b"\0")


values = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30]),
    st.floats(), st.sampled_from([1e39, -1e308, 1e-320]), st.text(max_size=4),
    st.sampled_from(["all", "none", "all-linear", ".*", "(a+)+$", "(?:.*)*x", "lora_only", "\ud7ff", "["]),
    st.lists(st.integers(-1, 3) | st.text(max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["q_proj", ".*", "("]), st.integers(-1, 9) | st.floats() | st.text(), max_size=2),
)  # fmt: skip


@settings(max_examples=400, deadline=SLOW)
@given(st.data())
def test_any_value_of_any_key(bench: Bench, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*CASES]))
    config = bench.config(name)
    keys = st.sampled_from(sorted({*config, *KINDS[config["peft_type"]].config.__struct_fields__}))
    bench.broken(name, {**config, **data.draw(st.dictionaries(keys, values, min_size=1, max_size=2))})


@settings(max_examples=300, deadline=SLOW)
@given(st.data())
def test_any_header(bench: Bench, data: st.DataObject) -> None:
    """An entry of the header changed, so that shapes, types and offsets no longer agree, or agree on something else."""
    name = data.draw(st.sampled_from([*CASES]))
    raw = (bench.adapters[name] / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    entry = header[data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))]
    part = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    numbers = st.lists(st.integers(0, 70) | st.sampled_from([-1, 2**31, 2**62, 2**64]), max_size=5)
    if part == "dtype":
        entry[part] = data.draw(st.sampled_from(["F32", "F16", "BF16", "I32", "I64", "F64", "BOOL", "f32", ""]))
    elif part == "shape" and data.draw(st.booleans()):
        entry[part] = data.draw(st.permutations(entry[part]))
    else:
        entry[part] = data.draw(numbers)
    text = json.dumps(header).encode()
    bench.broken(name, tensors=len(text).to_bytes(8, "little") + text + raw[start:])


@settings(max_examples=200, deadline=SLOW)
@given(st.data())
def test_any_byte_of_the_header(bench: Bench, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*CASES]))
    raw = bytearray((bench.adapters[name] / WEIGHTS).read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    raw[data.draw(st.integers(0, start - 1))] = data.draw(st.integers(0, 255))
    bench.broken(name, tensors=bytes(raw))
