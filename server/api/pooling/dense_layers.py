"""What pooled states still go through in this process: the Dense layers of a model of sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from adapters.errors import PackageError
from adapters.package.dense import Dense, through
from server.engine.messages import PoolingParams
from server.engine.pooling import finished
from server.errors import UnknownModelError


@dataclass(frozen=True)
class DenseLayers:
    """The ``layers`` of the model in ``directory``, and how what leaves them is cut and brought to length 1."""

    layers: tuple[Dense, ...]
    directory: Path
    dimensions: int
    normalize: bool

    def through(self, vectors: Sequence[bytes]) -> list[bytes]:
        """Pooled states, little-endian float32, as vectors. Blocks. Raises UnknownModelError without its files."""
        rows = np.stack([np.frombuffer(vector, "<f4") for vector in vectors])
        try:
            for layer in self.layers:
                rows = through(layer, self.directory, rows)
        except PackageError as error:  # they were sound when they came
            raise UnknownModelError(f"the model was removed while this request ran: {error}") from error
        made = finished(rows, PoolingParams(dimensions=self.dimensions, normalize=self.normalize))
        return [row.astype("<f4").tobytes() for row in made]

    def before(self, params: PoolingParams) -> PoolingParams:
        """What the engine is asked for: states that are neither cut nor brought to length 1 yet."""
        return msgspec.structs.replace(params, dimensions=0, normalize=False)
