"""Low-rank updates of many adapters, each on its own rows of a batch.

An adapter's factors are listed once, in a table by the number of the place where they act. So what a step has to tell
is whose its rows are, and a product which places it computes; neither depends on how many adapters there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotkernels import native

_ADD_LOW_RANK = native.Function("add_low_rank", "pipiipipi")


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """An update of one linear map.

    Shape: ``a`` [in_features, r], ``b`` [r, out_features], float32, bfloat16 or float16; any r. ``a`` lies transposed,
    as files have it and products with few columns like it, or as ``b`` does.
    """

    a: Tensor
    b: Tensor

    @property
    def is_plain(self) -> bool:
        """Whether the library can read them."""
        a, b = self.a, self.b
        is_dense = b.is_contiguous() and (a.is_contiguous() or a.mT.is_contiguous())
        return is_dense and all(t.is_cpu and t.dtype in native.STORED for t in (a, b))

    def numbers(self) -> list[int]:
        """As the library reads them."""
        a, b = self.a, self.b
        a_type, b_type = native.STORED.get(a.dtype, 0), native.STORED.get(b.dtype, 0)
        return [a.data_ptr(), b.data_ptr(), a.shape[1], a_type, a.mT.is_contiguous(), b_type, b.shape[1]]


class LowRankTable:
    """The updates of one adapter: at place ``i`` the factors ``places[i]``, or none; none beyond the last either."""

    def __init__(self, places: Sequence[LowRankFactors | None]) -> None:
        self.places = places  # keeps the tensors alive
        rows = [[0] * 7 if factors is None else factors.numbers() for factors in places]
        self._table = torch.tensor(rows, dtype=torch.int64).view(-1, 7)
        self.address = self._table.data_ptr()
        self.is_plain = all(factors is None or factors.is_plain for factors in places)

    def acts_at(self, place: int) -> bool:
        """Whether there is an update at ``place``."""
        return place < len(self.places) and self.places[place] is not None


class LowRankMaps:
    """Linear maps whose outputs are columns of one result: the place of each, and where its columns begin.

    ``mask`` has a bit for every place.
    """

    def __init__(self, maps: Sequence[tuple[int, int]]) -> None:
        self.maps = maps
        self.mask = sum(1 << place for place, _ in maps)
        self._numbers = torch.tensor(maps, dtype=torch.int64).view(-1, 2)
        self.address, self.count = self._numbers.data_ptr(), len(maps)


class LowRankRows:
    """Whose updates the rows of a batch get: (table, start, stop) for each segment. Segments do not overlap."""

    def __init__(self, segments: Sequence[tuple[LowRankTable, int, int]]) -> None:
        self.segments = segments  # keeps the tables alive
        rows = [(table.address, len(table.places), start, stop) for table, start, stop in segments]
        self._numbers = torch.tensor(rows, dtype=torch.int64).view(-1, 4)
        self.address, self.count = self._numbers.data_ptr(), len(segments)


def add_low_rank(x: Tensor, y: Tensor, maps: LowRankMaps, rows: LowRankRows) -> None:
    """Add the updates of all ``maps`` to the rows of ``y`` that get them, in place.

    Semantics: for every segment of ``rows`` and every (place, column) of ``maps``, with ``a, b = table.places[place]``
    where there are such: ``y[start:stop, column : column + out] += (x[start:stop] @ a) @ b``, both products in float32,
    added up in order.
    Shape: ``x`` [T, in], ``y`` [T, the columns of all maps], rows any distance apart.
    """
    is_plain = x.is_cpu and all(table.is_plain for table, _, _ in rows.segments)
    if not is_plain or native.library() is None:
        add_low_rank_torch(x, y, maps, rows)
    elif native.is_native(x, y) and y.dtype == torch.float32:
        _add(x, y, maps, rows)
    else:
        given, changed = x.float().contiguous(), y.float().contiguous()
        _add(given, changed, maps, rows)
        y.copy_(changed)


def _add(x: Tensor, y: Tensor, maps: LowRankMaps, rows: LowRankRows) -> None:
    _ADD_LOW_RANK(
        x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), x.shape[1],
        maps.address, maps.count, rows.address, rows.count,
    )  # fmt: skip


def add_low_rank_torch(x: Tensor, y: Tensor, maps: LowRankMaps, rows: LowRankRows) -> None:
    """The twin of ``add_low_rank``."""
    for table, start, stop in rows.segments:
        for place, column in maps.maps:
            factors = table.places[place] if table.acts_at(place) else None
            if factors is not None:
                update = (x[start:stop].float() @ factors.a.float()) @ factors.b.float()
                y[start:stop, column : column + update.shape[1]] += update.to(y.dtype)
