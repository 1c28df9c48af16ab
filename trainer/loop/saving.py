"""Checkpoints are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from trainer.errors import CheckpointError
from trainer.loop.failures import is_out_of_memory


class WholeCheckpoints:
    """To be mixed in before transformers' Trainer: checkpoints are whole, and every new best has one."""

    args: Any
    state: Any
    control: Any

    def find_best(self) -> None:
        """Look for the best checkpoint in this run's directory: it may have been moved since the state was saved."""
        if self.state.best_global_step:
            best = self._directory(self.state.best_global_step)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        begun = super()._init_training_state(*args, **kwargs)  # type: ignore[misc]
        self.find_best()
        return begun

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Save a new best at once: transformers would only if a checkpoint is due, and call an older one the best."""
        found: bool = super()._determine_best_metric(metrics, trial)  # type: ignore[misc]
        if found and self.args.load_best_model_at_end:
            self.control.should_save = True
        return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with whole_or_none(self._directory(self.state.global_step)):
            super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _directory(self, step: int) -> Path:
        return Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


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
