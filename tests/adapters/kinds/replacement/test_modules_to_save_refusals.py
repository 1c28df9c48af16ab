"""Packages with modules saved whole, or with trained tokens, that are not what they say."""

from __future__ import annotations

import contextlib
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
from adapters.ops import Adapter
from adapters.package.reading import read_package
from tests.adapters.support import LORA_CONFIG, SMALL_SPEC, lora_tensors, write_raw

EMBED, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"
VOCAB, HIDDEN = 32, 16
torch.manual_seed(0)
TABLE = torch.randn(VOCAB, HIDDEN)
PREFIX = "base_model.model."
DELTA = "trainable_tokens_delta"

TIED = replace(
    SMALL_SPEC,
    linears={**SMALL_SPEC.linears, HEAD: (VOCAB, HIDDEN)},
    biases={NORM: torch.zeros(HIDDEN)},
    parameters={
        **{f"{name}.weight": shape for name, shape in SMALL_SPEC.linears.items()},
        f"{EMBED}.weight": (VOCAB, HIDDEN),
        f"{NORM}.weight": (HIDDEN,),
        f"{NORM}.bias": (HIDDEN,),
        f"{HEAD}.weight": (VOCAB, HIDDEN),
    },
    embedding=EMBED,
    head=HEAD,
    tied=True,
    weight=lambda name: TABLE,
)
UNTIED = replace(TIED, tied=False)
BIASED = replace(
    TIED,
    biases={**TIED.biases, HEAD: torch.ones(VOCAB)},
    parameters={**TIED.parameters, f"{HEAD}.bias": (VOCAB,)},
)
TOKENS = {"peft_type": "TRAINABLE_TOKENS", "task_type": "CAUSAL_LM", "token_indices": [3, 5]}


def compile_raw(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], base: BaseSpec = TIED) -> Adapter:
    return compile_package(read_package(write_raw(path, config, tensors)), base)


def lora(**options: Any) -> dict[str, Any]:
    return {**LORA_CONFIG, **options}


def named(**tensors: Tensor) -> dict[str, Tensor]:
    """Tensors by name, ``__`` for a dot."""
    return {PREFIX + name.replace("__", "."): tensor for name, tensor in tensors.items()}


def other(rows: int = VOCAB) -> Tensor:
    return torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(1))


def rows(count: int = 2, seed: int = 2) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def grown(count: int) -> Tensor:
    return torch.cat([TABLE, rows(count)])


SAVED = {"modules_to_save": ["norm"]}
NORMS = named(model__norm__weight=torch.ones(HIDDEN), model__norm__bias=torch.ones(HIDDEN))
EMBED_DELTA = named(model__embed_tokens__token_adapter__trainable_tokens_delta=rows())
Refusal = tuple[dict[str, Any], dict[str, Tensor], type[AdapterError], str]

LORA_REFUSED: dict[str, Refusal] = {
    "missing": (
        SAVED,
        named(model__norm__weight=torch.ones(HIDDEN)),
        PackageError,
        r"norm.bias' is missing: modules_to",
    ),
    "misshapen": (
        SAVED,
        {**NORMS, **named(model__norm__bias=torch.ones(3))},
        PackageError,
        r"shape \[3\], expected \[16\]",
    ),
    "not named": ({}, NORMS, PackageError, "norm.(bias|weight)' is unknown"),
    "no such module": ({"modules_to_save": ["score"]}, {}, PackageError, "names 'score', which matches no"),
    "empty name": ({"modules_to_save": [""]}, {}, PackageError, "names '', which matches no"),
    "no list": ({"modules_to_save": "norm"}, NORMS, PackageError, "Expected `array | null`, got `str`"),
    "adapted and saved": (
        {"modules_to_save": ["q_proj"]},
        named(**{f"model__layers__{i}__attn__q_proj__weight": torch.ones(8, HIDDEN) for i in (0, 1)}),
        PackageError,
        "either that module is adapted as well",
    ),
    "a part that cannot be replaced": (
        {"modules_to_save": ["attn"], "target_modules": ["v_proj"]},
        named(
            model__layers__0__attn__experts__weight=torch.ones(2),
            **{f"model__layers__{i}__attn__{p}_proj__weight": torch.ones(8, HIDDEN) for i in (0, 1) for p in "qv"},
        ),
        PackageError,
        "none that can be replaced",
    ),
    "two for one": (
        {"modules_to_save": ["lm_head"]},
        named(lm_head__weight=other(), lm_head__modules_to_save__weight=TABLE),
        PackageError,
        "the package holds another one for the same parameter",
    ),
    "embedding of another width": (
        {"modules_to_save": ["embed_tokens"]},
        named(model__embed_tokens__weight=torch.ones(VOCAB, 8)),
        PackageError,
        r"expected \[32, 16\]",
    ),
    "tied on demand, yet different": (
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        named(model__embed_tokens__weight=other(), lm_head__weight=TABLE + 1),
        PackageError,
        "different weights for the embedding and the head",
    ),
    "tied on demand without the head": (
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        named(model__embed_tokens__weight=other()),
        PackageError,
        "lm_head.weight' is missing",
    ),
    "tied, yet different": (
        {},
        named(model__embed_tokens__weight=other(), lm_head__weight=TABLE),
        PackageError,
        "different weights .*its config ties them",
    ),
    "absurd vocabulary": (
        {},
        named(model__embed_tokens__weight=torch.zeros(VOCAB + 70_000, HIDDEN)),
        PackageError,
        "a vocabulary of 70032 tokens; at most 32800 are read",
    ),
    "tokens missing": ({"trainable_token_indices": [3, 5]}, {}, PackageError, "trainable_tokens_delta' is missing"),
    "tokens not named": ({}, EMBED_DELTA, PackageError, "is unknown"),
    "fewer rows than tokens": (
        {"trainable_token_indices": [3, 5, 7]},
        EMBED_DELTA,
        PackageError,
        r"expected \[3, 16\]",
    ),
    "a token twice": ({"trainable_token_indices": [3, 3]}, EMBED_DELTA, PackageError, "a token twice"),
    "a negative token": ({"trainable_token_indices": [3, -5]}, EMBED_DELTA, PackageError, "a number that is none"),
    "a huge token": ({"trainable_token_indices": [3, 1 << 62]}, EMBED_DELTA, PackageError, "a number that is none"),
    "a far token": ({"trainable_token_indices": [3, 900_000]}, EMBED_DELTA, PackageError, "a vocabulary of 900001"),
    "a hole": (
        {"trainable_token_indices": [3, VOCAB + 1]},
        EMBED_DELTA,
        PackageError,
        "token 33 and none for token 32",
    ),
    "tokens of another module": (
        {"trainable_token_indices": {"q_proj": [3, 5]}},
        {},
        PackageError,
        "'q_proj', which is neither the embedding",
    ),
    "the head's copy differs": (
        {"trainable_token_indices": [3, 5]},
        {**EMBED_DELTA, **named(lm_head__token_adapter__trainable_tokens_delta=rows(seed=9))},
        PackageError,
        "differs from the embedding's",
    ),
    "tied on demand to other tokens": (
        {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3]}, "ensure_weight_tying": True},
        EMBED_DELTA,
        PackageError,
        "peft refuses this too",
    ),
    "writes what it cannot read": (
        {"trainable_token_indices": {"lm_head": [VOCAB, VOCAB + 1]}},
        named(lm_head__token_adapter__trainable_tokens_delta=rows()),
        PackageError,
        "rows for 34 tokens, and the embedding for 32",
    ),
}


@pytest.mark.parametrize("name", LORA_REFUSED)
def test_refused_beside_lora(name: str, tmp_path: Path) -> None:
    options, tensors, error, words = LORA_REFUSED[name]
    with pytest.raises(error, match=words):
        compile_raw(tmp_path / "p", lora(**options), {**lora_tensors(), **tensors})


KIND_REFUSED: dict[str, Refusal] = {
    "missing": ({}, named(x__trainable_tokens_delta=rows()), PackageError, f"{EMBED}.{DELTA}' is missing"),
    "company": (
        {},
        named(model__embed_tokens__trainable_tokens_delta=rows(), extra=rows()),
        PackageError,
        "extra' is unknown",
    ),
    "no tokens": ({"token_indices": []}, {"x": rows()}, PackageError, "names no token"),
    "tokens not listed": ({"token_indices": None}, {"x": rows()}, PackageError, "token_indices"),
    "no such module": ({"target_modules": ["wte"]}, {"x": rows()}, PackageError, "matches neither"),
    "a linear map": (
        {"target_modules": ["q_proj"]},
        {"x": rows()},
        UnsupportedKindError,
        "only those of the embedding",
    ),
    "head of a layer that is wrapped twice": (
        {"target_modules": ["embed_tokens", "lm_head"]},
        named(
            model__embed_tokens__trainable_tokens_delta=rows(),
            lm_head__trainable_tokens_delta=rows(),
            lm_head__base_layer__trainable_tokens_delta=rows(),
        ),
        PackageError,
        "is unknown",
    ),
}


@pytest.mark.parametrize("name", KIND_REFUSED)
def test_refused_of_the_kind(name: str, tmp_path: Path) -> None:
    options, tensors, error, words = KIND_REFUSED[name]
    with pytest.raises(error, match=words):
        compile_raw(tmp_path / "p", {**TOKENS, **options}, tensors)


def test_a_head_with_a_bias_is_refused_where_peft_would_drop_it(tmp_path: Path) -> None:
    tensors = named(model__embed_tokens__trainable_tokens_delta=rows())
    assert compile_raw(tmp_path / "p", TOKENS, tensors, replace(BIASED, tied=False)).ops
    with pytest.raises(UnsupportedKindError, match="its head has a bias, which peft drops"):
        compile_raw(tmp_path / "q", TOKENS, tensors, BIASED)
    config = lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    with pytest.raises(UnsupportedKindError, match="head with a bias"):
        compile_raw(tmp_path / "r", config, {**lora_tensors(), **named(lm_head__weight=TABLE)}, BIASED)


def test_a_heads_bias_grows_with_it(tmp_path: Path) -> None:
    base = replace(BIASED, tied=False)
    table = named(model__embed_tokens__weight=grown(2), lm_head__weight=grown(2))
    with pytest.raises(PackageError, match=r"lm_head.bias' has shape \[32\], expected \[34\]"):
        compile_raw(tmp_path / "p", LORA_CONFIG, {**lora_tensors(), **table}, base)
    bias = named(lm_head__bias=torch.ones(34))
    adapter = compile_raw(tmp_path / "q", LORA_CONFIG, {**lora_tensors(), **table, **bias}, base)
    assert (adapter.vocab_size, adapter.num_logits) == (34, 34)
    with pytest.raises(PackageError, match="stands alone"):
        compile_raw(tmp_path / "r", LORA_CONFIG, {**lora_tensors(), **bias}, base)


def test_the_sound_packages_that_the_others_vary_are_accepted(tmp_path: Path) -> None:
    assert NORM in compile_raw(tmp_path / "a", lora(**SAVED), {**lora_tensors(), **NORMS}).ops
    tokens = {**lora_tensors(), **EMBED_DELTA}
    assert HEAD in compile_raw(tmp_path / "b", lora(trainable_token_indices=[3, 5]), tokens).ops
    assert HEAD not in compile_raw(tmp_path / "c", lora(trainable_token_indices=[3, 5]), tokens, UNTIED).ops


INDICES = st.lists(st.integers(-1, 40), max_size=3) | st.dictionaries(
    st.sampled_from(["embed_tokens", "lm_head", "", "norm"]), st.lists(st.integers(0, 40), max_size=3)
)
NAMES = st.sampled_from(
    [f"{m}.{p}" for m in (EMBED, HEAD, NORM) for p in ("weight", "bias", f"token_adapter.{DELTA}", DELTA)]
    + [f"{m}.{w}.weight" for m in (EMBED, HEAD) for w in ("base_layer", "original_module", "modules_to_save", "x")]
)
SHAPES = st.sampled_from([(2, HIDDEN), (HIDDEN,), (VOCAB, HIDDEN), (VOCAB + 2, HIDDEN), (1,), (HIDDEN, 2)])


OPTIONS = st.fixed_dictionaries(
    {
        "modules_to_save": st.lists(
            st.sampled_from(["norm", "lm_head", "embed_tokens", "model", "proj", ""]), max_size=2
        ),
        "trainable_token_indices": INDICES,
        "ensure_weight_tying": st.booleans(),
    }
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(OPTIONS, st.dictionaries(NAMES, SHAPES, max_size=3), st.sampled_from([TIED, UNTIED, BIASED]))
def test_anything_is_compiled_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory,
    options: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    base: BaseSpec,
) -> None:
    tensors = {PREFIX + name: torch.ones(shape) for name, shape in shapes.items()}
    with contextlib.suppress(AdapterError):
        compile_raw(tmp_path_factory.mktemp("fuzz"), lora(**options), {**lora_tensors(), **tensors}, base)
