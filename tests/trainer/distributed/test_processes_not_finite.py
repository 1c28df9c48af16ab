"""What one process finds amiss ends the run in all of them, none waiting for another."""

from __future__ import annotations

import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from trainer.distributed import processes
from trainer.loop.finite import FiniteTraining, NotFiniteError
from trainer.serving.local_server import free_port


class Training(FiniteTraining):
    """A run of nothing but its numbers, after its third step."""

    def __init__(self, folder: Path) -> None:
        self.args = SimpleNamespace(output_dir=str(folder), learning_rate=1.0)
        self.state = SimpleNamespace(global_step=3)
        self.model = torch.nn.Linear(2, 2)


def _work(rank: int, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    said = []
    with processes.joined():
        good, loss, weight = Training(folder), Training(folder), Training(folder)
        if rank == 1:
            weight.model.weight.data[0] = math.inf
        for training, value in ((good, 1.0), (loss, math.nan if rank == 1 else 1.0), (weight, 1.0)):
            training.watch.add(torch.tensor(value))
            training.watch.end_step(3, 1.0)
            try:
                training.require_finite()
                said.append("finite")
            except NotFiniteError as error:
                said.append(str(error).split(",")[0])
    (folder / f"{rank}.txt").write_text("\n".join(said))


@pytest.mark.slow
def test_all_processes_stop_for_the_numbers_of_one(tmp_path: Path) -> None:
    spawn(_work, (tmp_path, free_port()), 2)  # type: ignore[no-untyped-call]
    weight = "a trained weight is no longer finite at step 3"
    first = ["finite", "the loss of another process is no longer finite at step 3", weight]
    assert (tmp_path / "0.txt").read_text().splitlines() == first
    assert (tmp_path / "1.txt").read_text().splitlines() == ["finite", "the loss became nan at step 3", weight]
