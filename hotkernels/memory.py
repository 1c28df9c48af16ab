"""Memory in large pages, for what every step reads from one end to the other.

In pages of 4 KB a step that reads a few hundred megabytes has to look up each of a hundred thousand addresses, and what
is fetched ahead ends with the page. In pages of 2 MB it has not.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress

import torch
from torch import Tensor

LINE = 64  # bytes of the caches; every piece begins with one
_RUN = 32 << 20


class LargePages:
    """Gives out pieces of memory that lie side by side, on the CPU.

    The machine is asked for ``run`` bytes at a time. It gives large pages where it has some, none for what was not
    written to, and takes a run back when all tensors in it are gone.
    """

    def __init__(self, run: int = _RUN) -> None:
        self._run = run
        self._left = torch.empty(0, dtype=torch.uint8)

    def empty(self, nbytes: int) -> Tensor:
        """The next ``nbytes`` bytes, [nbytes] uint8."""
        size = -(-nbytes // LINE) * LINE
        if size > len(self._left):
            self._left = mapped(max(size, self._run))
        piece, self._left = self._left[:nbytes], self._left[size:]
        return piece

    def copy(self, tensor: Tensor) -> Tensor:
        """``tensor`` in the next bytes, laid out as it was; itself where it is not on the CPU or has gaps."""
        if not tensor.is_cpu:
            return tensor
        if tensor.is_contiguous():
            return self.empty(tensor.nbytes).view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return self.copy(tensor.mT).mT if tensor.dim() > 1 and tensor.mT.is_contiguous() else tensor


def mapped(nbytes: int) -> Tensor:
    """New memory of zeros, [nbytes] uint8: large pages where there are some, none for what was not written to.

    It is given back with the last tensor that shows it.
    """
    if sys.platform != "linux":
        return torch.zeros(nbytes, dtype=torch.uint8)
    pages = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)
