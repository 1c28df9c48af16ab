"""Turns a GGUF file into a plain transformers directory: safetensors and tokenizer, and its weights as it stored them.

transformers dequantizes GGUF when it loads, for the architectures it knows, but refuses to save such a model again, so
the weights are moved into a plain model of the same shape. Whatever it would leave out silently is refused here. It
does not know where the file came from, nor where the directory will live.

    python -m bases.gguf FILE.gguf OUT
"""

from __future__ import annotations

import logging
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader
from numpy.typing import NDArray

from bases.errors import BaseModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


# Llama 3.1, 3.2 and 3.3 differ in ``factor`` only.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def llama3_scaling(factors: NDArray[np.float32], config: Any) -> dict[str, Any]:
    """The rope parameters of ``config`` with the scaling that ``factors`` [head_dim / 2] come from.

    Raises BaseModelError when they are not those of a Llama 3 model.
    """
    rope = dict(config.rope_parameters)
    factor = float(factors.max())
    if factor == 1.0:
        return rope
    settings = {"factor": factor, "low_freq_factor": _LOW, "high_freq_factor": _HIGH}
    want = _llama3_factors(len(factors), float(rope["rope_theta"]), factor)
    if not np.allclose(factors, want, rtol=1e-4):
        raise BaseModelError("its factors for scaling positions are not those of Llama 3")
    return {**rope, **settings, "rope_type": "llama3", "original_max_position_embeddings": _ORIGINAL}


def _llama3_factors(count: int, theta: float, factor: float) -> NDArray[np.float64]:
    """What each of ``count`` frequencies is divided by.

    Semantics: 1 for wavelengths below ``ORIGINAL / HIGH``, ``factor`` above ``ORIGINAL / LOW``, and in between
    ``1 / ((1 - s) / factor + s)`` with ``s = (ORIGINAL / wavelength - LOW) / (HIGH - LOW)``.
    """
    wavelengths = 2 * math.pi * theta ** (np.arange(count) / count)
    smooth = np.clip((_ORIGINAL / wavelengths - _LOW) / (_HIGH - _LOW), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth), dtype=np.float64)


ROPE_FACTORS = "rope_freqs.weight"
_HEADS_TIED = ("falcon", "bloom")  # their files hold the head although it is the embedding
_PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)


def convert_gguf(gguf: Path, out: Path) -> str:
    """Write the model and tokenizer of ``gguf`` into directory ``out``; says in a line what became of the weights.

    They keep the type of an F32 or F16 file and become bf16 otherwise. Beside them are kept those of Q4_0, Q4_1 and
    Q8_0 as they were stored, if they are the larger part. Raises BaseModelError saying what to do.
    """
    reader = open_gguf(gguf)
    with _explained(gguf, architecture(reader)), tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "model.gguf"  # alone: files beside the original must not be taken for its own
        link.symlink_to(gguf.resolve())
        model = _convert(link, reader, out)
        return _keep_blocks(reader, model, out)


def open_gguf(gguf: Path) -> GGUFReader:
    """The file's header, checked. Raises BaseModelError for what is no whole GGUF file of one model."""
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise BaseModelError(f"{gguf} is not a GGUF file")
        reader = GGUFReader(gguf)
        ends = [int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors]
    except OSError as error:
        raise BaseModelError(f"{gguf} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        raise BaseModelError(f"{gguf} is damaged or cut short; download it again") from error
    if max(ends, default=0) > gguf.stat().st_size:
        raise BaseModelError(f"{gguf} is cut short; download it again")
    if int(_field(reader, "split.count") or 1) > 1:
        raise BaseModelError(
            f"{gguf} is one of {_field(reader, 'split.count')} parts; join them first: "
            "llama-gguf-split --merge FIRST-PART OUT.gguf"
        )
    if not ends or not architecture(reader):
        raise BaseModelError(f"{gguf} holds no language model (an adapter or vocabulary file?)")
    return reader


def architecture(reader: GGUFReader) -> str:
    """llama.cpp's name for the architecture; empty when the file says none."""
    return str(_field(reader, "general.architecture") or "")


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


@contextmanager
def _explained(gguf: Path, arch: str) -> Iterator[None]:
    """Say in one line which file cannot be imported and why, also where transformers says so at length."""
    try:
        yield
    except Exception as error:  # transformers and tokenizers raise whatever their parsing runs into
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseModelError(f"{gguf} holds a {arch} model that cannot be imported: {reason}") from error


def _convert(link: Path, reader: GGUFReader, out: Path) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # it advises to keep the weights packed
    source = {"gguf_file": link.name, "trust_remote_code": False}
    AutoTokenizer.from_pretrained(link.parent, **source).save_pretrained(out)
    loaded, report = AutoModelForCausalLM.from_pretrained(
        link.parent, dtype=_dtype(reader), output_loading_info=True, **source
    )
    _refuse_left_out(reader, loaded, report)
    plain = _plain_config(loaded.config)
    _restore_rope(reader, plain)
    model = _plain_model(loaded, plain)
    model.save_pretrained(out)
    return model


def _keep_blocks(reader: GGUFReader, model: PreTrainedModel, out: Path) -> str:
    from bases.gguf_blocks import BLOCKED, find_blocks, write_blocks

    matrices = [tensor for tensor in reader.tensors if len(tensor.shape) > 1]
    kinds = sorted({tensor.tensor_type.name for tensor in matrices})
    blocked = sum(int(tensor.n_elements) for tensor in matrices if tensor.tensor_type in BLOCKED)
    if 2 * blocked < sum(int(tensor.n_elements) for tensor in matrices):
        kept = "" if set(kinds) <= {kind.name for kind in _PLAIN} else "; Q4_0, Q4_1 and Q8_0 are kept as stored"
        return f"weights of {', '.join(kinds)} became {str(model.dtype).removeprefix('torch.')}{kept}"
    blocks = find_blocks(reader.tensors, model)
    write_blocks(out, blocks)
    return f"{len(blocks)} of {len(matrices)} weight matrices are kept as stored ({', '.join(kinds)})"


def _dtype(reader: GGUFReader) -> torch.dtype:
    import torch

    types = {tensor.tensor_type for tensor in reader.tensors if len(tensor.shape) > 1}
    if not types.issubset(_PLAIN):
        return torch.bfloat16
    return torch.float16 if GGMLQuantizationType.F16 in types else torch.float32


def _refuse_left_out(reader: GGUFReader, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """transformers only warns of parameters that the file lacks, and says nothing of tensors that it ignores."""
    if report["missing_keys"]:
        raise BaseModelError(f"it lacks {sorted(report['missing_keys'])[0]}")
    left_out = {ROPE_FACTORS}
    if architecture(reader) in _HEADS_TIED:
        left_out.add("output.weight")
    held = sum(int(tensor.n_elements) for tensor in reader.tensors if tensor.name not in left_out)
    taken = sum(parameter.numel() for parameter in model.parameters())
    if held != taken:
        raise BaseModelError(
            f"it holds {held:,} weights, of which transformers' {model.config.model_type} would use {taken:,}: "
            "a variant that transformers does not read"
        )


def _plain_config(config: PretrainedConfig) -> PretrainedConfig:
    fields = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        fields.pop(key, None)
    for key, value in fields.items():
        if key.endswith(("eps", "epsilon")) and isinstance(value, float):
            fields[key] = float(f"{value:.6g}")  # GGUF keeps it as float32; 9.999999747e-06 was 1e-05
    return type(config)(**fields)


def _restore_rope(reader: GGUFReader, config: PretrainedConfig) -> None:
    """Put back how positions are scaled, which transformers' reading of GGUF leaves out."""

    kind = _field(reader, f"{architecture(reader)}.rope.scaling.type")
    if kind not in (None, "none") and "gpt" not in architecture(reader):  # transformers reads those of gpt-oss
        raise BaseModelError(f"it scales positions by {kind}, which transformers does not read from GGUF")
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS:
            config.rope_parameters = llama3_scaling(tensor.data, config)


def _plain_model(loaded: PreTrainedModel, config: PretrainedConfig) -> PreTrainedModel:
    """A model that transformers is willing to save, over the same weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=loaded.dtype)
    model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
    model.tie_weights()
    model.config.dtype = loaded.dtype
    return model


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        sys.stdout.write(convert_gguf(Path(sys.argv[1]), Path(sys.argv[2])) + "\n")
    except BaseModelError as refused:
        sys.stderr.write(f"{refused}\n")
        sys.exit(1)
