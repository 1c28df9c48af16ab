from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.support import make_config
from trainer.commands.methods import methods
from trainer.commands.plan import plan
from trainer.config.loading import dump_config
from trainer.config.methods import METHODS
from trainer.files import PACKAGE_DIR
from trainer.plan.model_presets import MODEL_PRESETS
from trainer.run import train

SMALL = ["batch_size=1", "max_length=16"]


@pytest.mark.parametrize(
    "arguments", [["plan", "--help"], ["plan", "--shape", "list"], ["methods"], ["methods", "lora"]]
)
def test_what_needs_no_model_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from hotswap.cli import main\n"
        "try:\n"
        f"    assert main({arguments!r}) == 0\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'rich', 'httpx', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> str:
    """SmolLM2 with five layers: the commands are tried on it in seconds."""
    shape = MODEL_PRESETS["smollm2-135m"]
    settings = {**shape.settings, "num_hidden_layers": 5}
    monkeypatch.setitem(MODEL_PRESETS, "short", dataclasses.replace(shape, name="short", settings=settings))
    return "short"


def test_a_shape_s_methods_with_their_counts(short: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(["--shape", short, "--json", *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = {row["label"]: row["trainable"] for row in found["methods"]}
    assert counts["LoRA r=8, all linear maps"] == 2_442_240 // 6
    assert counts["Freeze, last five layers"] == 17_700_480
    assert all(row["memory"]["peak"] > row["memory"]["weights"] for row in found["methods"])


def test_a_plan_needs_no_output(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_config(tmp_path, tiny_base)
    arguments = [f"--base={tiny_base}", f"--data={tmp_path / 'data.jsonl'}", "modules_to_save=[lm_head]", "--steps=0"]
    assert plan([*arguments, "--json"]) == 0
    saved = json.loads(capsys.readouterr().out)["trainable"]
    assert plan([*arguments[:2], "--steps=0", "--json"]) == 0
    assert saved - json.loads(capsys.readouterr().out)["trainable"] == 320 * 64
    assert not Path("plan").exists()


def test_one_method_of_a_shape_by_flags_of_older_scripts(short: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", short, "--method", "prefix", "projection=false", "--pre_seq_len", "128", *SMALL]
    assert plan(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"prefix on short: {128 * 5 * 2 * 192:,} of ")
    assert "time:" not in out
    full = next(line for line in out.splitlines() if line.startswith("full "))
    assert "4.00x" in full


def test_a_run_in_text_and_the_package_has_the_size_that_was_said(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, tiny_base, "max_steps=2")
    file = tmp_path / "c.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert plan([str(file), "--steps", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"lora on {tiny_base.name}: 16,384 of 95,552 parameters trainable (14.64 %), float32\n")
    assert "time: " in out
    assert not (tmp_path / "run").exists()
    assert plan([str(file), "--steps", "0", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["serving"]["adapter"]
    package = train(config).output / PACKAGE_DIR / "adapter_model.safetensors"
    assert 0 < package.stat().st_size - said < 10_000  # names and shapes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shape", "chatglm6b"], "did you mean 'chatglm-6b'?"),
        (["--shape", "smollm2-135m", "method=lorra"], "unknown method 'lorra'"),
        (["--shape", "smollm2-135m", "method=freeze", "layers=31"], "method.layers: the base has 30 layers"),
        (["--shape", "smollm2-135m", "method=freeze", "quantize=nf4"], "cannot be trained on nf4"),
        (["none.yaml"], "there is no configuration file none.yaml"),
        (["base=nowhere/at-all", "data=none.jsonl", "output=x"], "the base model nowhere/at-all is neither"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert words in err


@pytest.mark.parametrize("arguments", [[], ["c.yaml", "--shape", "yuan2-2b"], ["c.yaml", "--steps", "some"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        plan(arguments)
    assert done.value.code == 2
    assert "usage: hotswap plan" in capsys.readouterr().err


def test_methods_lists_every_method_with_its_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert methods([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(METHODS)]] == list(METHODS)
    assert all(len(line.split()) > 4 for line in lines[1 : 1 + len(METHODS)])


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_shows_every_key_with_its_default(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert methods([kind, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    method = METHODS[kind]()
    assert {setting["key"]: json.loads(setting["default"]) for setting in found["settings"]} == {
        key: getattr(method, key) for key in method.__struct_fields__
    }
    assert float(found["learning_rate"]) == method.default_learning_rate
    assert tuple(found["quantized"]) == method.QUANTIZED
    assert found["summary"]


def test_a_method_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert methods(["bottleneck"]) == 0
    out = capsys.readouterr().out
    assert any(line.split() == ["layout", "houlsby", "or", "pfeiffer", '"houlsby"'] for line in out.splitlines())
    assert "learning rate 0.001 unless" in out
    assert methods(["lorra"]) == 1
    assert "did you mean 'lora'?" in capsys.readouterr().err
