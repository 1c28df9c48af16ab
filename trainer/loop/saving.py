"""Checkpoints are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from trainer.errors import CheckpointError
from trainer.loop.failures import is_out_of_memory


@contextmanager
def whole_or_none(directory: Path) -> Iterator[None]:
    """Write the checkpoint ``directory`` within; when that fails it is removed, and CheckpointError says why.

    A process that is killed meanwhile leaves a directory without its last file, which is never resumed from. torch and
    safetensors report a full disk as errors of their own, so that all of theirs are taken for one.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        shutil.rmtree(directory, ignore_errors=True)
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
        raise CheckpointError(
            f"{directory} cannot be written ({reason}); earlier checkpoints are kept: free space, or lower "
            "training.keep_checkpoints, and go on with --resume"
        ) from error
