"""Packs the weights of a freshly loaded model for ``hotkernels``, from whatever form they were loaded in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bases.model import adaptable_modules
from bases.packed import PackedLinear, looks_up, placeholder
from bases.weights import is_4bit, is_8bit
from hotkernels.linear import ROWS, PackedWeight, StoredWeight, pack
from hotkernels.memory import LargePages

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

# Maps of one input inside a layer: one product can serve all.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("q", "k", "v"), ("w1", "w3"), ("wi_0", "wi_1"))
Blocks = Mapping[str, StoredWeight]


def pack_model(model: PreTrainedModel, blocks: Blocks) -> None:
    """Put packed modules in the place of linear maps and of the input embedding; everything else becomes float32.

    Weights are those of ``blocks`` where these have them, by name. Others are kept as they were loaded: in 4 or 8 bits
    by bitsandbytes, or as floats of any type. Each is freed when it is packed.
    """
    packer = _Packer(model, blocks)
    packer.pack_embedding()
    packer.pack_linears()
    _compute_in_float32(model)
    use_values(model, {name: blocks[name] for name in blocks if name not in packer.packed})


def use_values(model: nn.Module, blocks: Blocks) -> None:
    """Give plain modules the values of ``blocks``, rounded to the type that they compute in."""
    for name, stored in blocks.items():
        module = model.get_submodule(name.rpartition(".")[0])
        dense = stored.dense()
        module.get_parameter("weight").data.copy_(dense.T if isinstance(module, Conv1D) else dense)


class _Packer:
    """Packs one model. Tensors go by the first name that they have in it: ``packed`` are those that were."""

    def __init__(self, model: PreTrainedModel, blocks: Blocks) -> None:
        self.packed: set[str] = set()
        self._model = model
        self._blocks = blocks
        self._first_names = _first_names(model)
        self._places = _places(model)
        self._embedding_name = ""
        self._memory = LargePages()  # of all weights
        self._table: tuple[PackedWeight, nn.Parameter] | None = None  # of the embedding, for a head tied to it

    def pack_embedding(self) -> None:
        """Pack the input embedding's table, for all modules that share it: if each looks rows up, and no more."""
        first = self._model.get_input_embeddings()
        modules = [m for m in self._model.modules() if isinstance(m, nn.Embedding) and m.weight is first.weight]
        (name, *_) = self._places[id(first)]
        self._embedding_name = self._first_names[f"{name}.weight"]
        stored = self._blocks.get(self._embedding_name) or StoredWeight(first.weight.detach())
        table, weight = pack([stored], self._memory), placeholder(stored.out_features, stored.in_features)
        if all(looks_up(module, table, weight) for module in modules):
            self._table = table, weight
            self.packed.add(self._embedding_name)

    def pack_linears(self) -> None:
        """Pack every linear map that adapters can act on, siblings side by side."""
        names = [n for n, m in adaptable_modules(self._model).items() if isinstance(m, (nn.Linear, Conv1D))]
        for siblings in _grouped(names):
            stored = {name: weight for name in siblings if (weight := self._stored(name)) is not None}
            weights = list(stored.values())
            if len(weights) > 1 and _fit_together(weights):
                joined, offset = pack(weights, self._memory), 0
                for name, weight in stored.items():
                    packed = joined.rows(offset, offset + weight.out_features)
                    module = self._replace(name, packed, placeholder(weight.out_features, weight.in_features))
                    module.joined, module.offset = joined, offset
                    offset += weight.out_features
            else:
                for name, weight in stored.items():
                    packed = pack([weight], self._memory)
                    self._replace(name, packed, placeholder(weight.out_features, weight.in_features))

    def _stored(self, name: str) -> StoredWeight | None:
        """The weight of the linear map ``name``; None where it has no packed form, or where it was packed just now."""
        module: Any = self._model.get_submodule(name)
        first_name = self._first_names[f"{name}.weight"]
        if first_name == self._embedding_name:
            if self._table is not None:
                self._replace(name, *self._table)
            return None
        if first_name in self._blocks:
            return self._blocks[first_name]
        if is_4bit(module):
            return _stored_4bit(module.weight.data, module.weight.quant_state)
        if is_8bit(module):
            return StoredWeight(module.weight.data, (module.weight.SCB / 127)[:, None])
        if isinstance(module, Conv1D):
            return StoredWeight(module.weight.detach().T.contiguous())
        return StoredWeight(module.weight.detach()) if type(module).forward is nn.Linear.forward else None

    def _replace(self, name: str, packed: PackedWeight, weight: nn.Parameter) -> PackedLinear:
        module = self._model.get_submodule(name)
        bias = module.bias if isinstance(module.bias, Tensor) else None
        source_cls = getattr(module, "source_cls", None) or type(module)
        new = PackedLinear(packed, None if bias is None else bias.detach().float(), source_cls, weight)
        for place in self._places.pop(id(module)):
            self._model.set_submodule(place, new)
        self.packed.add(self._first_names[f"{name}.weight"])
        return new


def _first_names(model: nn.Module) -> dict[str, str]:
    """Of each name of a parameter the first one that the same parameter has."""
    names: dict[int, str] = {}
    return {n: names.setdefault(id(p), n) for n, p in model.named_parameters(remove_duplicate=False)}


def _places(model: nn.Module) -> dict[int, list[str]]:
    """The names of each module, by its id."""
    places = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        places[id(module)].append(name)
    return places


def _grouped(names: Sequence[str]) -> Iterator[list[str]]:
    """All of ``names``, those of siblings together and in the order of SIBLINGS."""
    left = dict.fromkeys(names)
    for name in names:
        if name in left:
            path, dot, leaf = name.rpartition(".")
            family = next((siblings for siblings in SIBLINGS if leaf in siblings), (leaf,))
            group = [found for sibling in family if (found := f"{path}{dot}{sibling}") in left]
            for found in group:
                del left[found]
            yield group


def _fit_together(weights: Sequence[StoredWeight]) -> bool:
    """Whether ``pack`` can lay them out as one."""
    whole = all(weight.out_features % ROWS == 0 for weight in weights[:-1])
    return whole and len({_format(weight) for weight in weights}) == 1


def _format(weight: StoredWeight) -> tuple[object, ...]:
    constants = (None if t is None else (t.dtype, t.shape[1]) for t in (weight.scale, weight.minimum))
    book = None if weight.book is None else tuple(weight.book.tolist())
    return weight.codes.dtype, weight.in_features, *constants, book


def _stored_4bit(data: Tensor, state: QuantState) -> StoredWeight | None:
    """A weight of bitsandbytes, its scales dequantized where they are quantized too; None where a block spans rows.

    Shape: ``data`` [N * K / 2, 1], the even k in the high half.
    """
    out_features, in_features = state.shape
    if in_features % state.blocksize:
        return None
    codes = data.view(torch.uint8).view(out_features, in_features // 2)
    scale = state.absmax
    if state.nested:
        from bitsandbytes.functional import dequantize_blockwise

        scale = dequantize_blockwise(scale, state.state2) + state.offset
    return StoredWeight(codes << 4 | codes >> 4, scale.float().view(out_features, -1), book=state.code.float())


def _compute_in_float32(model: nn.Module) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config.dtype = torch.float32
