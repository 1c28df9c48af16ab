"""Whole runs on tiny encoder-decoders: learning, packages that peft and the server read alike, exact resumption."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from adapters.package.golden import read_golden
from adapters.package.reading import read_package
from tests.once import Once
from tests.server.engine.driver import prompt_of
from tests.server.engine.test_engine_seq2seq import Seq2SeqDriver
from tests.server.model.seq2seq import support
from tests.trainer.support import losses, make_config
from trainer.errors import ConfigError, DataError
from trainer.export.merge import merge
from trainer.run import train

METHODS = {
    "lora": ["method=lora", "r=4", "learning_rate=2e-2"],
    "prefix": ["method=prefix", "tokens=4", "projection_hidden_size=32", "learning_rate=3e-2"],
    "prefix-plain": ["method=prefix", "tokens=4", "projection=false", "learning_rate=2e-1"],
    "prompt": ["method=prompt", "tokens=4", "learning_rate=2e-1"],
    "p_tuning": ["method=p_tuning", "tokens=4", "hidden_size=32", "learning_rate=3e-2"],
    "ia3": ["method=ia3", "learning_rate=2e-1"],
    "adalora": ["method=adalora", "init_r=6", "target_r=3", "delta_t=3", "learning_rate=5e-2"],
    "bottleneck": ["method=bottleneck", "bottleneck_size=8", "learning_rate=1e-2"],
    "freeze": ["method=freeze", "layers=1", "learning_rate=3e-3"],
}
QUICK = ("lora", "prefix", "ia3")
# They have something to say, and can learn in a few steps. Tied, and scaled down by the head: t5's must be larger.
STDS = {name: {**support.STDS, "shared": 1.0 if name == "t5" else 0.3, "lm_head": 0.3} for name in support.BASES}

Base = Callable[[str], Path]


@pytest.fixture(scope="session")
def base(once: Once) -> Base:
    def make(name: str) -> Path:
        folder = once.make(
            f"trained-seq2seq/{name}",
            lambda path: support.make_seq2seq_base(path / name, stds=STDS[name], **support.BASES[name]),
        )
        return folder / name

    return make


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *[("flan-t5", "lora"), ("flan-t5", "prefix"), ("flan-t5", "ia3"), ("t5", "lora"), ("mt5", "prompt")],
        *(pytest.param("flan-t5", method, marks=pytest.mark.slow) for method in METHODS if method not in QUICK),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("t5", "prefix"), ("mt5", "prefix-plain"))),
    ],
)
def test_it_learns_and_is_served_as_peft_computes_it(base: Base, tmp_path: Path, name: str, method: str) -> None:
    result = train(make_config(tmp_path, base(name), *METHODS[method], "max_steps=30"))
    curve = losses(result)
    assert sum(curve[step] for step in range(21, 31)) < 0.9 * sum(curve[step] for step in range(1, 11))
    assert result.package is not None
    for probe in read_golden(result.package):
        prompt = probe.input_ids.tolist()
        got = support.logits(base(name), result.package, prompt, prompt[:-1])[-1]
        torch.testing.assert_close(got, probe.logits, rtol=1e-5, atol=2e-5)
    driver = Seq2SeqDriver(base(name))
    key = driver.load("new", result.package)
    for i, row_key in enumerate((key, None, key)):
        driver.submit(str(i), prompt_of(i, 5 + 4 * i), row_key, 4)
    driver.run()
    for i, package in enumerate((result.package, None, result.package)):
        driver.check(str(i), prompt_of(i, 5 + 4 * i), package, 4)
    driver.engine.close()


@pytest.mark.parametrize(
    "method", ["lora", "prefix", *(pytest.param(one, marks=pytest.mark.slow) for one in ("prompt", "p_tuning"))]
)
def test_a_resumed_run_is_equal_to_the_last_bit(base: Base, tmp_path: Path, method: str) -> None:
    options = [*METHODS[method], "gradient_accumulation=2", "save_steps=4", "eval_steps=3", "exact_match_rows=2"]
    options += ["dropout=0.3"] if method == "lora" else []
    config = make_config(tmp_path, base("flan-t5"), *options)
    whole = train(config)
    assert whole.package is not None
    expected, validation = losses(whole), losses(whole, "eval_loss")
    package = load_file(whole.package / "adapter_model.safetensors")
    shutil.rmtree(whole.output / "checkpoint-8")
    torch.manual_seed(123)
    resumed = train(config, resume=True)
    assert (losses(resumed), losses(resumed, "eval_loss")) == (expected, validation)
    assert resumed.package is not None
    for name, tensor in load_file(resumed.package / "adapter_model.safetensors").items():
        assert torch.equal(tensor, package[name]), name
    assert read_package(whole.package).digest == read_package(resumed.package).digest


def test_the_first_loss_is_that_of_transformers_own_labels(base: Base, tmp_path: Path) -> None:
    rows = [{"prompt": word, "response": "x" * (1 + i % 4)} for i, word in enumerate(["red", "light blue"] * 4)]
    options = ["batch_size=8", "max_steps=1", "validation=0", "eval_steps=null"]
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(base("flan-t5"), dtype=torch.float32).eval()
    tokenizer = support.make_seq2seq_tokenizer()
    total, count = 0.0, 0
    for row in rows:
        source, target = (tokenizer(row[part]).input_ids for part in ("prompt", "response"))
        out = model(input_ids=torch.tensor([source]), labels=torch.tensor([target]))
        total, count = total + float(out.loss.detach()) * len(target), count + len(target)
    whole = losses(train(make_config(tmp_path / "a", without_dropout(base("flan-t5"), tmp_path), *options, rows=rows)))
    assert whole[1] == pytest.approx(total / count, rel=1e-5)
    parts = [*options, "batch_size=2", "gradient_accumulation=4"]
    split = losses(train(make_config(tmp_path / "b", without_dropout(base("flan-t5"), tmp_path), *parts, rows=rows)))
    assert split[1] == pytest.approx(whole[1], rel=1e-5)


def without_dropout(base: Path, folder: Path) -> Path:
    copy = shutil.copytree(base, folder / "still", dirs_exist_ok=True)
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"dropout_rate": 0.1', '"dropout_rate": 0.0'))
    return copy


def test_full_fine_tuning_makes_a_base_that_is_served(base: Base, tmp_path: Path) -> None:
    result = train(make_config(tmp_path, base("t5"), "method=full", "learning_rate=3e-3"))
    assert result.base is not None
    assert losses(result)[8] < losses(result)[1]
    driver = Seq2SeqDriver(result.base)
    driver.submit("own", prompt_of(1, 7), None, 4)
    driver.run()
    driver.check("own", prompt_of(1, 7), None, 4)
    driver.engine.close()


def test_an_adapter_is_merged_into_its_base(base: Base, tmp_path: Path) -> None:
    package = train(make_config(tmp_path, base("t5"), *METHODS["lora"])).package
    assert package is not None
    merged = merge(package, tmp_path / "merged", str(base("t5")))
    assert merged.exact < 1e-4
    want = support.logits(base("t5"), package, prompt_of(1, 7), [5, 6])
    torch.testing.assert_close(support.logits(merged.path, None, prompt_of(1, 7), [5, 6]), want, rtol=1e-4, atol=1e-4)


def test_conversations_by_a_named_template_teach_the_last_answer(base: Base, tmp_path: Path) -> None:
    chat = [("user", "red"), ("assistant", "r"), ("user", "blue"), ("assistant", "bb")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]}] * 12
    result = train(make_config(tmp_path, base("t5"), "data.template=chatml", "max_steps=1", rows=rows))
    config = yaml.safe_load((result.output / "config.yaml").read_text())
    assert (config["data"]["template"], config["data"]["learn"]) == ("chatml", "last_answer")


def test_prompts_without_a_template_are_read_as_such_a_base_is_served(base: Base, tmp_path: Path) -> None:
    result = train(make_config(tmp_path, base("t5"), "max_steps=1"))
    assert yaml.safe_load((result.output / "config.yaml").read_text())["data"]["template"] == "none"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["training.packing=true"], r"training\.packing: the base is an encoder-decoder"),
        (["added_tokens=['[X]']"], r"added_tokens: the base is an encoder-decoder"),
        (["data.learn=everything"], r"data\.learn: .*set it to last_answer"),
        (["preference=dpo"], r"preference: .*leave this section out"),
        (["method=prefix", "gradient_checkpointing=true"], r"training\.gradient_checkpointing: .*set it to false"),
    ],
)
def test_what_such_a_base_cannot_do_is_refused(base: Base, tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train(make_config(tmp_path, base("t5"), *options))


def test_rows_of_plain_text_are_refused(base: Base, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a row of plain text has no prompt"):
        train(make_config(tmp_path, base("t5"), rows=[{"text": "once upon a time"}] * 12))


def test_layers_computed_again_change_no_loss(base: Base, tmp_path: Path) -> None:
    plain = train(make_config(tmp_path / "a", base("flan-t5"), *METHODS["lora"]))
    saving = train(make_config(tmp_path / "b", base("flan-t5"), *METHODS["lora"], "gradient_checkpointing=true"))
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-4)
