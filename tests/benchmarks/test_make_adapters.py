"""The random adapters of load tests."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.make_adapters import write_adapter
from benchmarks.speed.adapter_sets import write_sets


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(path / "adapter_model.safetensors"))


def test_an_adapter_is_drawn_from_its_seed(tiny_base: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        write_adapter(tiny_base, tmp_path / name, "lora", seed)
    a, again, b = (tensors(tmp_path / name) for name in ("a", "again", "b"))
    assert a.keys() == again.keys() == b.keys()
    assert all(torch.equal(a[name], again[name]) for name in a)
    assert not any(torch.equal(a[name], b[name]) for name in a)
    assert all(tensor.abs().max() > 0 for tensor in a.values())


def test_what_is_there_is_taken_as_it_is(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "l0").mkdir()
    (tmp_path / "l0" / "adapter_config.json").write_text("{}")
    assert write_sets(tiny_base, tmp_path, {"none", "one"}) == {"none": (), "one": (tmp_path / "l0",)}
    assert [path.name for path in tmp_path.iterdir()] == ["l0"]
