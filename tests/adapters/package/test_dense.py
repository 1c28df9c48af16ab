"""Dense layers of sentence-transformers, in numpy, against torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.errors import PackageError
from adapters.package.dense import DenseConfig, UnservedModuleError, read_dense, through

PATH = "2_Dense"


def saved(directory: Path, tensors: dict[str, Tensor]) -> Path:
    (directory / PATH).mkdir(exist_ok=True)
    save_file(tensors, directory / PATH / "model.safetensors")
    return directory


def config(**changes: Any) -> DenseConfig:
    return msgspec.structs.replace(DenseConfig(6, 4), **changes)


ACTIVATIONS = ["Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "LeakyReLU", "ELU", "Softmax"]


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")  # torch's, of a softmax that names none
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layers_are_torchs(tmp_path: Path, activation: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    weight, bias, residual = (torch.randn(*shape).to(dtype) for shape in ((4, 6), (4,), (4, 6)))
    saved(tmp_path, {"linear.weight": weight, "linear.bias": bias, "residual.weight": residual})
    asked = config(activation_function=f"torch.nn.modules.activation.{activation}", use_residual=True)
    layer = read_dense(tmp_path, PATH, asked)
    rows = torch.randn(5, 6) * 3
    want = getattr(torch.nn, activation)()(rows @ weight.float().T + bias.float()) + rows @ residual.float().T
    torch.testing.assert_close(torch.from_numpy(through(layer, tmp_path, rows.numpy())), want)


def test_layers_that_are_equal_are_equal(tmp_path: Path) -> None:
    tensors = {"linear.weight": torch.randn(4, 6), "linear.bias": torch.randn(4)}
    layer = read_dense(saved(tmp_path, tensors), PATH, config())
    assert read_dense(saved(tmp_path, tensors), PATH, config()) == layer
    assert read_dense(saved(tmp_path, {**tensors, "linear.bias": torch.randn(4)}), PATH, config()) != layer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_function": "mine.Tanh"}, "has the activation 'mine.Tanh'"),
        ({"activation_function": "torch.nn.PReLU"}, "has the activation 'torch.nn.PReLU'"),
        ({"module_input_name": "token_embeddings"}, "changes other things"),
        ({"out_features": 100_000}, "is wider than"),
    ],
)
def test_what_is_not_served_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    saved(tmp_path, {"linear.weight": torch.randn(4, 6), "linear.bias": torch.randn(4)})
    with pytest.raises(UnservedModuleError, match=words):
        read_dense(tmp_path, PATH, config(**changes))


def test_weights_that_are_missing_or_others(tmp_path: Path) -> None:
    with pytest.raises(UnservedModuleError, match="pickles are not read"):
        read_dense(tmp_path, PATH, config())
    saved(tmp_path, {"linear.weight": torch.randn(4, 5), "linear.bias": torch.randn(4)})
    with pytest.raises(PackageError, match="asks for others"):
        read_dense(tmp_path, PATH, config())
