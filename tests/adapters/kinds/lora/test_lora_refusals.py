"""LoRA packages with variants, adapted embeddings and heads that do not hold together: each says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.compiling import compile_package
from adapters.errors import AdapterError, PackageError, UnsupportedKindError
from adapters.kinds.registry import parse_config
from adapters.ops import Adapter
from adapters.package.reading import read_package
from tests.adapters.support import LORA_CONFIG, SMALL_SPEC, lora_tensors, refusal, write_raw

Q = "base_model.model.model.layers.0.attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens"
HEAD = "base_model.model.lm_head"
SPEC: BaseSpec = replace(
    SMALL_SPEC,
    linears={**SMALL_SPEC.linears, "lm_head": (32, 16)},
    parameters={"lm_head.weight": (32, 16), "model.embed_tokens.weight": (32, 16)},
    embedding="model.embed_tokens",
    head="lm_head",
    tied=True,
    weight=lambda name: torch.ones(SMALL_SPEC.linears.get(name, (32, 16))),
)
DORA = {**LORA_CONFIG, "use_dora": True}
BLOCKS = {"target_modules_bd_a": [], "target_modules_bd_b": ["q_proj"], "nblocks": 2}


def tensors(layers: dict[str, Tensor] | None = None, *, without: str = "") -> dict[str, Tensor]:
    """Sound tensors of the queries, with those of ``layers`` instead or besides."""
    return {key: value for key, value in {**lora_tensors(), **(layers or {})}.items() if key != without}


def magnitudes(size: int = 8, value: float = 1.0) -> dict[str, Tensor]:
    return {f"{Q.replace('layers.0', f'layers.{i}')}.lora_magnitude_vector": torch.full((size,), value) for i in (0, 1)}


def embedding(a: tuple[int, int] = (4, 32), b: tuple[int, int] = (16, 4)) -> dict[str, Tensor]:
    return {f"{EMBEDDING}.lora_embedding_A": torch.ones(a), f"{EMBEDDING}.lora_embedding_B": torch.ones(b)}


def head() -> dict[str, Tensor]:
    return {f"{HEAD}.lora_A.weight": torch.ones(4, 16), f"{HEAD}.lora_B.weight": torch.ones(32, 4)}


def on(*targets: str, **options: Any) -> dict[str, Any]:
    return {**LORA_CONFIG, "target_modules": list(targets), **options}


TIED = on("q_proj", "embed_tokens", ensure_weight_tying=True)
SOUND: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
    "dora": (DORA, tensors(magnitudes())),
    "bias on lora_B": (on("q_proj", lora_bias=True), tensors({f"{Q.replace('0', str(i))}.lora_B.bias": torch.ones(8)
                                                             for i in (0, 1)})),
    "embedding": (on("q_proj", "embed_tokens"), tensors(embedding())),
    "head": (on("lm_head"), head()),
    "tied": (TIED, tensors(embedding() | head())),
    "blocks": (on("q_proj", use_bdlora=BLOCKS), {n: t[:, :2] if "_B" in n else t for n, t in tensors().items()}),
    "pooled": (on("q_proj", use_qalora=True, qalora_group_size=4),
               {n: t[:, :4] if "_A" in n else t for n, t in tensors().items()}),
    "velora": (on("q_proj", velora_config={"scale": 1.0}), tensors({f"{Q}.lora_velora_embed": torch.ones(8)})),
    "monteclora": (on("q_proj", monteclora_config={"num_samples": 1}),
                   tensors({f"{Q}.lora_monteclora_sampler.std_prior": torch.ones(2)})),
    "invocation": (on("q_proj", alora_invocation_tokens=[3, 4]), tensors()),
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Tensor], type[AdapterError], str]] = {
    "no magnitude": (DORA, tensors(), PackageError, r"lora_magnitude_vector' is missing"),
    "magnitude without DoRA": (LORA_CONFIG, tensors(magnitudes()), PackageError, "does not set use_dora"),
    "magnitude of another size": (DORA, tensors(magnitudes(9)), PackageError, r"expected \[8\].*another base"),
    "no bias on lora_B": (on("q_proj", lora_bias=True), tensors(), PackageError, r"lora_B.bias' is missing"),
    "bias on lora_B": (
        LORA_CONFIG, tensors({f"{Q}.lora_B.bias": torch.ones(8)}), PackageError, "does not set lora_bias",
    ),
    "bias on lora_B of another size": (
        on("q_proj", lora_bias=True), tensors({f"{Q}.lora_B.bias": torch.ones(7)}), PackageError, r"expected \[8\]",
    ),
    "half an embedding": (
        on("q_proj", "embed_tokens"),
        tensors(embedding(), without=f"{EMBEDDING}.lora_embedding_B"),
        PackageError,
        "lora_embedding_B' is missing; its partner",
    ),
    "embedding not saved": (on("q_proj", "embed_tokens"), tensors(), PackageError, "lora_embedding_A' is missing"),
    "embedding not targeted": (LORA_CONFIG, tensors(embedding()), PackageError, "lora_embedding_A' belongs to a mod"),
    "embedding of another size": (
        on("q_proj", "embed_tokens"), tensors(embedding(a=(4, 40))), PackageError, r"\[4, 40\], expected \[4, 32\]",
    ),
    "embedding of another rank": (
        on("q_proj", "embed_tokens"), tensors(embedding((5, 32), (16, 5))), PackageError, "rank_pattern",
    ),
    "embedding with factors of a linear map": (
        on("q_proj", "embed_tokens"),
        tensors({**embedding(), f"{EMBEDDING}.lora_A.weight": torch.ones(4, 32)}),
        PackageError,
        "factors of the other sort",
    ),
    "embedding as a linear map": (
        on("q_proj", "embed_tokens"),
        tensors({f"{EMBEDDING}.lora_A.weight": torch.ones(4, 16), f"{EMBEDDING}.lora_B.weight": torch.ones(32, 4)}),
        PackageError,
        "matches no linear map",
    ),
    "positions": (
        on("q_proj", "embed_positions"),
        tensors({f"{EMBEDDING.replace('tokens', 'positions')}.lora_embedding_A": torch.ones(4, 32)}),
        UnsupportedKindError,
        "not the base's input emb",
    ),
    "embedding with bias on lora_B": (
        on("embed_tokens", lora_bias=True), embedding(), UnsupportedKindError, "for linear maps only",
    ),
    "embedding that is invoked": (
        on("embed_tokens", alora_invocation_tokens=[1]), embedding(), UnsupportedKindError, "for linear maps only",
    ),
    "tied without head": (TIED, tensors(embedding()), PackageError, "lm_head.lora_A.weight' is missing: with ensure_"),
    "tied to another head": (
        TIED,
        tensors({**embedding(), **head(), f"{HEAD}.lora_A.weight": torch.zeros(4, 16)}),
        PackageError,
        "lora_embedding_B turned around",
    ),
    "head not targeted": (on("q_proj"), tensors(head()), PackageError, "lm_head.lora_A.weight' belongs to a module"),
    "blocks that do not divide": (
        on("q_proj", use_bdlora={**BLOCKS, "nblocks": 3}), tensors(), PackageError, "no multiples of nblocks 3",
    ),
    "dense where blocks are due": (on("q_proj", use_bdlora=BLOCKS), tensors(), PackageError, r"expected \[8, 2\]"),
    "blocks of both factors": (
        on("q_proj", use_bdlora={**BLOCKS, "target_modules_bd_a": ["attn"]}), tensors(), PackageError, "both factors",
    ),
    "blocks of neither": (
        on("q_proj", use_bdlora={**BLOCKS, "target_modules_bd_b": ["up"]}), tensors(), PackageError, "match_strict",
    ),
    "pools that do not divide": (
        on("q_proj", use_qalora=True, qalora_group_size=5),
        {n: t[:, :3] if "_A" in n else t for n, t in tensors().items()},
        PackageError,
        "does not divide",
    ),
    "pooled without saying so": (
        LORA_CONFIG, {n: t[:, :4] if "_A" in n else t for n, t in tensors().items()}, PackageError, r"expected \[4, 16",
    ),
    "sampler without MonteCLoRA": (
        LORA_CONFIG,
        tensors({f"{Q}.lora_monteclora_sampler.std_prior": torch.ones(2)}),
        PackageError,
        "is unknown",
    ),
    "invocation beyond the vocabulary": (
        on("q_proj", alora_invocation_tokens=[3, 32]), tensors(), PackageError, "holds 32.* has 32 tokens",
    ),
    "diagonal of KaSA": (LORA_CONFIG, tensors({f"{Q}.lora_diag": torch.ones(4)}), UnsupportedKindError, "KaSA"),
}  # fmt: skip
CONFIGS: dict[str, tuple[dict[str, Any], type[AdapterError], str]] = {
    "dora and blocks": ({"use_dora": True, "use_bdlora": BLOCKS}, UnsupportedKindError, "use_dora and use_bdlora"),
    "dora and bias on lora_B": ({"use_dora": True, "lora_bias": True}, UnsupportedKindError, "use_dora and lora_bias"),
    "dora and mica": ({"use_dora": True, "init_lora_weights": "mica"}, UnsupportedKindError, "mica"),
    "dora when invoked": ({"use_dora": True, "alora_invocation_tokens": [1]}, UnsupportedKindError, "combines use_"),
    "biases when invoked": ({"bias": "all", "alora_invocation_tokens": [1]}, UnsupportedKindError, "before the invoc"),
    "negative token": ({"alora_invocation_tokens": [3, -1]}, PackageError, "must be token ids"),
    "text as tokens": ({"alora_invocation_tokens": ["<s>"]}, PackageError, "Expected `int`"),
    "very many tokens": ({"alora_invocation_tokens": [1] * 5000}, PackageError, "at most 4096"),
    "no group": ({"use_qalora": True, "qalora_group_size": 0}, PackageError, "qalora_group_size must be at least 1"),
    "no block": ({"use_bdlora": {"nblocks": 0}}, PackageError, "nblocks must be at least 1"),
    "blocks with a surprise": ({"use_bdlora": {"surprise": 1}}, PackageError, "surprise"),
}


def compile_raw(path: Path, config: dict[str, Any], found: dict[str, Tensor]) -> Adapter:
    return compile_package(read_package(write_raw(path, config, {n: t.contiguous() for n, t in found.items()})), SPEC)


@pytest.mark.parametrize("name", SOUND)
def test_sound(name: str, tmp_path: Path) -> None:
    assert compile_raw(tmp_path / "p", *SOUND[name]).ops


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    config, found, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        compile_raw(tmp_path / "p", config, found)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_refused(name: str) -> None:
    options, error, words = CONFIGS[name]
    with pytest.raises(error, match=words):
        parse_config({**LORA_CONFIG, **options})


def test_a_row_of_the_base_that_is_all_zero(tmp_path: Path) -> None:
    found = tensors(magnitudes())
    found[f"{Q}.lora_B.weight"] = torch.zeros(8, 4)
    package = read_package(write_raw(tmp_path / "p", DORA, found))
    with pytest.raises(PackageError, match="all zero or not finite"):
        compile_package(package, replace(SPEC, weight=lambda name: torch.zeros(8, 16)))


def test_invocation_tokens_stay_with_the_adapter(tmp_path: Path) -> None:
    adapter = compile_raw(tmp_path / "p", *SOUND["invocation"])
    assert adapter.map(torch.clone).invocation_tokens == (3, 4)
    assert compile_raw(tmp_path / "q", on("q_proj", alora_invocation_tokens=[]), tensors()).invocation_tokens == ()
    no_task = {**on("q_proj", alora_invocation_tokens=[3]), "task_type": None}
    package = read_package(write_raw(tmp_path / "r", no_task, tensors()))
    with pytest.raises(UnsupportedKindError, match="has an encoder"):
        compile_package(package, replace(SPEC, is_encoder_decoder=True))


def test_semantics_tell_variants_apart_and_leave_plain_lora_as_it_was() -> None:
    plain = parse_config(LORA_CONFIG).semantics()
    assert set(plain) == {
        "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias",
    }  # fmt: skip
    options: list[dict[str, Any]] = [
        {"use_dora": True}, {"use_bdlora": BLOCKS}, {"use_qalora": True}, {"alora_invocation_tokens": [1]},
        {"alora_invocation_tokens": [2]}, {"lora_bias": True}, {},
    ]  # fmt: skip
    found = [str(parse_config({**LORA_CONFIG, **option}).semantics()) for option in options]
    assert len(set(found)) == len(found)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(SOUND)), st.integers(0, 40), st.integers(0, 3), st.randoms())
def test_a_mangled_package_is_refused_in_words_or_compiles(
    tmp_path: Path, name: str, which: int, how: int, random: Any
) -> None:
    config, found = SOUND[name]
    key = sorted(found)[which % len(found)]
    changed = dict(found)
    tensor = changed.pop(key)
    if how == 1:
        changed[key] = torch.cat([tensor, tensor])
    elif how == 2:
        changed[key] = tensor[..., : max(1, tensor.shape[-1] // 2)]
    elif how == 3:
        changed[f"{key}{random.choice(['.weight', '.default', 's'])}"] = tensor
    if changed:
        refusal(lambda: compile_raw(tmp_path / "p", config, changed))


@pytest.mark.parametrize("name", SOUND)
def test_numbers_in_the_place_of_tensors(name: str, tmp_path: Path) -> None:
    config, found = SOUND[name]
    for key in found:
        compiled = {**found, key: torch.tensor(1.0)}
        is_read = "velora" not in key and "sampler" not in key
        assert bool(refusal(lambda given=compiled: compile_raw(tmp_path / "p", config, given))) == is_read  # type: ignore[misc]
