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
from trainer.loop.checkpoint import checkpoints
from trainer.memory import is_out_of_memory


class WholeCheckpoints:
    """To be mixed in before transformers' Trainer: checkpoints are whole, and every new best has one."""

    args: Any
    state: Any
    control: Any
    _limit: int | None = None

    def find_best(self) -> None:
        """Look for the best checkpoint in this run's directory: it may have been moved since the state was saved."""
        if self.state.best_global_step:
            best = self._directory(self.state.best_global_step)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', but which checkpoints to keep is decided here: it would remove copies made by hand too."""
        self._limit, self.args.save_total_limit = self.args.save_total_limit or self._limit, None
        return super().train(*args, **kwargs)  # type: ignore[misc]

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
        if self.args.should_save:
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        """Keep the last, the best and then the newest checkpoints, so many as were asked for."""
        found = checkpoints(Path(self.args.output_dir))
        kept = {found[-1], Path(self.state.best_model_checkpoint or found[-1])}
        removable = [path for path in found if path not in kept]
        for path in removable[: max(len(found) - max(self._limit or len(found), len(kept)), 0)]:
            shutil.rmtree(path, ignore_errors=True)

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
