"""Whole runs on bases that come as code: run only where that is allowed, and served as peft computes them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adapters.package.golden import read_golden
from bases.errors import BaseModelError
from tests.once import Once
from tests.server.engine.driver import Driver, prompt_of
from tests.server.model.families.own_code import MODELS, make_own_code_base
from tests.server.model.families.sweep import TOLERANCE, logprobs
from tests.server.model.test_own_code import alone, want
from tests.trainer.support import losses, make_config
from trainer.errors import ConfigError
from trainer.export.merge import merge
from trainer.run import train

TRUSTED = "trust_remote_code=true"
METHODS = {
    "lora": ["method=lora", "r=4", "learning_rate=1e-2"],
    "prefix": ["method=prefix", "tokens=4", "projection_hidden_size=32", "learning_rate=3e-2"],
    "prefix-plain": ["method=prefix", "tokens=4", "projection=false", "learning_rate=2e-1"],
    "freeze": ["method=freeze", "layers=1", "learning_rate=3e-3"],
    "bottleneck": ["method=bottleneck", "bottleneck_size=8", "learning_rate=1e-2"],
}


@pytest.fixture(scope="module", params=MODELS)
def base(request: pytest.FixtureRequest, once: Once) -> Path:
    kind: str = request.param
    folder = once.make(
        f"own-code-trained/{kind}", lambda folder: make_own_code_base(folder / kind, kind, own_tokenizer=True)
    )
    return folder / kind


@pytest.mark.parametrize("flag", [[], ["trust_remote_code=false"]])
def test_its_code_does_not_run_unless_it_is_trusted(base: Path, tmp_path: Path, flag: list[str]) -> None:
    loaded = set(sys.modules)
    with pytest.raises(BaseModelError, match=r"comes as code beside its weights.*--trust-remote-code"):
        train(make_config(tmp_path, base, *flag))
    assert not any("tiny_" in name for name in set(sys.modules) - loaded), "the code ran"


@pytest.mark.parametrize(
    "method", [one if one in {"lora", "prefix"} else pytest.param(one, marks=pytest.mark.slow) for one in METHODS]
)
def test_it_learns_and_is_served_as_peft_computes_it(base: Path, tmp_path: Path, method: str) -> None:
    result = train(make_config(tmp_path, base, TRUSTED, *METHODS[method], "max_steps=30", "exact_match_rows=2"))
    curve = losses(result)
    assert sum(curve[step] for step in range(21, 31)) < 0.9 * sum(curve[step] for step in range(1, 11))
    assert result.package is not None
    for probe in read_golden(result.package):
        ids = probe.input_ids[None]
        with torch.no_grad():
            got = alone(base, result.package)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        torch.testing.assert_close(got, probe.logits, rtol=1e-5, atol=2e-5)
    driver = Driver(base, trust_remote_code=True)
    key = driver.load("new", result.package)
    for i, row_key in enumerate((key, None)):
        driver.submit(str(i), prompt_of(i, 5 + 4 * i), row_key, 4)
    driver.run()
    for i, package in enumerate((result.package, None)):
        expected = want(base, package, prompt_of(i, 5 + 4 * i), driver.tokens(str(i)))
        assert driver.tokens(str(i)) == expected.argmax(-1).tolist()
        assert float((logprobs(driver, str(i)) - expected).abs().max()) < TOLERANCE
    driver.engine.close()


def test_prompts_are_refused_where_its_code_takes_no_embeddings(base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, base, TRUSTED, "method=prompt", "tokens=4", "learning_rate=1e-1", "max_steps=2")
    if base.name == "chatglm":
        with pytest.raises(ConfigError, match="inputs_embeds"):
            train(config)
        return
    package = train(config).package
    assert package is not None
    driver = Driver(base, trust_remote_code=True)
    driver.submit("row", prompt_of(2, 7), driver.load("new", package), 4)
    driver.run()
    expected = want(base, package, prompt_of(2, 7), driver.tokens("row"))
    assert float((logprobs(driver, "row") - expected).abs().max()) < TOLERANCE
    driver.engine.close()


def test_a_prefix_for_code_that_keeps_tuples_is_that_of_code_that_keeps_a_cache(tmp_path: Path) -> None:
    made: list[Path] = []
    for tuples in (False, True):
        base = make_own_code_base(tmp_path / str(tuples), "chatglm", keeps_tuples=tuples)
        package = train(make_config(tmp_path / f"run-{tuples}", base, TRUSTED, *METHODS["prefix"])).package
        assert package is not None
        made.append(package)
    ours, theirs = (load_file(path / "adapter_model.safetensors")["prompt_embeddings"] for path in made)
    assert torch.equal(ours, theirs)
    driver = Driver(base, trust_remote_code=True)
    forward: Any = driver.engine.runner._forward  # type: ignore[attr-defined]
    assert forward._positions is not None
    assert forward._form.axes == (2, 0, 1, 3)
    key = driver.load("new", made[1])  # which replays the recorded logits
    driver.submit("row", prompt_of(2, 7), key, 4)
    driver.run()
    again = Driver(tmp_path / "False", trust_remote_code=True)
    again.submit("row", prompt_of(2, 7), again.load("new", made[0]), 4)
    again.run()
    assert torch.allclose(logprobs(driver, "row"), logprobs(again, "row"), atol=TOLERANCE)
    for one in (driver, again):
        one.engine.close()


@pytest.mark.parametrize("method", ["lora", "prefix"])
def test_a_resumed_run_is_equal_to_the_last_bit(base: Path, tmp_path: Path, method: str) -> None:
    config = make_config(tmp_path, base, TRUSTED, *METHODS[method])
    whole = train(config)
    assert whole.package is not None
    expected, package = losses(whole), load_file(whole.package / "adapter_model.safetensors")
    shutil.rmtree(whole.output / "checkpoint-8")
    resumed = train(config, resume=True)
    assert losses(resumed) == expected
    assert resumed.package is not None
    for name, tensor in load_file(resumed.package / "adapter_model.safetensors").items():
        assert torch.equal(tensor, package[name]), name


def test_what_is_made_of_it_keeps_its_code(base: Path, tmp_path: Path) -> None:
    adapter = train(make_config(tmp_path / "a", base, TRUSTED, *METHODS["lora"])).package
    assert adapter is not None
    with pytest.raises(BaseModelError, match="--trust-remote-code"):
        merge(adapter, tmp_path / "refused", str(base))
    merged = merge(adapter, tmp_path / "merged" / base.name, str(base), trust_remote_code=True).path
    full = train(make_config(tmp_path / "b", base, TRUSTED, "method=full", "learning_rate=1e-3")).base
    assert full is not None
    full = full.rename(full.parent / base.name)
    for made in (merged, full):
        driver = Driver(made, trust_remote_code=True)
        driver.submit("row", prompt_of(1, 9), None, 3)
        driver.run()
        expected = want(made, None, prompt_of(1, 9), driver.tokens("row"))
        assert float((logprobs(driver, "row") - expected).abs().max()) < TOLERANCE
        driver.engine.close()
    expected = want(base, adapter, prompt_of(1, 9), [1, 2, 3])
    assert torch.allclose(want(merged, None, prompt_of(1, 9), [1, 2, 3]), expected, atol=1e-4)
