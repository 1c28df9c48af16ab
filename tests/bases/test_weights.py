"""The dense weights that adapters are given, read back from layers in every form they can be in."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu, dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import nn
from transformers.pytorch_utils import Conv1D

from bases.model import LoadedBase, adaptable_modules, base_spec
from bases.names import QUANTIZATIONS
from bases.packed import PackedLinear
from bases.quantization import _fits_bf16_kernel
from bases.weights import linear_weight, weight_bytes
from hotkernels import native
from server.config import EngineConfig
from server.model.loader import load_base
from tests.bases.gguf_files import add_blocks
from tests.factory import make_base

pytestmark = pytest.mark.numeric

FOUR_BITS = ["nf4", "nf4-dq", "fp4", "fp4-dq"]


@pytest.fixture(scope="module")
def conv_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gpt2: Conv1D keeps its weights the other way around."""
    return make_base(tmp_path_factory.mktemp("base") / "conv", model_type="gpt2")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def any_base(
    request: pytest.FixtureRequest, tiny_base: Path, conv_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    base = tiny_base if request.param == "llama" else conv_base
    return add_blocks(base, tmp_path_factory.mktemp("blocks") / "base")


@pytest.fixture
def without_kernels() -> Iterator[None]:
    with native.using(native.TORCH):
        yield


def load(path: Path, quantize: str, dtype: str = "float32") -> LoadedBase:
    return load_base(EngineConfig(model=str(path), quantize=quantize, dtype=dtype, device="cpu"))


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_weight_is_what_its_layer_multiplies_by(any_base: Path, quantize: str, dtype: str) -> None:
    """The identity through the layer's forward pass: every sum has one term, so nothing is rounded twice."""
    base = load(any_base, quantize, dtype)
    shapes = base_spec(base, "base", (2, 2, 16)).linears
    assert len(shapes) > 8
    for name, (out_features, in_features) in shapes.items():
        module = base.model.get_submodule(name)
        if module.bias is not None:
            module.bias.data.zero_()
        with torch.inference_mode():
            seen = module(torch.eye(in_features, dtype=base.dtype)).float().T
        weight = linear_weight(module)
        assert (weight.shape, weight.dtype) == ((out_features, in_features), torch.float32)
        # The INT8 product is rounded to the compute type after it is scaled. A weight that bitsandbytes has packed for
        # CPUs with AVX512-BF16 is rounded twice there, as code and as its product with the scale: half an epsilon each.
        packed = getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False)
        eps = torch.finfo(base.dtype).eps
        rtol = eps * (1 + 2 * eps) if quantize == "int8" or packed else 0
        atol = 1e-7 if quantize == "int8" else 0.0
        if isinstance(module, PackedLinear):  # codes and minimum are added up apart; values of a book are words
            atol = float(weight.abs().max()) * (0.51 / 8191 if quantize in FOUR_BITS else 2**-22)
        torch.testing.assert_close(weight, seen, rtol=rtol, atol=atol)


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_shapes_are_those_of_the_checkpoint(any_base: Path, quantize: str) -> None:
    plain = base_spec(load(any_base, "none"), "base", (2, 2, 16))
    spec = base_spec(load(any_base, quantize), "base", (2, 2, 16))
    assert dict(spec.parameters) == dict(plain.parameters)
    assert dict(spec.linears) == dict(plain.linears)
    for name, bias in plain.biases.items():
        torch.testing.assert_close(spec.biases[name], bias, rtol=0, atol=0)


@pytest.mark.parametrize("quantize", FOUR_BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("without_kernels")
def test_weights_repacked_by_bitsandbytes_are_read_back(any_base: Path, quantize: str, dtype: str) -> None:
    """bitsandbytes rearranges them on CPUs with AVX512-BF16; the rearranging itself runs on any."""
    base = load(any_base, quantize, dtype)
    seen = 0
    for module in adaptable_modules(base.model).values():
        if not isinstance(module, Linear4bit):
            continue
        before = linear_weight(module)
        state = module.weight.quant_state
        assert state is not None
        scales = before.abs().amax() * 2**-8  # packing rounds each block's scale to bf16
        module.weight.data, _ = _convert_weight_packed_for_cpu(module.weight.data, state)
        packed = module.weight.data.clone(), copy.copy(vars(state))
        after = linear_weight(module)
        torch.testing.assert_close(after, before, rtol=2**-7, atol=float(scales) * 1e-3)
        assert torch.equal(module.weight.data, packed[0]), "reading must not change a layer in service"
        assert vars(state).keys() == packed[1].keys()
        assert all(vars(state)[key] is value for key, value in packed[1].items())
        seen += 1
    assert seen > 6


@pytest.mark.parametrize("quantize", FOUR_BITS)
def test_a_repacked_weight_has_the_same_codes(quantize: str) -> None:
    """With scales that bf16 holds exactly, nothing at all is lost."""
    layer = Linear4bit(128, 64, bias=False, quant_type=quantize[:3], compress_statistics=quantize.endswith("-dq"))
    layer.weight.data = torch.randn(64, 128).clamp(-3, 3)
    layer.weight.data.view(-1, 64)[:, 0] = 4.0  # the largest of each block
    layer = layer.to("cpu")
    before = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    layer.weight.data, _ = _convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
    after = linear_weight(layer)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6 if quantize.endswith("-dq") else 0)


@pytest.mark.parametrize(
    ("rows", "columns", "dtype", "fits"),
    [
        (64, 128, torch.bfloat16, True),
        (64, 128, torch.float32, False),
        (64, 128, torch.float16, False),
        (48, 128, torch.bfloat16, False),
        (64, 96, torch.bfloat16, False),
    ],
)
def test_only_layers_that_fit_are_given_to_the_bf16_kernel(
    rows: int, columns: int, dtype: torch.dtype, fits: bool
) -> None:
    assert _fits_bf16_kernel(Linear4bit(columns, rows, device="meta"), dtype) is fits


def test_layers_compute_in_the_type_asked_for(tiny_base: Path) -> None:
    model = load(tiny_base, "nf4", "bfloat16").model
    assert {m.compute_dtype for m in model.modules() if isinstance(m, Linear4bit)} == {torch.bfloat16}


def test_shared_weights_count_once() -> None:
    first, second = nn.Linear(4, 8), nn.Linear(4, 8)
    model = nn.ModuleList([first, second])
    assert weight_bytes(model) == 2 * (32 + 8) * 4
    second.weight = first.weight
    assert weight_bytes(model) == (32 + 8 + 8) * 4
    second.weight = nn.Parameter(first.weight.detach())  # another parameter over the same memory
    assert weight_bytes(model) == (32 + 8 + 8) * 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_counts_a_scale_per_row(tiny_base: Path, dtype: str) -> None:
    layer = load(tiny_base, "int8", dtype).model.get_submodule("model.layers.0.self_attn.k_proj")
    assert isinstance(layer, (PackedLinear, Linear8bitLt))
    bias = layer.bias.nbytes if layer.bias is not None else 0
    assert weight_bytes(layer) == layer.out_features * layer.in_features + 4 * layer.out_features + bias


def test_conv1d_is_turned_around() -> None:
    module = Conv1D(6, 4)
    assert torch.equal(linear_weight(module), module.weight.T)
