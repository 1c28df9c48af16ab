"""The adapters that are resident, and their ops stacked for the set of adapters in the batch.

An adapter occupies what its tensors weigh; there are no slots. Low-rank updates of linear maps, and the other ops that
``adapters.batch.row_ops`` knows, run from where they lie. Of the rest, stacking costs a copy of the active adapters, so
a stack is kept as long as the batch's adapters are among its members, and a new one is made module by module, a part in
each step: until its turn comes, a module has the stack it had, and whoever joined stands beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import cast

from adapters.batch.grouped import Groups, group_ops
from adapters.batch.low_rank import Ops, Places, RowUpdates, row_updates, split_low_rank
from adapters.batch.row_ops import RowChanges, RowOpTables, row_changes, split_row_ops
from adapters.batch.rows import RowSegment
from adapters.ops import Adapter, Op
from hotkernels.low_rank import LowRankTable
from server.adapter_key import AdapterKey

STEP_BYTES = 64 << 20  # about 15 ms on a CPU
MODULES = 64  # the most that a step makes groups for
_Members = dict[object, tuple[Op, ...]]


class AdapterPool:
    """Resident adapters by key. Owned by the stepping thread.

    ``linears`` are the names of the base's linear maps. A step copies about ``step_bytes`` into stacks at most, so that
    large adapters that join a batch do not hold it up.
    """

    def __init__(self, linears: Container[str] = (), step_bytes: int = STEP_BYTES) -> None:
        self._adapters: dict[AdapterKey, Adapter] = {}
        self._places = Places()
        self._low_rank: dict[AdapterKey, LowRankTable | None] = {}
        self._linears = linears
        self._row_ops: dict[AdapterKey, RowOpTables | None] = {}
        self._ops: dict[AdapterKey, Ops] = {}  # all others
        self._nbytes = 0  # a running total: statistics ask for it in every step
        self._shared: Counter[int] = Counter()  # by identity, which of them use a tensor that several may have
        self._step_bytes = step_bytes
        self._stacked: frozenset[AdapterKey] = frozenset()
        self._groups: dict[str, Groups] = {}
        self._waiting: dict[str, _Members] = {}  # modules that are to be stacked anew

    def add(self, key: AdapterKey, adapter: Adapter) -> None:
        """Make an adapter resident."""
        assert key not in self._adapters, f"{key} is already resident"
        self._adapters[key] = adapter
        self._low_rank[key], others = split_low_rank(adapter.ops, self._places)
        self._row_ops[key], self._ops[key] = split_row_ops(others, self._places, self._linears)
        self._nbytes += self.weight(adapter)
        self._shared.update(id(tensor) for tensor in adapter.shared())

    def weight(self, adapter: Adapter) -> int:
        """Bytes that one more adapter adds: what it shares with those that are resident is there already."""
        return adapter.nbytes - sum(t.nbytes for t in adapter.shared() if id(t) in self._shared)

    def remove(self, key: AdapterKey) -> None:
        """Forget an adapter and every stack it may be part of."""
        adapter = self._adapters.pop(key)
        self._shared -= Counter(id(tensor) for tensor in adapter.shared())
        self._nbytes -= self.weight(adapter)
        del self._low_rank[key], self._row_ops[key], self._ops[key]
        if key in self._stacked or self._waiting:
            self._stacked, self._groups, self._waiting = frozenset(), {}, {}

    def __getitem__(self, key: AdapterKey) -> Adapter:
        return self._adapters[key]

    def __len__(self) -> int:
        return len(self._adapters)

    @property
    def nbytes(self) -> int:
        """Bytes of all resident adapters, the current stack not counted."""
        return self._nbytes

    def low_rank(self, segments: Sequence[RowSegment]) -> RowUpdates | None:
        """The low-rank updates of the rows in ``segments``, whose members are keys; None without any."""
        tables = ((self._low_rank[cast(AdapterKey, s.member)], s.start, s.stop) for s in segments)
        return row_updates(tables, self._places)

    def row_ops(self, segments: Sequence[RowSegment]) -> RowChanges | None:
        """What is done by row ops to the rows in ``segments``, whose members are keys; None without any."""
        tables = ((self._row_ops[cast(AdapterKey, s.member)], s.start, s.stop) for s in segments)
        return row_changes(tables, self._places)

    def groups(self, active: frozenset[AdapterKey]) -> Mapping[str, Groups]:
        """The other ops of the ``active`` adapters by module. May hold further members, which have no rows."""
        active = frozenset(key for key in active if self._ops[key])
        if not active:
            return {}
        # Members that left cost idle products, members that join cost a copy of all: keep up to twice what is needed.
        if not (active <= self._stacked and len(self._stacked) <= 2 * len(active)):
            self._join(active)
        self._stack()
        return self._groups

    def num_logits(self, active: frozenset[AdapterKey]) -> int:
        """The most logits of an ``active`` adapter; 0 when none differs from the base."""
        return max((self._adapters[key].num_logits or 0 for key in active), default=0)

    def _join(self, active: frozenset[AdapterKey]) -> None:
        """Let ``active`` adapters act at once, without a copy, and have their stacks made."""
        by_module: dict[str, _Members] = {}
        for key in sorted(active, key=str):
            for module, ops in self._ops[key].items():
                by_module.setdefault(module, {})[key] = ops
        self._groups = {module: _beside(self._groups.get(module), ops) for module, ops in by_module.items()}
        self._stacked, self._waiting = active, by_module

    def _stack(self) -> None:
        """Make the stacks of the next modules, as many as a step may copy, and of one at least."""
        copied = 0
        while self._waiting and copied < self._step_bytes:
            module, members = self._waiting.popitem()
            self._groups[module] = group_ops(members)
            made = self._groups[module]
            # making a group without a copy takes time as well
            copied += max(sum(group.copied for group in (*made.before, *made.after)), self._step_bytes // MODULES)


def _beside(stacked: Groups | None, members: _Members) -> Groups:
    """``stacked``, and beside it those of ``members`` that are not in it, each alone: nothing is copied."""
    found = stacked or Groups()
    present = {member for group in (*found.before, *found.after) for member in group.members}
    alone = [group_ops({member: ops}) for member, ops in members.items() if member not in present]
    before = [*found.before, *(group for groups in alone for group in groups.before)]
    return Groups(before, [*found.after, *(group for groups in alone for group in groups.after)])
