"""Failures of memory and disk in plain words: which knobs help, with their present values."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from bases.compute import is_out_of_memory
from trainer.config.schema import TrainConfig
from trainer.errors import CheckpointError, TrainingError
from trainer.files import FULL, write_failure

_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Turn running out of memory or disk, within, into one line. Raises TrainingError or CheckpointError."""
    try:
        yield
    except (MemoryError, RuntimeError, SafetensorError, OSError) as error:
        if is_out_of_memory(error):
            raise TrainingError(f"out of memory; {advice(config)}") from error
        number = error.errno if isinstance(error, OSError) else None
        reason = write_failure(error)
        if not reason or (isinstance(error, OSError) and number not in FULL | _CLOSED):
            raise
        where = getattr(error, "filename", None) or config.output
        raise CheckpointError(f"{where} cannot be written: {reason}; {disk_advice(number)}") from error


def disk_advice(number: int | None) -> str:
    """What to do about an OSError of this number."""
    if number in _CLOSED:
        return "choose an output that may be written to"
    return "free space or choose another output, then go on with --resume"


def advice(config: TrainConfig) -> str:
    """The settings of ``config`` that would lower memory, with their present values."""
    training = config.training
    knobs = []
    if training.batch_size > 1:
        batch, accumulation = _halved(training.batch_size, training.gradient_accumulation)
        knobs.append(
            f"batch_size={batch} with gradient_accumulation={accumulation} "
            f"(now {training.batch_size} and {training.gradient_accumulation}; the steps stay the same)"
        )
    if not training.gradient_checkpointing:
        knobs.append("gradient_checkpointing=true (now false)")
    knobs.append(f"a lower max_length (now {config.data.max_length})")
    if training.quantize == "none" and "nf4" in config.method.QUANTIZED:
        knobs.append("quantize=nf4 (now none)")
    if training.optimizer == "adamw" and config.method.KIND in ("full", "freeze"):
        knobs.append("optimizer=adamw_8bit (now adamw)")
    return f"lower what a step holds, in this order: {', '.join(knobs)}; or take a smaller base"


def _halved(batch: int, accumulation: int) -> tuple[int, int]:
    """Half the batch, or single rows where it is odd, for the same rows in a step."""
    return (batch // 2, accumulation * 2) if batch % 2 == 0 else (1, accumulation * batch)
