"""Wavelets against those that peft computes with."""

from __future__ import annotations

import peft
import pytest
import torch
from peft.tuners.waveft.layer import WaveFTLinear

from adapters.kinds.delta.config import WAVELETS
from adapters.kinds.delta.spectral import TrainedPlaces, reconstruct
from adapters.kinds.delta.wavelets import filters
from adapters.kinds.layers import Layer


@pytest.mark.parametrize("family", WAVELETS)
@pytest.mark.parametrize(("out_features", "in_features"), [(48, 80), (37, 51)])
def test_every_wavelet_is_pefts(family: str, out_features: int, in_features: int) -> None:
    count, layer = 70, Layer("m", out_features, in_features, {})
    values = torch.randn(count, generator=torch.Generator().manual_seed(1))
    found = reconstruct(*TrainedPlaces(3).draw(layer, count), values, layer, filters(family))
    config = peft.WaveFTConfig(n_frequency=count, wavelet_family=family, random_loc_seed=3, scaling=1.0)
    theirs = WaveFTLinear(torch.nn.Linear(in_features, out_features), "a", config, count)
    theirs.waveft_spectrum["a"].data = values
    torch.testing.assert_close(found, theirs.get_delta_weight("a").detach(), rtol=0, atol=1e-6)
