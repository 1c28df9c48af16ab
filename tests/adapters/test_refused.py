"""Every kind that peft knows is served, or refused for a reason; a newer peft's kinds are noticed here."""

from __future__ import annotations

import pytest
from peft.utils.peft_types import PeftType

from adapters.config import CONFIGS, parse_config
from adapters.configs.refused import REFUSED
from adapters.errors import UnsupportedKindError

OWN = {"BOTTLENECK", "FREEZE"}  # formats that peft does not have


def test_every_kind_of_pefts_is_served_or_refused() -> None:
    assert {*CONFIGS} - OWN | {*REFUSED} == {kind.value for kind in PeftType}
    assert not {*CONFIGS} & {*REFUSED}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_gives_its_reason(kind: str) -> None:
    with pytest.raises(UnsupportedKindError) as error:
        parse_config({"peft_type": kind, "task_type": "CAUSAL_LM"})
    assert str(error.value) == f"adapters of peft_type '{kind}' are not served: {REFUSED[kind]}"
