"""DPO and KTO runs on a tiny base: the losses by hand, learning, resumption, packages that the server takes."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from adapters.package.manifest import read_manifest
from server.engine.messages import AdapterLoaded
from tests.trainer.every_method import METHODS, others_slow
from tests.trainer.preference.support import answer_log_prob, judged_rows, pair_rows, preference_config
from tests.trainer.served import serve
from tests.trainer.support import losses, write_jsonl
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError
from trainer.loop.records import read_metrics
from trainer.loop.session import RunResult
from trainer.preference.run import require_trl
from trainer.run import train

ROWS = 8
FULL_BATCH = [f"batch_size={ROWS}", "scheduler=constant", "save_steps=2", "eval_steps=2"]


def with_validation(folder: Path, base: Path, kind: str, *overrides: str, rows: list[Any]) -> TrainConfig:
    """All of ``rows`` are trained on, others are held out."""
    more = judged_rows(8) if kind == "kto" else pair_rows(4)
    folder.mkdir(exist_ok=True)
    held = write_jsonl(folder / "held.jsonl", more)
    return preference_config(folder, base, kind, f"validation={held}", *overrides, rows=rows)


def margins(base: Path, package: Path | None, rows: list[dict[str, Any]]) -> torch.Tensor:
    """What each pair's chosen answer gained over its rejected one, [rows]."""
    out = []
    for row in rows:
        before = [{"role": "user", "content": row["prompt"]}]
        gains = [
            answer_log_prob(base, package, before, row[key]) - answer_log_prob(base, None, before, row[key])
            for key in ("chosen", "rejected")
        ]
        out.append(gains[0] - gains[1])
    return torch.tensor(out)


LOSSES = {
    "sigmoid": lambda m: -F.logsigmoid(0.1 * m).mean(),
    "hinge": lambda m: torch.relu(1 - 0.1 * m).mean(),
}


@pytest.mark.parametrize(
    "method", others_slow(["lora", "dora", "prefix", "prefix-plain", "prompt", "bottleneck", "freeze", "ia3"])
)
def test_the_loss_of_dpo_is_the_formula_on_logits_computed_apart(tiny_base: Path, tmp_path: Path, method: str) -> None:
    rows = pair_rows(ROWS)
    options = [*METHODS[method], *FULL_BATCH]
    long = train(with_validation(tmp_path / "a", tiny_base, "dpo", *options, "max_steps=3", rows=rows))
    short = train(with_validation(tmp_path / "b", tiny_base, "dpo", *options, "max_steps=2", rows=rows))
    assert short.package is not None
    curve = losses(long)
    if method not in ("prefix", "prefix-plain", "prompt"):  # these do not begin as the base
        assert curve[1] == pytest.approx(math.log(2), abs=1e-5)
    expected = float(LOSSES["sigmoid"](margins(tiny_base, short.package, rows)))
    assert expected != pytest.approx(math.log(2), abs=1e-3)
    assert curve[3] == pytest.approx(expected, abs=1e-5)


def test_other_losses_and_the_supervised_term(tiny_base: Path, tmp_path: Path) -> None:
    rows = pair_rows(ROWS)
    options = [*METHODS["lora"], *FULL_BATCH, "rpo_alpha=0.5", "loss_type=hinge"]
    long = train(with_validation(tmp_path / "a", tiny_base, "dpo", *options, "max_steps=3", rows=rows))
    short = train(with_validation(tmp_path / "b", tiny_base, "dpo", *options, "max_steps=2", rows=rows))
    tokens = sum(len(row["chosen"]) + 1 for row in rows)
    chosen = [
        answer_log_prob(tiny_base, short.package, [{"role": "user", "content": row["prompt"]}], row["chosen"])
        for row in rows
    ]
    expected = LOSSES["hinge"](margins(tiny_base, short.package, rows)) - 0.5 * sum(chosen) / tokens
    assert losses(long)[3] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_the_loss_of_kto_is_the_formula_on_logits_computed_apart(tiny_base: Path, tmp_path: Path, method: str) -> None:
    rows = judged_rows(ROWS)
    options = [*METHODS[method], *FULL_BATCH, "desirable_weight=1.5", "loss_type=apo_zero_unpaired"]
    long = train(with_validation(tmp_path / "a", tiny_base, "kto", *options, "max_steps=3", rows=rows))
    short = train(with_validation(tmp_path / "b", tiny_base, "kto", *options, "max_steps=2", rows=rows))
    total = 0.0
    for row in rows:
        before = [{"role": "user", "content": row["prompt"]}]
        gain = 0.1 * (
            answer_log_prob(tiny_base, short.package, before, row["completion"])
            - answer_log_prob(tiny_base, None, before, row["completion"])
        )
        total += 1.5 / (1 + math.exp(gain)) if row["label"] else 1 / (1 + math.exp(-gain))
    assert losses(long)[3] == pytest.approx(total / len(rows), abs=1e-5)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("kind", ["dpo", "kto"])
@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_held_out_preferences_are_learned_and_recorded(tiny_base: Path, tmp_path: Path, kind: str, method: str) -> None:
    rows = pair_rows() if kind == "dpo" else judged_rows()
    result = train(preference_config(tmp_path, tiny_base, kind, *METHODS[method], "max_steps=40", rows=rows))
    assert result.metrics["reward_accuracy"] > 0.9
    assert result.metrics["reward_margin"] > 0.1
    records = read_metrics(result.output / "metrics.jsonl")
    assert records[0]["rewards/margins"] < records[-2]["eval_rewards/margins"] or kind == "kto"
    assert (result.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert result.package is not None
    manifest = read_manifest(result.package)
    assert manifest is not None
    assert (manifest.kind, manifest.training["preference"]) == (method, kind)
    assert manifest.training["preference_beta"] == 0.1


@pytest.mark.parametrize("kind", ["dpo", "kto"])
@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_resumed_run_is_equal_to_the_last_bit(tiny_base: Path, tmp_path: Path, kind: str, method: str) -> None:
    rows = pair_rows() if kind == "dpo" else judged_rows()
    options = [*METHODS[method], "gradient_accumulation=2"]
    config = preference_config(tmp_path, tiny_base, kind, *options, rows=rows)
    whole = train(config)
    assert whole.package is not None
    expected, package = losses(whole), load_file(whole.package / "adapter_model.safetensors")
    shutil.rmtree(whole.output / "checkpoint-8")
    torch.manual_seed(123)
    resumed = train(config, resume=True)
    assert losses(resumed) == expected
    assert resumed.package is not None
    for name, tensor in load_file(resumed.package / "adapter_model.safetensors").items():
        assert torch.equal(tensor, package[name]), name


@pytest.mark.parametrize("quantize", ["none", "nf4", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "method"), [("dpo", "lora"), ("dpo", "prefix"), ("kto", "lora"), ("kto", "prefix")])
def test_the_server_takes_the_package(tiny_base: Path, tmp_path: Path, kind: str, method: str, quantize: str) -> None:
    rows = pair_rows() if kind == "dpo" else judged_rows()
    options = [*METHODS[method], f"quantize={quantize}", "max_steps=4"]
    result = train(preference_config(tmp_path, tiny_base, kind, *options, rows=rows))
    assert result.package is not None
    tensors = load_file(result.package / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}  # trl would round them on quantized bases
    event = serve(tiny_base, result.package, quantize)
    assert isinstance(event, AdapterLoaded), event
    assert event.warnings == []


def test_gradient_checkpointing_changes_no_loss(tiny_base: Path, tmp_path: Path) -> None:
    def curve(folder: str, *options: str) -> dict[int, float]:
        config = preference_config(tmp_path / folder, tiny_base, "dpo", *METHODS["prefix"], *options, rows=pair_rows())
        return losses(train(config))

    assert curve("a") == pytest.approx(curve("b", "gradient_checkpointing=true"), rel=1e-5)


def test_the_signal_leaves_a_checkpoint_to_go_on_from(tiny_base: Path, tmp_path: Path) -> None:
    import os
    import signal

    from trainer.progress import SilentDisplay, StepMetrics

    class Interrupting(SilentDisplay):
        def update(self, reading: StepMetrics) -> None:
            if reading.step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    config = preference_config(tmp_path, tiny_base, "dpo", *METHODS["lora"], rows=pair_rows())
    stopped: RunResult = train(config, display=Interrupting())
    assert (stopped.stopped_by, stopped.package) == (signal.SIGINT, None)
    assert stopped.steps < 8
    finished = train(config, resume=True)
    assert list(losses(finished)) == list(range(1, 9))


def test_without_trl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ConfigError, match=r"kto needs trl, which is an extra: pip install 'hotswap\[preference\]'"):
        require_trl("kto")


def test_supervised_training_imports_no_trl() -> None:
    code = (
        "import sys; from trainer.commands.common import import_bitsandbytes; import_bitsandbytes(); "
        "import trainer.run, trainer.preference.task; sys.exit('trl' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
