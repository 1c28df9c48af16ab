"""run.json, and that what is written reproduces the run to the same adapter."""

from __future__ import annotations

import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from adapters.package.reading import read_package
from bases.compute import dtype_name, resolve_dtype
from bases.fingerprint import base_fingerprint
from tests.trainer.support import make_config
from trainer.config.loading import load_config
from trainer.loop.records import read_metrics
from trainer.run import train


def test_the_written_configuration_alone_gives_the_same_losses_and_the_same_adapter(
    tiny_base: Path, tmp_path: Path
) -> None:
    options = ["method=prefix", "tokens=4", "dtype=auto", "gradient_accumulation=2", "neftune_noise_alpha=2"]
    first = train(make_config(tmp_path, tiny_base, *options))
    torch.manual_seed(1234)
    again = train(load_config(first.output / "config.yaml", [f"output={tmp_path / 'again'}"], {}))
    keys = ("loss", "eval_loss", "grad_norm", "learning_rate")
    records = [
        [{key: record.get(key) for key in keys} for record in read_metrics(result.output / "metrics.jsonl")[:-1]]
        for result in (first, again)
    ]
    assert records[0] == records[1]
    assert first.package is not None
    assert again.package is not None
    assert read_package(first.package).digest == read_package(again.package).digest
    written = load_config(first.output / "config.yaml", (), {}).training
    auto = dtype_name(resolve_dtype("auto", torch.device("cpu")))
    assert (written.dtype, written.threads) == (auto, 1)


def test_a_run_records_what_it_was_made_with_and_every_start(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "seed=7")
    train(config)
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    train(config, resume=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["seed"] == 7
    assert record["base"] == {"name": "tiny", "fingerprint": base_fingerprint(tiny_base), "dtype": "float32"}
    assert (record["data"]["train_rows"], record["data"]["validation_rows"]) == (40, 8)
    assert [start["step"] for start in record["starts"]] == [0, 4]
    start = record["starts"][0]
    assert start["python"] == platform.python_version()
    assert start["packages"]["torch"] == version("torch")
    assert start["threads"] == torch.get_num_threads()
    train(config, overwrite=True)
    assert len(json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["starts"]) == 1
