"""What packages say of their heads, wherever their trainers wrote it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import PackageError
from adapters.kinds.registry import parse_config
from adapters.package.head import PackageHead, read_head
from adapters.package.header import TensorInfo
from adapters.package.manifest import BaseRef, Manifest, PooledRef

WEIGHT = "base_model.model.score.weight"


def head(
    path: Path,
    count: int,
    *,
    task: str = "SEQ_CLS",
    beside: dict[str, Any] | None = None,
    pooled: PooledRef | None = None,
    name: str = WEIGHT,
    **config: Any,
) -> PackageHead | None:
    if beside is not None:
        (path / "config.json").write_text(json.dumps(beside))
    manifest = Manifest(kind="lora", base=BaseRef("b", "f"), created=datetime.now(UTC), pooled=pooled)
    parsed = parse_config({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "task_type": task, **config})
    infos = {name: TensorInfo(name, "F32", (count, 64), 0, 256 * count)}
    return read_head(path, parsed, manifest if pooled is not None else None, infos)


def test_labels_and_activations_from_everywhere(tmp_path: Path) -> None:
    assert head(tmp_path, 2, task="CAUSAL_LM") is None
    plain = head(tmp_path, 2)
    assert plain == PackageHead(2, activation="softmax")
    assert plain.label(1) == "LABEL_1"
    assert head(tmp_path, 1) == PackageHead(1)
    assert head(tmp_path, 1, task="TOKEN_CLS", name="base_model.model.classifier.modules_to_save.weight") == (
        PackageHead(1, of_tokens=True, activation="softmax")
    )
    names: dict[str, Any] = {"id2label": {"0": "no", "1": "yes"}}
    assert head(tmp_path, 2, **names, label2id={"no": 0}) == PackageHead(2, labels=("no", "yes"), activation="softmax")
    several = {**names, "problem_type": "multi_label_classification", "pad_token_id": 7, "hidden_size": [1]}
    found = head(tmp_path, 2, beside=several)
    assert found == PackageHead(2, labels=("no", "yes"), activation="sigmoid", pad_token_id=7)
    ours = head(tmp_path, 2, pooled=PooledRef(labels=["a", "b"], problem_type="single_label_classification"))
    assert ours == PackageHead(2, labels=("a", "b"), activation="softmax")  # our trainer reads the last token
    assert head(tmp_path, 3, beside=names) == PackageHead(3, activation="softmax")  # labels of another head
    assert head(tmp_path, 1, beside={"sbert_ce_default_activation_function": "torch.nn.Sigmoid"}) == PackageHead(
        1, activation="sigmoid"
    )


def test_what_is_no_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="holds no head"):
        head(tmp_path, 2, name="base_model.model.model.norm.weight")
    with pytest.raises(PackageError, match="at most"):
        head(tmp_path, 70_000)
    with pytest.raises(PackageError, match="2 outputs, and 3 labels"):
        head(tmp_path, 2, pooled=PooledRef(labels=["a", "b", "c"]))
    with pytest.raises(PackageError, match=r"config\.json"):
        head(tmp_path, 2, beside={"problem_type": 3})
