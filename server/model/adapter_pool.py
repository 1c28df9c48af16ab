"""The adapters that are resident, and their ops stacked for the set of adapters in the batch.

An adapter occupies what its tensors weigh; there are no slots. Stacking costs a copy of the active adapters, so a
stack is kept as long as the batch's adapters are among its members.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.batch.grouped import Groups, group_ops
from adapters.ops import Adapter, Op
from server.adapter_key import AdapterKey


class AdapterPool:
    """Resident adapters by key. Owned by the stepping thread."""

    def __init__(self) -> None:
        self._adapters: dict[AdapterKey, Adapter] = {}
        self._nbytes = 0  # a running total: statistics ask for it in every step
        self._stacked: frozenset[AdapterKey] = frozenset()
        self._groups: dict[str, Groups] = {}

    def add(self, key: AdapterKey, adapter: Adapter) -> None:
        """Make an adapter resident."""
        assert key not in self._adapters, f"{key} is already resident"
        self._adapters[key] = adapter
        self._nbytes += adapter.nbytes

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter and every stack it is part of."""
        self._nbytes -= self._adapters.pop(key).nbytes
        if key in self._stacked:
            self._stack(frozenset())

    def __getitem__(self, key: AdapterKey) -> Adapter:
        return self._adapters[key]

    def __len__(self) -> int:
        return len(self._adapters)

    @property
    def nbytes(self) -> int:
        """Bytes of all resident adapters, the current stack not counted."""
        return self._nbytes

    def groups(self, active: frozenset[AdapterKey]) -> Mapping[str, Groups]:
        """The ops of the ``active`` adapters by module. May hold further members, which have no rows."""
        active = frozenset(key for key in active if self._adapters[key].ops)
        if not active:
            return {}
        # Members that left cost idle products, members that join cost a copy of all: keep up to twice what is needed.
        if not (active <= self._stacked and len(self._stacked) <= 2 * len(active)):
            self._stack(active)
        return self._groups

    @property
    def num_logits(self) -> int:
        """The most logits of an adapter whose ops ``groups`` gave out last; 0 when none differs from the base."""
        return max((self._adapters[key].num_logits or 0 for key in self._stacked), default=0)

    def _stack(self, members: frozenset[AdapterKey]) -> None:
        self._stacked = members
        by_module: dict[str, dict[object, tuple[Op, ...]]] = {}
        for key in sorted(members, key=str):
            for module, ops in self._adapters[key].ops.items():
                by_module.setdefault(module, {})[key] = ops
        self._groups = {module: group_ops(ops) for module, ops in by_module.items()}
