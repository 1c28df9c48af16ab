"""Errors of the trainer, drawn once. Each message is one line that says what is wrong and what to do.

TrainerError
├── ConfigError      a key or value of the configuration
├── DataError        the training data
├── CheckpointError  a run that cannot be started, resumed or exported
├── TrainingError    training itself went wrong
├── PublishError     a server refused the package, or cannot be reached
├── EvaluationError  answers cannot be had or cannot be scored
└── ServerStartError a server of our own does not start
"""

from __future__ import annotations


class TrainerError(Exception):
    """Training or publishing cannot go on."""


class ConfigError(TrainerError):
    """A key is unknown, or a value is not usable; the message names the key."""


class DataError(TrainerError):
    """The training data cannot be used; the message names file and line where there is one."""


class CheckpointError(TrainerError):
    """The output directory holds another run, no checkpoint, or a checkpoint that does not fit."""


class TrainingError(TrainerError):
    """The loss became NaN or infinite."""


class PublishError(TrainerError):
    """The server refused the package or did not answer."""


class EvaluationError(TrainerError):
    """Answers cannot be had from the server, or cannot be scored as asked."""


class ServerStartError(TrainerError):
    """A ``hotswap serve`` that was started for a while does not become ready."""


def first_line(error: BaseException) -> str:
    """The first line of what a library's ``error`` says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
