"""Command lines as guides print them: launchers and scripts before the flags."""

from __future__ import annotations

import os

import pytest

from trainer.commands.launchers import without_launcher
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("torchrun --standalone --nnodes=1 --nproc-per-node=1 main.py --pre_seq_len 8", "--pre_seq_len 8"),
        ("torchrun --nproc_per_node 2 --master-addr 127.0.0.1 src/train_bash.py --stage sft", "--nproc 2 --stage sft"),
        ("torchrun --nproc_per_node=2 -m llamafactory.cli x.yaml", "--nproc 2 x.yaml"),
        ("deepspeed --num_gpus=4 --master_port 520 main.py --deepspeed ds.json", "--nproc 4 --deepspeed ds.json"),
        ("deepspeed --master_port 520 train.py --mode glm", "--mode glm"),
        ("torchrun --nproc-per-node=gpu main.py --mode glm", "--mode glm"),  # where there is none, or one
        ("deepspeed --include localhost:0 train.py --mode glm", "--mode glm"),
        ("accelerate launch --num_processes 2 --mixed_precision fp16 train.py a=1", "--nproc 2 a=1"),
        ("accelerate launch -m axolotl.cli.train lora.yml", "lora.yml"),
        ("/usr/bin/python3 -u src/train.py lora.yaml", "lora.yaml"),
        ("llamafactory-cli train lora.yaml", "lora.yaml"),
        ("axolotl train lora.yml --debug", "lora.yml --debug"),
        ("main.py --do_train", "--do_train"),
        ("run.yaml lr=1", "run.yaml lr=1"),
        ("output=a data=b", "output=a data=b"),
        ("--do_train", "--do_train"),
        ("", ""),
    ],
)
def test_a_launcher_and_a_script_become_our_flags(line: str, meant: str) -> None:
    assert without_launcher(line.split()) == meant.split()


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ("deepspeed finetuning_freeze.py --train_batch_size 2", ["method=freeze"]),
        ("deepspeed finetuning_lora.py --train_batch_size 2", ["method=lora"]),
        ("deepspeed finetuning_pt.py --train_batch_size 2", ["method=prefix"]),
        ("deepspeed finetuning_pt.py --method prompt", []),
        ("deepspeed main.py --deepspeed ds.json --train_file a.json", ["method=full"]),
        ("torchrun main.py --train_file a.json --pre_seq_len 8", []),
        ("torchrun main.py --train_file a.json --finetuning_type lora", []),
        ("python train.py --train_type freeze", []),
    ],
)
def test_some_scripts_are_a_method(line: str, method: list[str]) -> None:
    assert [word for word in without_launcher(line.split()) if word.startswith("method=")] == method


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "torchrun --nnodes 2 --node_rank 0 --nproc_per_node=8 main.py",
            "torchrun --nnodes 2 ... -m hotswap train ...",
        ),
        ("deepspeed --include 10.0.0.1:0,1@10.0.0.2:0 train.py", "on this machine alone: --nproc N"),
    ],
)
def test_several_machines_are_refused_with_what_to_run(line: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        without_launcher(line.split())
    assert words in str(caught.value)


def test_what_stands_before_a_launcher_goes_into_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSWAP_GUIDE", "")
    assert without_launcher(["HOTSWAP_GUIDE=0,1", "nohup", "deepspeed", "train.py", "--mode", "glm"]) == [
        "--mode",
        "glm",
    ]
    assert os.environ["HOTSWAP_GUIDE"] == "0,1"
    assert without_launcher(["HOTSWAP_GUIDE=2", "run.yaml"]) == ["HOTSWAP_GUIDE=2", "run.yaml"]  # a setting
    assert os.environ["HOTSWAP_GUIDE"] == "0,1"
