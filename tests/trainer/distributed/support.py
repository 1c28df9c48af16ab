"""Runs of several processes without the command line, so that their start is paid for once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.multiprocessing.spawn import start_processes

from tests.trainer import forked
from trainer.config.loading import dump_config, load_config
from trainer.config.schema import TrainConfig
from trainer.serving.local_server import free_port


def train_in(nproc: int, configs: Sequence[TrainConfig], folder: Path, *, resume: bool = False) -> None:
    """Train each of ``configs``, one after the other, in the same ``nproc`` new processes."""
    files = []
    for number, config in enumerate(configs):
        files.append(folder / f"several-{number}.yaml")
        files[-1].write_text(dump_config(config), encoding="utf-8")
    ports = [free_port() for _ in configs]
    arguments = (nproc, files, ports, resume)
    start_processes(_work, arguments, nproc, start_method=forked.METHOD)  # type: ignore[no-untyped-call]


def _work(rank: int, nproc: int, files: Sequence[Path], ports: Sequence[int], resume: bool) -> None:
    from trainer.commands.common import silence_libraries
    from trainer.run import train

    torch.set_num_threads(1)
    silence_libraries()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(nproc), "MASTER_ADDR": "127.0.0.1"}
    for file, port in zip(files, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        train(load_config(file, [], {}), resume=resume)
