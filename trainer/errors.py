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

from collections.abc import Iterator
from contextlib import contextmanager


class TrainerError(Exception):
    """Training or publishing cannot go on."""


class ConfigError(TrainerError):
    """A key is unknown, or a value is not usable; the message names the key.

    Several refusals are told together, each on a line of its own.
    """

    def __init__(self, *refusals: str) -> None:
        super().__init__(*dict.fromkeys(" ".join(refusal.split()) for refusal in refusals))

    @property
    def refusals(self) -> tuple[str, ...]:
        """Each in one line."""
        return self.args

    def __str__(self) -> str:
        if len(self.args) == 1:
            return str(self.args[0])
        return "\n  ".join((f"{len(self.args)} settings are refused:", *self.args))


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


class Refusals:
    """Gathers ConfigErrors, so that all are told at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep the ConfigError that is raised within, and go on behind the block."""
        try:
            yield
        except ConfigError as error:
            self.found += error.refusals

    def tell(self) -> None:
        """Raise ConfigError when there are any."""
        if self.found:
            raise ConfigError(*self.found)


def in_lines(error: BaseException) -> str:
    """What ``error`` says: one line, and one for each setting where several are refused."""
    return str(error) if isinstance(error, ConfigError) else " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """The first line of what a library's ``error`` says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
