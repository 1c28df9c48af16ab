from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.support import colour_rows, make_config, write_jsonl
from trainer.commands.common import SETTINGS_HELP
from trainer.commands.publish import publish
from trainer.commands.train import train
from trainer.config.keys import full_key
from trainer.config.loading import dump_config, load_config
from trainer.config.methods import PrefixMethod
from trainer.errors import ConfigError


@pytest.mark.parametrize("command", ["train", "sweep", "publish", "adapters"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from hotswap.cli import main\n"
        "try:\n"
        f"    main(['{command}', '--help'])\n"
        "except SystemExit as done:\n"
        "    assert done.code == 0\n"
        "heavy = {'torch', 'transformers', 'peft', 'numpy', 'rich', 'httpx', 'matplotlib', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: hotswap {command}" in done.stdout


def test_a_run_says_where_its_package_is(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(dump_config(make_config(tmp_path, tiny_base)), encoding="utf-8")
    assert train([str(file), "max_steps=2", "--overwrite", "eval_steps=1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("trained 2 steps  train_loss ")
    assert out.endswith(f"package: {tmp_path}/run/adapter\n")
    assert "step 2/2  loss " in err
    assert "step 2/2  validation loss " in err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["epocs=1"], "unknown key 'epocs'; did you mean 'training.epochs'?"),
        (["base=nowhere/to be"], "there is no base model"),
        (["data.path=none.jsonl"], "there is no data file"),
        (["--resume"], "no complete checkpoint"),
        (["--resume", "no/where"], "resume_from_checkpoint: there is no directory"),
        (["--resume_from_checkpoint", "/"], "/ is neither a checkpoint of this trainer nor the output of a run"),
        (["--resume_from_checkpoint", "True"], "no complete checkpoint"),
        (["--push_to_hub", "me/name"], "push_to_hub: hotswap publish"),
        (["--gradient_checkpointing", "maybe"], "training.gradient_checkpointing: Expected bool, got str 'maybe'"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_1(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], words: str
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(dump_config(make_config(tmp_path, tiny_base)), encoding="utf-8")
    assert train([str(file), *overrides]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hotswap: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_run_needs_no_file(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", colour_rows())
    where = ["--base", str(tiny_base), "--data", str(rows), "--output", str(tmp_path / "run"), "--threads", "1"]
    assert train([*where, "--pre_seq_len", "4", "--max_steps=2", "--do_train", "--val_size", "8", "--quiet"]) == 0
    assert f"package: {tmp_path}/run/adapter" in capsys.readouterr().out
    written = load_config(tmp_path / "run" / "config.yaml", (), {})
    assert written.method == PrefixMethod(tokens=4, projection=False)
    assert (written.training.max_steps, written.data.validation) == (2, 8.0)


def test_switches_of_other_trainers_may_have_values(tiny_base: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", colour_rows(12))
    line = ["--base", str(tiny_base), "--data", str(rows), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    line += ["--fp16", "no", "--quiet", "True", "--gradient_checkpointing", "0", "--resume_from_checkpoint", "False"]
    assert train(line) == 0
    assert train(line) == 1
    assert train([*line, "--overwrite_output_dir", "True"]) == 0


def test_all_unknown_flags_are_told_with_what_else_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        train(["--lerning_rate", "1", "--epocs", "2", "--data", "x", "--deepspeed", "ds.json", "--batch_size", "0"])
    assert done.value.code == 2
    error = capsys.readouterr().err
    for words in (
        "5 settings are refused",
        "'lerning_rate'",
        "'epocs'",
        "deepspeed: ",
        "batch_size: ",
        "lacks 'output'",
    ):
        assert words in error


def test_the_help_names_keys_that_exist() -> None:
    words = {word.strip(",;()") for word in SETTINGS_HELP.split() if re.fullmatch(r"[a-z_]+\.[a-z_.]+[,;)]*", word)}
    assert len(words) > 8
    for kind in ("lora", "prefix"):
        words -= {word for word in words if _known(word, kind)}
    assert not words


def _known(key: str, kind: str) -> bool:
    try:
        return full_key(key, {"method": {"type": kind}}) == key
    except ConfigError:
        return False


@pytest.mark.parametrize("arguments", [[], ["--quiet"], ["c.yaml", "--resume", "--overwrite"], ["c.yaml", "d.yaml"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        train(arguments)
    assert done.value.code == 2
    assert "usage: hotswap train" in capsys.readouterr().err


def test_publishing_needs_a_package_and_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "adapter_config.json", [])
    assert publish([str(tmp_path), "--server", "http://127.0.0.1:9", "--as", "a"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        publish([str(tmp_path)])
