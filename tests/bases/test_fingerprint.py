from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bases.errors import BaseModelError
from bases.fingerprint import base_fingerprint, template_sha256
from tests.adapters.support import load_model
from tests.factory import make_base


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_sharding_names_and_versions_do_not_count(tiny_base: Path, copy: Path, tmp_path: Path) -> None:
    model = load_model(tiny_base)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    change_config(copy, _name_or_path="elsewhere", transformers_version="9", use_cache=False, absent=None)
    assert base_fingerprint(tmp_path / "sharded") == base_fingerprint(copy) == base_fingerprint(tiny_base)


def test_weights_dtype_and_architecture_count(tiny_base: Path, copy: Path, tmp_path: Path) -> None:
    prints = [base_fingerprint(tiny_base), base_fingerprint(make_base(tmp_path / "other", seed=9))]
    weights = load_file(copy / "model.safetensors")
    large = max(weights, key=lambda name: weights[name].numel())
    weights[large].view(-1)[-1] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    prints.append(base_fingerprint(copy))
    save_file({name: t.bfloat16() for name, t in weights.items()}, copy / "model.safetensors")
    prints.append(base_fingerprint(copy))
    change_config(copy, rms_norm_eps=1e-3)
    prints.append(base_fingerprint(copy))
    assert len(set(prints)) == len(prints)


def test_large_tensors_are_sampled_across(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    weight = torch.zeros(1 << 20)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    before = base_fingerprint(tmp_path)
    for part in (weight[: 1 << 18], weight[1 << 19 : 3 << 18], weight[-1:]):
        part.add_(1)
        save_file({"w": weight}, tmp_path / "model.safetensors")
        assert base_fingerprint(tmp_path) != before
        part.sub_(1)


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"holds no config\.json"):
        base_fingerprint(tmp_path)


def test_no_safetensors(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"lacks 'model\.safetensors'; base models are read from safetensors"):
        base_fingerprint(copy)


def test_missing_shard_and_broken_index(tiny_base: Path, tmp_path: Path) -> None:
    load_model(tiny_base).save_pretrained(tmp_path, max_shard_size="50KB")
    shard = min(tmp_path.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(BaseModelError, match=f"lacks '{shard.name}'"):
        base_fingerprint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    with pytest.raises(BaseModelError, match="has no weight_map"):
        base_fingerprint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_files(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"this is neither JSON nor safetensors")
    with pytest.raises(BaseModelError, match="cannot be read"):
        base_fingerprint(copy)


def test_templates() -> None:
    assert template_sha256("{{ a }}") != template_sha256("{{ a }} ")
    assert len(template_sha256("ü")) == 64
