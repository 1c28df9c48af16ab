"""PEANuT's activations are those of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from adapters.kinds.delta.config import ACTIVATIONS
from adapters.kinds.delta.peanut import FUNCTIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_transformers(name: str) -> None:
    x = torch.linspace(-8, 8, 201)
    torch.testing.assert_close(FUNCTIONS[name](x), ACT2FN[name](x), rtol=0, atol=2e-6)
