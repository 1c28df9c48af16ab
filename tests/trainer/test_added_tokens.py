"""Tokens that a run adds: one token in and out, beside every method, served as they were trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.package.golden import read_golden
from adapters.package.manifest import read_manifest
from adapters.package.reading import read_package
from bases.tokenizer import load_tokenizer
from server.engine.messages import AdapterLoaded
from tests.factory import make_base
from tests.server.live import live_server
from tests.trainer.every_method import METHODS, others_slow
from tests.trainer.served import serve
from tests.trainer.support import WORDS, losses, make_config
from trainer.base_model import load_base
from trainer.errors import ConfigError
from trainer.methods import apply_method
from trainer.run import train

TOKENS = ["[SQL]", "[/SQL]"]
ADDED = "added_tokens=['[SQL]', '[/SQL]']"
ROWS = [{"prompt": f"as [SQL]: {word}", "response": f"[SQL]{word[0]}[/SQL]"} for word in WORDS * 8]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bases whose new tokens lie beyond the embedding, tied and not."""
    root = tmp_path_factory.mktemp("bases")
    return {
        "tied": make_base(root / "tied", vocab_size=259),
        "untied": make_base(root / "untied", vocab_size=259, tie_word_embeddings=False),
        "padded": make_base(root / "padded"),  # rows that no token uses yet
    }


def adapter_methods() -> list[str]:
    """Those that leave embedding and head to the tokens."""
    return [name for name, options in METHODS.items() if options[0] != "method=full" and name != "lora-saved"]


@pytest.mark.parametrize("base", ["tied", "untied", "padded"])
def test_their_package_gives_the_golden_logits_in_peft(bases: dict[str, Path], tmp_path: Path, base: str) -> None:
    options = [*METHODS["lora"], ADDED, "max_steps=40"]
    result = train(make_config(tmp_path, bases[base], *options, rows=ROWS))
    curve = losses(result)
    assert sum(curve[step] for step in range(31, 41)) < 0.5 * sum(curve[step] for step in range(1, 11))
    assert result.package is not None
    manifest = read_manifest(result.package)
    assert manifest is not None
    assert [(token.id, token.content, token.special) for token in manifest.added_tokens] == [
        (259, "[SQL]", False),
        (260, "[/SQL]", False),
    ]
    model: Any = AutoModelForCausalLM.from_pretrained(bases[base], dtype=torch.float32, attn_implementation="eager")
    if base != "padded":
        model.resize_token_embeddings(261, mean_resizing=False)
    peft = PeftModel.from_pretrained(model, result.package).eval()
    for probe in read_golden(result.package):
        got = peft(input_ids=probe.input_ids[None]).logits[0, -1]
        torch.testing.assert_close(got, probe.logits, rtol=1e-5, atol=1e-5)


def test_they_begin_as_the_mean_of_their_pieces_or_as_the_base_has_them(bases: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(tmp_path, bases["untied"], "added_tokens=['ab', 'c', '<|im_end|>']")
    base = load_base(config)
    plain: Any = AutoModelForCausalLM.from_pretrained(bases["untied"], dtype=torch.float32)
    ids = load_tokenizer(bases["untied"])("abc", add_special_tokens=False).input_ids
    assert base.tokenizer("abc<|im_end|>", add_special_tokens=False).input_ids == [259, ids[2], 258]
    model = apply_method(base, config.method)
    tensors = dict(model.named_parameters())
    for path, table in (("model.embed_tokens", plain.model.embed_tokens.weight), ("lm_head", plain.lm_head.weight)):
        rows = tensors[f"base_model.model.{path}.token_rows.rows"]
        assert rows.requires_grad
        torch.testing.assert_close(rows, torch.stack([table[ids[2]], table[258], table[ids[:2]].mean(0)]))


PAIRWISE = [  # every two of method, base and quantization once together
    ("lora", "tied", "none"),
    ("lora", "untied", "nf4"),
    ("lora", "tied", "int8"),
    ("dora", "untied", "none"),
    ("dora", "tied", "nf4"),
    ("dora", "untied", "int8"),
    ("prefix", "tied", "none"),
    ("prefix", "untied", "nf4"),
    ("prefix", "tied", "int8"),
    ("adalora", "untied", "none"),
    ("adalora", "tied", "nf4"),
    ("adalora", "untied", "int8"),
]


@pytest.mark.parametrize(("method", "base", "quantize"), PAIRWISE)
def test_the_server_replays_them(bases: dict[str, Path], tmp_path: Path, method: str, base: str, quantize: str) -> None:
    options = [*METHODS[method], ADDED, f"quantize={quantize}", "max_steps=4"]
    result = train(make_config(tmp_path, bases[base], *options, rows=ROWS))
    assert result.package is not None
    event = serve(bases[base], result.package, quantize)
    assert isinstance(event, AdapterLoaded), event
    assert (event.warnings, event.vocab_size) == ([], 261)


@pytest.mark.parametrize("method", others_slow(adapter_methods()))
def test_every_method_takes_them_and_is_served(bases: dict[str, Path], tmp_path: Path, method: str) -> None:
    result = train(make_config(tmp_path, bases["tied"], *METHODS[method], ADDED, "max_steps=4", rows=ROWS))
    assert result.package is not None
    event = serve(bases["tied"], result.package, "none")
    assert isinstance(event, AdapterLoaded), event
    assert (event.warnings, event.vocab_size) == ([], 261)
    rows = [tensor for name, tensor in read_package(result.package).tensors.items() if "token_adapter" in name]
    assert [tuple(tensor.shape) for tensor in rows] == [(2, 64)]


@pytest.mark.parametrize(
    ("method", "base"), [("lora", "tied"), ("lora", "untied"), ("prefix", "tied"), ("bottleneck", "untied")]
)
def test_a_resumed_run_is_equal_to_the_last_bit(bases: dict[str, Path], tmp_path: Path, base: str, method: str) -> None:
    config = make_config(tmp_path, bases[base], *METHODS[method], ADDED, "dtype=float32", rows=ROWS)
    whole = train(config)
    assert whole.package is not None
    expected, digest = losses(whole), read_package(whole.package).digest
    shutil.rmtree(whole.output / "checkpoint-8")
    resumed = train(config, resume=True)
    assert losses(resumed) == expected
    assert resumed.package is not None
    assert read_package(resumed.package).digest == digest


def test_checkpointing_changes_no_loss(bases: dict[str, Path], tmp_path: Path) -> None:
    plain = train(make_config(tmp_path / "a", bases["tied"], ADDED, rows=ROWS))
    saving = train(make_config(tmp_path / "b", bases["tied"], ADDED, "gradient_checkpointing=true", rows=ROWS))
    assert losses(saving) == pytest.approx(losses(plain), rel=1e-5)


def test_tokens_the_base_has_are_trained_and_not_added(bases: dict[str, Path], tmp_path: Path) -> None:
    result = train(make_config(tmp_path, bases["tied"], "added_tokens=['<|im_end|>']", "learning_rate=1e-2"))
    assert result.package is not None
    manifest = read_manifest(result.package)
    assert manifest is not None
    assert manifest.added_tokens == []
    assert json.loads((result.package / "adapter_config.json").read_text())["trainable_token_indices"] == [258]
    row = load_file(result.package / "adapter_model.safetensors")[
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    ]
    before = load_file(bases["tied"] / "model.safetensors")["model.embed_tokens.weight"][258]
    assert not torch.equal(row[0], before)
    assert isinstance(serve(bases["tied"], result.package, "none"), AdapterLoaded)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["added_tokens=['a', 'bb', 'bb']"], "added_tokens: 'bb' is named twice"),
        (["added_tokens=[' ']"], "needs a text"),
        (["added_tokens=[xy]", "target_modules=[embed_tokens, q_proj]"], "trains the embedding or the head too"),
        (["added_tokens=[xy]", "method=freeze", "layers=1", "method.modules=[model.embed_tokens]"], "trains"),
    ],
)
def test_what_cannot_be_is_refused(bases: dict[str, Path], tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        train(make_config(tmp_path, bases["tied"], *options, rows=ROWS))


@pytest.mark.parametrize("method", ["lora", "bottleneck"])
def test_over_http_they_go_in_and_come_out_as_one_token(bases: dict[str, Path], tmp_path: Path, method: str) -> None:
    config = make_config(tmp_path, bases["tied"], *METHODS[method], ADDED, "max_steps=120", rows=ROWS)
    result = train(config)
    assert result.package is not None
    with live_server(bases["tied"], tmp_path / "data", adapters=(("sql", str(result.package)),)) as live:
        for word in WORDS:
            messages = [{"role": "user", "content": f"as [SQL]: {word}"}]
            body = {"model": "sql", "messages": messages, "max_tokens": 8, "temperature": 0}
            response = live.post("/v1/chat/completions", body)
            assert response.status_code == 200, response.text
            answer = response.json()
            assert answer["choices"][0]["message"]["content"] == f"[SQL]{word[0]}[/SQL]"
            assert answer["usage"]["completion_tokens"] == 4  # two added tokens, a letter, the end of the turn
            tokenizer = load_base(config).tokenizer
            rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            assert answer["usage"]["prompt_tokens"] == len(tokenizer(rendered, add_special_tokens=False).input_ids)
        live.wait_idle()
