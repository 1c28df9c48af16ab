from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import PackageError
from adapters.kinds.lora.config import LoraConfig
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.registry import parse_config
from tests.adapters.support import LORA_CONFIG

MODULES = [
    f"model.layers.{i}.{name}" for i in range(12) for name in ("attn.q_proj", "attn.v_proj", "mlp.0.up", "mlp.1.up")
]


def matcher(seconds: float = 5.0, **changes: Any) -> PatternMatcher:
    config = parse_config({**LORA_CONFIG, **changes})
    assert isinstance(config, LoraConfig)
    return PatternMatcher(config, seconds)


def test_a_pattern_that_backtracks_for_ever_is_refused() -> None:
    evil = r"(?:.|..|...)+[^a-z]"
    with pytest.raises(PackageError, match="take too long"):
        matcher(0.05, target_modules=evil).targets([module * 5 for module in MODULES])


@pytest.mark.parametrize("pattern", ["(", "*", "(?P<x", "a{2,1}", "[", "(" * 900])
def test_a_malformed_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(PackageError, match="not a regular expression"):
        matcher(target_modules=pattern).targets(MODULES)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:a|(?R))*", "(?P<x>a(?&x)?)", "(a(?1)?)", "(?:model){e<=3}", r"\p{L}+",
        "(?x) # [\n (?R)* # ]", "(?#[)(?R)(?#])", r"\N{BULLET}", "(?V1)[a--b]", "(?<x>a)", "(*FAIL)", "a\\",
    ],
)  # fmt: skip
def test_what_only_the_regex_package_knows_is_refused(pattern: str) -> None:
    with pytest.raises(PackageError, match="not a regular expression as Python's re reads it"):
        matcher(target_modules=pattern).targets(MODULES)


@pytest.mark.parametrize("pattern", ["(?:(?:(?:m?){1000}){1000}){1000}", "a{99999}{99999}", "(?:[a-z]|b{90}){9000}"])
def test_repetitions_that_would_be_written_out_are_bounded(pattern: str) -> None:
    with pytest.raises(PackageError, match="repeats too much"):
        matcher(rank_pattern={pattern: 2}).rank(MODULES[0], 4)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?:.*?(?:language|text).*?(?:attn|mlp).*?(?:q_proj|v_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:\w+)\.q_proj)",
        r"^(?!.*vision)(?=.*layers\.(?:1|[2-9]\d?)\.).*(?<=_proj)$",
        r"(?i:.*\.Q_PROJ)",
        r".*layers\.\d{1,3}\.[]x_a-z]+\.(?P<a>[qkv])(?#of three)_pro(?P=a)?j",
        r"(a)?(?(1)b|.*\x71_proj)",
    ],
)  # fmt: skip
def test_real_expressions_mean_what_they_mean_to_re(pattern: str) -> None:
    expected = {module for module in MODULES if re.fullmatch(pattern, module)}
    assert expected
    assert matcher(target_modules=pattern).targets(MODULES) == expected


def test_all_linear_and_none_leave_it_to_the_tensors() -> None:
    assert matcher(target_modules=None).targets(MODULES) is None
    assert matcher(target_modules="all-linear").targets(MODULES) is None


names = st.sampled_from(["q_proj", "attn.q_proj", "v_proj", "up", "0.up", "model.layers.1.mlp.0.up", "proj", "layers"])
layer_patterns = st.sampled_from([None, "", [], "layers", ["h", "layers"], "mlp"])
layers = st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=3)
expressions = st.sampled_from(
    ["q_proj|v_proj", r".*\.(1|3)\..*", r"layers\.\d+\.attn.*", "up", "model.*q_proj", "nothing"]
)


@given(st.lists(names) | expressions, st.none() | st.lists(names, max_size=1) | expressions, layers, layer_patterns)
def test_targets_are_pefts(targets: Any, excluded: Any, indexes: Any, patterns: Any) -> None:
    from peft import LoraConfig as PeftLoraConfig
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    if isinstance(targets, str) or (patterns and indexes is None):
        indexes = patterns = None
    options = {
        "target_modules": targets,
        "exclude_modules": excluded,
        "layers_to_transform": indexes,
        "layers_pattern": patterns,
    }
    config = PeftLoraConfig(**options)
    found = {m: check_target_module_exists(config, m) for m in MODULES}
    expected = {m for m, answer in found.items() if answer and not isinstance(answer, _ExcludedModule)}
    assert matcher(**options).targets(MODULES) == expected


@given(st.lists(names | expressions | st.just("q_proj"), unique=True, max_size=4))
def test_ranks_are_pefts(patterns: list[str]) -> None:
    from peft.utils.other import get_pattern_key

    ranks = {pattern: i + 1 for i, pattern in enumerate(patterns)}
    ours = matcher(rank_pattern=ranks, alpha_pattern=ranks)
    for module in MODULES:
        assert ours.rank(module, 4) == ranks.get(get_pattern_key(list(ranks), module), 4)
        assert ours.alpha(module, 8) == ranks.get(get_pattern_key(list(ranks), module), 8)
