"""One base, trained and served: both packages prepare it alike, to the last bit, and stop at the same tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import QuantState
from torch import Tensor, nn

import trainer.run
from adapters.package.golden import read_golden
from bases.compute import resolve_dtype, serving_dtype
from bases.names import QUANTIZATIONS
from bases.packed import PackedEmbedding, PackedLinear
from bases.weights import linear_weight
from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.making import make_context
from server.model.inputs import ModelInput, SequenceInput
from server.model.loader import load_base as load_served
from server.model.model_runner import ModelRunner
from server.model.prepared import distance
from server.settings import ServerConfig
from tests.bases.gguf_files import add_blocks
from tests.factory import make_tokenizer
from tests.server.engine.ipc.local_client import LocalEngineClient
from tests.server.live import live_server
from tests.trainer.support import make_config
from trainer.base_model import Base, load_base
from trainer.loop.greedy import greedy
from trainer.loop.loss import LabelledHead
from trainer.loop.session import RunResult

PROMPT = [5, 6, 7, 8]
SMALL: dict[str, Any] = {"kv_cache_gb": 0.02, "block_size": 4, "threads": 1}


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_training_and_serving_prepare_the_same_base(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: str, dtype: str
) -> None:
    """Where a CPU multiplies bf16, ``auto`` trains in that, and serves in fp32 what native kernels multiply."""
    base = add_blocks(tiny_base, tmp_path / "base")
    options = (f"quantize={quantize}", f"dtype={dtype}", "max_steps=3", "save_steps=3")
    trained, result = train(make_config(tmp_path, base, *options), monkeypatch)
    config = served_config(tmp_path, model=str(base), quantize=quantize, dtype=dtype, **SMALL)
    served = load_served(config)
    assert trained.dtype == resolve_dtype(dtype, served.device)
    assert served.dtype == serving_dtype(dtype, served.device)
    assert trained.quantization == served.quantization == quantize
    assert trained.fingerprint == served.fingerprint
    assert trained.end_ids == served.end_ids == load_served(EngineConfig(model=str(base))).end_ids
    assert trained.chat_template_sha256 == served.chat_template_sha256
    if trained.dtype == served.dtype:
        assert_same_weights(trained.model, served.model)
    assert_answers_as_trained(ModelRunner(served, config), result)


def train(config: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Base, RunResult]:
    """Train as ``config`` says; also the base that was trained on, as it is after the last step."""
    loaded: list[Base] = []

    def load_and_keep(config: Any) -> Base:
        loaded.append(load_base(config))
        return loaded[-1]

    monkeypatch.setattr(trainer.run, "load_base", load_and_keep)
    result = trainer.run.train(config)
    (base,) = loaded
    return base, result


def served_config(tmp_path: Path, **settings: Any) -> EngineConfig:
    """What the engine of a server of these settings is told."""
    told: list[EngineConfig] = []

    def make_engine(config: EngineConfig) -> LocalEngineClient:
        told.append(config)
        return LocalEngineClient(config)

    make_context(ServerConfig(**settings), tmp_path / "served", make_engine)
    return told[0]


def assert_same_weights(trained: nn.Module, served: nn.Module) -> None:
    """Of every module of ``served``, also where ``trained`` has an adapter around it."""
    compared = 0
    for name, module in served.named_modules():
        try:
            other = trained.get_submodule(name)
        except AttributeError:
            raise AssertionError(f"the base that was trained has no {name}") from None
        other = getattr(other, "base_layer", other)
        if isinstance(module, (PackedLinear, PackedEmbedding)):
            assert torch.equal(linear_weight(module), linear_weight(other)), name
            compared += 1
            continue
        assert type(other) is type(module), name
        for key, parameter in module.named_parameters(recurse=False):
            mine, theirs = dict(tensors_of(parameter)), dict(tensors_of(other.get_parameter(key)))
            assert mine.keys() == theirs.keys(), name
            for part, tensor in mine.items():
                assert tensor.dtype == theirs[part].dtype, (name, key, part)
                assert torch.equal(tensor, theirs[part]), (name, key, part)
            compared += len(mine)
        if hasattr(module, "compute_dtype"):
            assert module.compute_dtype == other.compute_dtype
    assert compared > 20


def tensors_of(parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """A weight as it is kept, with the constants beside it."""
    yield "data", parameter.data
    if (scales := getattr(parameter, "SCB", None)) is not None:
        yield "SCB", scales
    yield from constants_of(getattr(parameter, "quant_state", None), "quant_state")


def constants_of(state: QuantState | None, name: str) -> Iterator[tuple[str, Tensor]]:
    if state is None:
        return
    for part in ("absmax", "code", "offset"):
        if (value := getattr(state, part, None)) is not None:
            yield f"{name}.{part}", value
    yield f"{name}.blocksize", torch.tensor(state.blocksize)
    yield from constants_of(getattr(state, "state2", None), f"{name}.state2")


def assert_answers_as_trained(runner: ModelRunner, result: RunResult) -> None:
    """The server measures its own type and quantization, and computes the logits that the trainer recorded."""
    assert result.package is not None
    prepared = runner.prepare(result.package)
    assert prepared.plan is not None
    assert prepared.plan.golden_tolerance == prepared.plan.golden_warning  # base and type are those of the training
    key = AdapterKey("a", 1, "a")
    runner.install(key, prepared.adapter)
    for probe in read_golden(result.package):
        ids = probe.input_ids.tolist()
        blocks = list(range(-(-len(ids) // runner.block_size)))
        logits = runner.execute(ModelInput([SequenceInput(key, ids, 0, blocks, [len(ids) - 1])]))
        assert distance(logits, probe.logits[None]) <= prepared.plan.golden_tolerance


SOURCES = ("tokenizer", "template", "generation_config", "config")


@pytest.mark.parametrize("source", SOURCES)
def test_whatever_names_an_end_token_ends_outputs_of_both(tiny_base: Path, tmp_path: Path, source: str) -> None:
    """The four sources name four tokens; the model writes the one of ``source`` as its third."""
    config = make_config(tmp_path, tiny_base, "dtype=float32")
    free = answer(load_base(config), ends=())
    wanted = free[2]
    others = [token for token in range(40, 60) if token not in free]
    named = {name: wanted if name == source else others.pop() for name in SOURCES}
    path = checkpoint(tiny_base, tmp_path / "base", named)

    base = load_base(make_config(tmp_path / "training", path, "dtype=float32"))
    assert set(base.end_ids) == set(named.values())
    assert base.end_ids[0] == named["tokenizer"]  # what training appends
    stopped = free[: free.index(wanted)]
    assert answer(base) == stopped
    with live_server(path, tmp_path / "data", engine={"dtype": "float32"}) as live:
        assert set(live.context.engine.info.eos_token_ids) == set(base.end_ids)
        body = {"model": "base", "prompt": PROMPT, "max_tokens": len(free), "temperature": 0}
        reply = live.post("/v1/completions", body).json()
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == len(stopped) + 1


def answer(base: Base, ends: tuple[int, ...] | None = None) -> list[int]:
    """What ``base`` writes after PROMPT, in the trainer; ``ends`` replace its end tokens."""
    if ends is not None:
        base = Base(**{**vars(base), "end_ids": ends})
    return greedy(base.model, LabelledHead(base.model), base, [PROMPT], 8)[0]


def checkpoint(base: Path, path: Path, named: dict[str, int]) -> Path:
    """A copy of ``base`` in which each source names the end token of ``named``."""
    shutil.copytree(base, path)
    for source in ("generation_config", "config"):
        file = path / f"{source}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": named[source]}))
    tokenizer = make_tokenizer()
    token = tokenizer.convert_ids_to_tokens(named["template"])
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(named["tokenizer"])
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
        f"{{{{ {json.dumps(token)} }}}}\n{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    for file in (*path.glob("tokenizer*"), *path.glob("chat_template*"), *path.glob("special_tokens*")):
        file.unlink()
    tokenizer.save_pretrained(path)
    return path
