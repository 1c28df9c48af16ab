"""The commands of the guides, typed behind ``hotswap train`` as they are printed, apart from paths and sizes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.trainer.support import write_jsonl
from trainer.commands.train import train
from trainer.config.loading import load_config
from trainer.config.schema import TrainConfig

LETTERS = "abcdefgh"
DS_ZERO2 = {  # of the ChatGLM scripts
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 2, "offload_param": {"device": "auto"}, "offload_optimizer": {"device": "auto"}},
    "bf16": {"enabled": False},
    "fp16": {"enabled": True, "loss_scale": 0},
    "gradient_clipping": 1.0,
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
}
DS_AUTO = {"train_micro_batch_size_per_gpu": "auto", "fp16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}
CHATGLM = (
    "deepspeed --master_port 520 train.py --train_path data/spo_0.json --model_name_or_path base"
    " --per_device_train_batch_size 1 --max_len 1560 --max_src_len 1024 --learning_rate 1e-4 --weight_decay 0.1"
    " --num_train_epochs 2 --gradient_accumulation_steps 4 --warmup_ratio 0.1 --mode glm {}"
    " --seed 1234 --ds_file ds_zero2_no_offload.json --gradient_checkpointing --show_loss_step 10"
    " --output_dir ./output-glm"
)
CHATGLM2 = (
    "torchrun --standalone --nnodes=1 --nproc-per-node=1 main.py --do_train --train_file AdvertiseGen/train.json"
    " --validation_file AdvertiseGen/dev.json --preprocessing_num_workers 10 --prompt_column content"
    " --response_column summary --overwrite_cache --model_name_or_path base"
    " --output_dir output/adgen --overwrite_output_dir --max_source_length 64"
    " --max_target_length 128 --per_device_train_batch_size 1 --per_device_eval_batch_size 1"
    " --gradient_accumulation_steps 16 --predict_with_generate --max_steps 1 --logging_steps 10 --save_steps 1000"
    " --learning_rate 2e-2 --pre_seq_len 8 --quantization_bit 4"
)
CHATGLM2_FULL = (
    "deepspeed --num_gpus=1 --master_port 23456 main.py --deepspeed deepspeed.json --do_train"
    " --train_file AdvertiseGen/train.json --test_file AdvertiseGen/dev.json --prompt_column content"
    " --response_column summary --overwrite_cache --model_name_or_path base --output_dir ./output/ft"
    " --overwrite_output_dir --max_source_length 64 --max_target_length 64 --per_device_train_batch_size 4"
    " --per_device_eval_batch_size 1 --gradient_accumulation_steps 1 --max_steps 1 --logging_steps 10"
    " --save_steps 1000 --learning_rate 1e-4 --fp16"
)
PRE_TRAINING = (
    "deepspeed --num_gpus 1 --master_port=9901 src/train_bash.py --deepspeed deepspeed.json --stage pt"
    " --model_name_or_path base --do_train --dataset wiki_demo --finetuning_type full --lora_target q_proj,v_proj"
    " --output_dir output/pt --overwrite_cache --per_device_train_batch_size 4 --gradient_accumulation_steps 1"
    " --lr_scheduler_type cosine --logging_steps 1 --save_steps 1000 --learning_rate 5e-5 --max_steps 1"
    " --overwrite_output_dir True --plot_loss True --fp16 --cutoff_len 64"
)
YUAN = (
    "deepspeed --num_gpus=1 src/train_bash.py --stage sft --model_name_or_path base --do_train"
    " --dataset alpaca_en_demo --finetuning_type full --output_dir yuan2_2B_full_fintuning_checkpoint"
    " --overwrite_cache --per_device_train_batch_size 4 --per_device_eval_batch_size 4"
    " --gradient_accumulation_steps 4 --preprocessing_num_workers 16 --lr_scheduler_type cosine --logging_steps 10"
    " --save_steps 10000 --learning_rate 5e-5 --max_grad_norm 0.5 --num_train_epochs 3 --evaluation_strategy no"
    " --bf16 --deepspeed ./deepspeed.json --template yuan --overwrite_output_dir --cutoff_len 2048 --sft_packing"
    " --gradient_checkpointing True"
)
LLAMA_FACTORY = """
model_name_or_path: base
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 1.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
AXOLOTL = """
base_model: base
load_in_8bit: false
load_in_4bit: false
strict: false
datasets:
  - path: data/alpaca_en_demo.json
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
output_dir: ./outputs/lora-out
adapter: lora
lora_model_dir:
sequence_len: 2048
sample_packing: true
eval_sample_packing: true
pad_to_sequence_len: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_fan_in_fan_out:
lora_target_modules:
  - q_proj
  - v_proj
wandb_project:
wandb_entity:
gradient_accumulation_steps: 2
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
group_by_length: false
bf16: auto
fp16:
tf32: false
gradient_checkpointing: true
early_stopping_patience:
resume_from_checkpoint:
local_rank:
logging_steps: 1
xformers_attention:
flash_attention: true
loss_watchdog_threshold: 5.0
warmup_steps: 10
evals_per_epoch: 4
saves_per_epoch: 1
debug:
deepspeed:
weight_decay: 0.0
fsdp:
fsdp_config:
special_tokens:
  pad_token: "<|end_of_text|>"
"""


@pytest.fixture(autouse=True)
def here(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the guides' commands name, in which they are typed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOTSWAP_TRAIN_THREADS", "1")
    (tmp_path / "base").symlink_to(tiny_base)
    for folder in ("data", "AdvertiseGen"):
        (tmp_path / folder).mkdir()
    tasks = [{"instruction": "say", "input": letter, "output": letter * 2} for letter in LETTERS]
    adverts = [{"content": letter, "summary": letter * 2} for letter in LETTERS]
    write_jsonl(tmp_path / "data" / "spo_0.json", tasks)
    write_jsonl(tmp_path / "AdvertiseGen" / "train.json", adverts)
    write_jsonl(tmp_path / "AdvertiseGen" / "dev.json", adverts[:2])
    for name in ("identity", "alpaca_en_demo"):
        (tmp_path / "data" / f"{name}.json").write_text(json.dumps(tasks), encoding="utf-8")
    documents = [f"Document {i} is a long one. " + "word " * 30 for i in range(8)]
    (tmp_path / "data" / "wiki_demo.txt").write_text("\n".join(documents), encoding="utf-8")
    info = {name: {"file_name": f"{name}.json"} for name in ("identity", "alpaca_en_demo")}
    wiki = {"wiki_demo": {"file_name": "wiki_demo.txt", "columns": {"prompt": "text"}}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info | wiki), encoding="utf-8")
    (tmp_path / "ds_zero2_no_offload.json").write_text(json.dumps(DS_ZERO2), encoding="utf-8")
    (tmp_path / "deepspeed.json").write_text(json.dumps(DS_AUTO), encoding="utf-8")
    (tmp_path / "llama3_lora_sft.yaml").write_text(LLAMA_FACTORY, encoding="utf-8")
    (tmp_path / "lora.yml").write_text(AXOLOTL, encoding="utf-8")
    return tmp_path


def typed(line: str, capfd: pytest.CaptureFixture[str]) -> str:
    """What ``hotswap train`` says to ``line``."""
    assert train([*shlex.split(line), "--quiet"]) == 0, capfd.readouterr().err
    out, err = capfd.readouterr()
    return out + err


def ran(output: str) -> TrainConfig:
    """The configuration of the run in ``output``."""
    return load_config(Path(output) / "config.yaml", (), {})


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ("--train_type freeze --freeze_module_name layers.1.,layers.0.", "freeze"),
        ("--train_type ptuning --pre_seq_len 4 --prefix_projection True", "prefix"),
        ("--train_type lora --lora_dim 16 --lora_alpha 64 --lora_dropout 0.1 --lora_module_name q_proj,v_proj", "lora"),
    ],
)
def test_chatglm_scripts_with_deepspeed(settings: str, method: str, capfd: pytest.CaptureFixture[str]) -> None:
    typed(f"{CHATGLM.format(settings)} --max_steps 1", capfd)
    config = ran("output-glm")
    training = config.training
    assert (config.method.KIND, training.strategy, training.batch_size) == (method, "ddp", 1)
    assert (training.gradient_accumulation, training.warmup, training.weight_decay) == (4, 0.1, 0.1)
    assert (config.data.max_length, config.data.max_prompt_length) == (1560, 1024)
    assert training.dtype in ("bfloat16", "float32")  # what a CPU has for float16


def test_older_chatglm_scripts(capfd: pytest.CaptureFixture[str]) -> None:
    given = (
        "--train_batch_size 2 --model_dir base --train_path data/spo_0.json --output_dir o --max_steps 1 --overwrite"
    )
    typed(f"deepspeed finetuning_pt.py --num_train_epochs 5 --pre_seq_len 16 {given}", capfd)
    assert (ran("o").method.KIND, ran("o").training.batch_size) == ("prefix", 2)
    typed(f"--method prompt --pre_seq_len 16 {given}", capfd)  # the guide's PT-Only-Embedding
    assert ran("o").method.KIND == "prompt"


def test_chatglm2_train_sh_with_torchrun(capfd: pytest.CaptureFixture[str]) -> None:
    typed(CHATGLM2, capfd)
    config = ran("output/adgen")
    assert (config.method.KIND, config.training.quantize) == ("prefix", "nf4")
    assert (config.data.columns.prompt, config.data.max_response_length) == ("content", 128)


def test_chatglm2_full_fine_tuning_with_deepspeed(capfd: pytest.CaptureFixture[str]) -> None:
    typed(CHATGLM2_FULL, capfd)
    assert ran("output/ft").method.KIND == "full"
    assert ran("output/ft").data.test == str(Path("AdvertiseGen/dev.json").absolute())


def test_llama_factorys_pre_training(capfd: pytest.CaptureFixture[str]) -> None:
    typed(PRE_TRAINING, capfd)
    config = ran("output/pt")
    assert (config.method.KIND, config.training.packing) == ("full", True)
    assert (config.data.shape, config.data.too_long) == ("text", "split")
    record = json.loads(Path("output/pt/run.json").read_text(encoding="utf-8"))
    assert record["data"]["train_rows"] > 8  # documents in pieces


def test_yuans_guide(capfd: pytest.CaptureFixture[str]) -> None:
    typed(f"{YUAN} --max_steps 1", capfd)
    config = ran("yuan2_2B_full_fintuning_checkpoint")
    assert (config.method.KIND, config.data.template, config.data.validation) == ("full", "chat", 0)
    assert (config.training.packing, config.training.eval_steps) == (True, "no")


def test_a_yaml_of_llama_factory(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # it overwrites its output
        typed("llamafactory-cli train llama3_lora_sft.yaml", capfd)
    config = ran("saves/llama3-8b/lora/sft")
    assert [Path(path).name for path in config.data.paths] == ["identity.json", "alpaca_en_demo.json"]
    assert (config.data.template, config.training.batch_size) == ("chat", 1)


def test_a_yaml_of_axolotl(capfd: pytest.CaptureFixture[str]) -> None:
    typed("accelerate launch -m axolotl.cli.train lora.yml optimizer=adamw_torch", capfd)
    config = ran("outputs/lora-out")
    assert (config.data.shape, config.training.packing, config.training.eval_steps) == ("alpaca", True, "epoch/4")
