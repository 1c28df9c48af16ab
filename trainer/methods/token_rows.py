"""Single tokens with trained embeddings beside any method, for tokens that the base may not have.

Computes what peft's ``trainable_token_indices`` does on a base whose vocabulary was resized, and is saved in its
format. Nothing is resized here and no table is copied at every step; methods for which peft has no such option have it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bases.model import output_head
from trainer.base_model import Base
from trainer.errors import ConfigError

CONFIG_KEY = "trainable_token_indices"
_CHILD = "token_rows"


class TokenRows(nn.Module):
    """Rows of the embedding or the head, at ``path`` in the base, for the sorted token ``ids``.

    Shape: ``ids`` [k]; ``rows`` [k, hidden_size], float32; ``size`` is how many tokens the base's own table has.
    """

    ids: Tensor

    def __init__(self, path: str, ids: Tensor, rows: Tensor, size: int) -> None:
        super().__init__()
        self.path, self.size = path, size
        self.register_buffer("ids", ids, persistent=False)
        self.rows = nn.Parameter(rows.float())

    def tensor_name(self) -> str:
        """The name of the rows in a package."""
        return f"base_model.model.{self.path}.token_adapter.trainable_tokens_delta"


def attach(base: Base) -> list[TokenRows]:
    """Let the embedding and the head of ``base`` use trained rows for its ``tokens``. Raises ConfigError.

    In a tied base both use the same rows. The rows do not require gradients yet: methods freeze what they find.
    """
    embedding, head = base.model.get_input_embeddings(), output_head(base.model)
    if getattr(head, "bias", None) is not None:
        raise ConfigError("added_tokens: the output head of this base has a bias, with which they are not served")
    table = embedding.weight
    _check_ids(base, len(table))
    ids = torch.tensor([token.id for token in base.tokens], device=table.device)
    wrapped = [TokenRows(_path(base.model, embedding), ids, initial_rows(base, table), len(table))]
    if head.weight is not table:
        rows = initial_rows(base, head.weight)
        wrapped.append(TokenRows(_path(base.model, head), ids, rows, len(head.weight)))
        head.add_module(_CHILD, wrapped[-1])
    embedding.add_module(_CHILD, wrapped[0])
    _bind_embedding(embedding, wrapped[0])
    _bind_head(head, wrapped[-1])
    return wrapped


def train_rows(base: Base, wrapped: list[TokenRows]) -> None:
    """Let the rows be trained. ConfigError when the method trains embedding or head as well."""
    inputs, head = base.model.get_input_embeddings(), output_head(base.model)
    for place in (inputs, head):
        weight = getattr(place, "weight", None)
        is_touched = _CHILD not in dict(inputs.named_children()) or weight is None or weight.requires_grad
        if is_touched or hasattr(place, "base_layer"):
            raise ConfigError("added_tokens: the method trains the embedding or the head too; take them out of it")
    for rows in wrapped:
        rows.requires_grad_(True)


def rows_of(model: nn.Module) -> list[TokenRows]:
    """The trained rows in ``model``; none without added tokens."""
    return [module for module in model.modules() if isinstance(module, TokenRows)]


def indices_of(wrapped: list[TokenRows]) -> list[int] | dict[str, list[int]]:
    """What a package's configuration says under CONFIG_KEY, as peft does: by module where the base is not tied."""
    by_path: dict[str, list[int]] = {rows.path: rows.ids.tolist() for rows in wrapped}
    return by_path if len(wrapped) > 1 else next(iter(by_path.values()))


@torch.no_grad()
def initial_rows(base: Base, table: Tensor) -> Tensor:
    """What the tokens begin with: the mean of the rows of their pieces in ``table``. Shape: [k, hidden_size]."""
    mean = table.float().mean(0)
    means = [table[list(token.pieces)].float().mean(0) if token.pieces else mean for token in base.tokens]
    return torch.stack(means)


def _check_ids(base: Base, size: int) -> None:
    new = [token.id for token in base.tokens if token.id >= size]
    if new and new[0] != size:
        raise ConfigError(
            f"added_tokens: they would have numbers from {new[0]}, and the embedding of this base ends at {size - 1}: "
            "its tokenizer has more tokens than the model"
        )


def _bind_embedding(embedding: Any, rows: TokenRows) -> None:
    plain = embedding.forward
    scale = getattr(embedding, "embed_scale", None)  # some architectures multiply what they look up

    def forward(tokens: Tensor) -> Tensor:
        y: Tensor = plain(tokens.clamp(max=rows.size - 1))
        place = torch.searchsorted(rows.ids, tokens.contiguous()).clamp(max=len(rows.ids) - 1)
        new = rows.rows[place] if scale is None else rows.rows[place] * scale
        return torch.where((rows.ids[place] == tokens)[..., None], new.to(y.dtype), y)

    embedding.forward = forward


def _bind_head(head: Any, rows: TokenRows) -> None:
    plain = head.forward
    known = rows.ids[rows.ids < rows.size]

    def forward(states: Tensor) -> Tensor:
        new = nn.functional.linear(states, rows.rows.to(states.dtype))
        logits: Tensor = plain(states)
        if len(known):
            logits = logits.index_copy(-1, known, new[..., : len(known)].to(logits.dtype))
        return torch.cat([logits, new[..., len(known) :].to(logits.dtype)], dim=-1)

    head.forward = forward


def _path(model: nn.Module, wanted: nn.Module) -> str:
    names = {id(module): name for name, module in model.named_modules()}
    path: str = names[id(wanted)]
    return path
