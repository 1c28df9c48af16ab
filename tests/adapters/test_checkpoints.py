from __future__ import annotations

import threading
from pathlib import Path

import torch
from safetensors.torch import save_file

from adapters.checkpoints import checkpoint, held_up_by
from adapters.package.tensors import read_tensors


def test_only_the_thread_that_asked_is_held_up() -> None:
    outer: list[None] = []
    inner: list[None] = []
    with held_up_by(lambda: outer.append(None)):
        with held_up_by(lambda: inner.append(None)):
            checkpoint()
        checkpoint()
        other = threading.Thread(target=checkpoint)
        other.start()
        other.join()
    checkpoint()
    assert (len(outer), len(inner)) == (1, 1)


def test_many_small_tensors_can_be_held_up_at_each(tmp_path: Path) -> None:
    save_file({str(i): torch.zeros(1) for i in range(50)}, tmp_path / "t.safetensors")
    passed: list[None] = []
    with held_up_by(lambda: passed.append(None)):
        read_tensors(tmp_path / "t.safetensors")
    assert len(passed) >= 3 * 50  # its entry, its bytes, its values
