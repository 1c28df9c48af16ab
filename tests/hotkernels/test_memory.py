"""Memory that is given out piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hotkernels.memory import LINE, LargePages


def mapped_bytes() -> int:
    """Addresses in use by this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * 4096


def test_pieces_are_written_to_apart() -> None:
    memory = LargePages(run=1000)
    pieces = [memory.empty(size) for size in (1, 64, 65, 0, 5000, 300)]
    for i, piece in enumerate(pieces):
        piece.fill_(i)
    assert [piece.tolist() for piece in pieces] == [[i] * len(piece) for i, piece in enumerate(pieces)]
    assert all(piece.data_ptr() % LINE == 0 for piece in pieces)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (2, 3, 4)])
def test_a_copy_is_laid_out_alike(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    memory, tensor = LargePages(), torch.randint(0, 2, shape).to(dtype)
    copy = memory.copy(tensor)
    assert torch.equal(copy, tensor)
    assert (copy.dtype, copy.stride()) == (tensor.dtype, tensor.stride())
    if len(shape) > 1:
        turned = memory.copy(tensor.mT)
        assert torch.equal(turned, tensor.mT)
        assert turned.mT.is_contiguous()
        tensor.zero_()
        assert bool(turned.any())


def test_what_has_gaps_is_left_where_it_is() -> None:
    tensor = torch.arange(12).view(3, 4)[:, :2]
    assert LargePages().copy(tensor) is tensor


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what a process has mapped")
def test_memory_goes_back_with_the_last_piece() -> None:
    memory = LargePages(run=1 << 30)
    before = mapped_bytes()
    first, second = memory.empty(100), memory.empty(100)
    del memory, first
    assert mapped_bytes() > before + (1 << 29)
    assert second.fill_(1).sum() == 100
    del second
    assert mapped_bytes() < before + (1 << 29)
