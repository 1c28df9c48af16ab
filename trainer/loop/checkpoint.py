"""Checkpoints of a run: everything that training changes, what a resumed run must share with it, whole or not at all.

peft saves a prompt encoder flattened to its output, from which training cannot go on. So checkpoints hold the trained
parameters themselves, by name. The optimizer, the schedule and the random states beside them are transformers' files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from bases.compute import is_out_of_memory
from trainer.config.schema import TrainConfig
from trainer.distributed.launch import process_rank
from trainer.distributed.shards import put, shape_of, whole
from trainer.errors import CheckpointError
from trainer.files import write_failure
from trainer.methods import trainable_parameters
from trainer.methods.adalora import dynamics_of

PARAMETERS_FILE = "trainable.safetensors"
METHOD_FILE = "method.safetensors"  # what a method with dynamics of its own depends on beside its parameters
IDENTITY_FILE = "run.json"  # in a checkpoint; the output directory has another of this name (loop.output)
STATE_FILE = "trainer_state.json"  # transformers writes it last: a checkpoint without it is incomplete
_NAME = re.compile(r"checkpoint-[0-9]+")
_FREE = {
    *("log_steps", "eval_steps", "eval_at_start", "save_steps", "keep_checkpoints", "package_checkpoints"),
    *("exact_match_rows", "threads"),
    *("generate_rows", "generate_metrics", "generate_max_tokens"),
    *("early_stopping", "early_stopping_min_delta", "tensorboard", "trackers"),
}


class RunIdentity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides the numbers of a run. ``settings`` leaves out what only decides when to log and save."""

    base: str
    data: str
    settings: dict[str, Any]


def identity_of(
    config: TrainConfig, base_fingerprint: str, data_sha256: str, start_sha256: str | None = None
) -> RunIdentity:
    """The identity of the run of ``config`` on a base and data with these hashes, and of what it starts from."""
    settings: dict[str, Any] = msgspec.to_builtins(config)
    settings["training"] = {key: value for key, value in settings["training"].items() if key not in _FREE}
    settings["data"] = {key: value for key, value in settings["data"].items() if key not in ("path", "test")}
    if isinstance(config.data.validation, str):
        settings["data"]["validation"] = "a file"  # its content is part of the data's hash
    settings["start_from"] = start_sha256
    del settings["output"], settings["base"], settings["trust_remote_code"]
    return RunIdentity(base_fingerprint, data_sha256, settings)


def save_parameters(model: torch.nn.Module, directory: Path, identity: RunIdentity) -> None:
    """Write what training has changed, and ``identity``, into ``directory``.

    Every process that holds a part of ``model`` must call it; the first one writes.
    """
    tensors = whole_parameters(model)
    if process_rank() > 0:
        return
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / PARAMETERS_FILE)
    if dynamics := dynamics_of(model):
        state = {name: value.detach().cpu().contiguous() for name, value in dynamics.state().items()}
        save_file(state, directory / METHOD_FILE)
    (directory / IDENTITY_FILE).write_bytes(msgspec.json.encode(identity))


def whole_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the parameters that training changes, by name, on the CPU. Every process must call it."""
    parameters = trainable_parameters(model)
    return {name: whole(value).detach().cpu().contiguous().clone() for name, value in parameters.items()}


def load_parameters(model: torch.nn.Module, directory: Path) -> None:
    """Put the parameters saved in ``directory`` into ``model``. CheckpointError unless they are exactly its own."""
    put_parameters(model, read_parameters(directory), directory)
    if dynamics := dynamics_of(model):
        dynamics.load_state(_read(directory / METHOD_FILE))


def read_parameters(directory: Path) -> dict[str, torch.Tensor]:
    """The parameters saved in ``directory``, by name. Raises CheckpointError, also where they are not finite."""
    tensors = _read(directory / PARAMETERS_FILE)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise CheckpointError(f"{directory} holds weights that are not finite; remove it, and an earlier one is used")
    return tensors


def put_parameters(model: torch.nn.Module, saved: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Put ``saved``, read from ``directory``, into ``model``. CheckpointError unless they are exactly its own."""
    own = trainable_parameters(model)
    if {name: value.shape for name, value in saved.items()} != {name: shape_of(value) for name, value in own.items()}:
        raise CheckpointError(f"{directory} holds other parameters than this method trains")
    for name, parameter in own.items():
        put(parameter, saved[name])


def read_identity(directory: Path) -> RunIdentity:
    """Of which run the checkpoint in ``directory`` is. Raises CheckpointError."""
    try:
        return msgspec.json.decode((directory / IDENTITY_FILE).read_bytes(), type=RunIdentity)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{directory} is not a checkpoint of this trainer") from error


def check_identity(directory: Path, identity: RunIdentity) -> None:
    """Raise CheckpointError, naming the difference, when the checkpoint is of another run than ``identity``."""
    saved = read_identity(directory)
    for what, before, now in (("base model", saved.base, identity.base), ("data", saved.data, identity.data)):
        if before != now:
            raise CheckpointError(f"cannot resume: the {what} changed since {directory.name} was saved")
    ours = msgspec.json.decode(msgspec.json.encode(identity.settings))
    before_all, now_all = dict(_leaves(saved.settings)), dict(_leaves(ours))
    for key in sorted(before_all.keys() | now_all.keys(), key=lambda key: (key != "method.type", key)):
        if before_all.get(key) != now_all.get(key):
            raise CheckpointError(
                f"cannot resume: {key} was {before_all.get(key)!r} and is now {now_all.get(key)!r}; "
                "set it back, or start a new run with another output"
            )


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints in ``output``, oldest first."""
    found = [path for path in step_directories(output) if not is_torn(path) and (path / PARAMETERS_FILE).is_file()]
    return sorted(found, key=step_of)


def step_directories(output: Path) -> list[Path]:
    """The directories in ``output`` with a checkpoint's name, whole or not: ``checkpoint-40``, not a copy's name."""
    return [path for path in output.glob("checkpoint-*") if _NAME.fullmatch(path.name) and path.is_dir()]


def step_of(checkpoint: Path) -> int:
    """The step after which ``checkpoint`` was saved."""
    return int(checkpoint.name.rsplit("-", 1)[-1])


def saved_step(checkpoint: Path) -> int:
    """As ``step_of`` for a checkpoint that may be called otherwise. Raises CheckpointError when it is none."""
    try:
        return int(TrainerState.load_from_json(str(checkpoint / STATE_FILE)).global_step)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint / STATE_FILE} cannot be read; use another checkpoint") from error


def losses_of(checkpoint: Path) -> dict[str, float]:
    """What was measured at the step of a whole ``checkpoint``, as packages tell it."""
    state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
    names = {"loss": "train_loss", "eval_loss": "validation_loss"}
    return {
        names[key]: value
        for entry in state.log_history
        if entry.get("step") == state.global_step
        for key, value in entry.items()
        if key in names
    }


def is_torn(checkpoint: Path) -> bool:
    """Whether writing ``checkpoint`` was cut short."""
    try:
        json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return False


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read; use another checkpoint") from error
    return tensors


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            out += _leaves(value, f"{prefix}{key}.")
        else:
            out.append((prefix + key, value))
    return out


class WholeCheckpoints:
    """To be mixed in before transformers' Trainer: whole checkpoints of what is trained, one for every new best."""

    identity: RunIdentity
    args: Any
    state: Any
    control: Any
    model: Any
    accelerator: Any
    _limit: int | None = None

    @property
    def trained(self) -> Any:
        """The model that is trained, as no process of several holds it wrapped."""
        return self.accelerator.unwrap_model(self.model)

    def restore(self, checkpoint: Path) -> None:
        """Be as after the run that ended with ``checkpoint``."""
        load_parameters(self.trained, checkpoint)
        self.state = TrainerState.load_from_json(str(checkpoint / STATE_FILE))
        self.find_best()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters; all processes take part."""
        save_parameters(self.trained, Path(output_dir or self.args.output_dir), self.identity)

    def find_best(self) -> None:
        """Look for the best checkpoint in this run's directory: it may have been moved since the state was saved."""
        if self.state.best_global_step:
            best = self._directory(self.state.best_global_step)
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', but which checkpoints to keep is decided here: it would remove copies made by hand too."""
        self._limit, self.args.save_total_limit = self.args.save_total_limit or self._limit, None
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_parameters(self.trained, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        load_parameters(self.trained, Path(self.state.best_model_checkpoint))

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
        reason = write_failure(error) or " ".join(str(error).split()).rstrip(".")
        raise CheckpointError(
            f"{directory} cannot be written ({reason}); earlier checkpoints are kept: free space, or lower "
            "training.keep_checkpoints, and go on with --resume"
        ) from error
