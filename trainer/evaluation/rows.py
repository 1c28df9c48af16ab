"""Which rows a model is asked, and which metrics suit them: those that the run held back, a file's, or a recipe's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import yaml

from bases.errors import BaseModelError
from trainer.config.loading import load_config
from trainer.config.schema import TrainConfig
from trainer.data.messages import Question
from trainer.errors import EvaluationError, TrainerError
from trainer.evaluation.metrics.reading import reading_metrics
from trainer.evaluation.metrics.structured import NotJson, parse_json
from trainer.files import CONFIG_FILE

if TYPE_CHECKING:
    from trainer.data.encoding import RowEncoder

HeldOut = Literal["validation", "test"]


@dataclass(frozen=True)
class RowSource:
    """Where rows come from. ``config`` is a run's; ``data`` a file of which all rows are asked; or ``recipe`` with its
    ``folder``. ``overrides`` are ``key=value`` over the configuration. ``rows``: only so many, the first ones."""

    config: Path | None = None
    data: Path | None = None
    recipe: str | None = None
    folder: Path | None = None
    split: HeldOut | None = None
    rows: int | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class EvaluationRows:
    """The rows of one evaluation. ``metrics`` are those that suit them; ``what`` says for people which rows it is.

    ``reads`` is what a model that writes nothing makes of them: classification, regression, embedding or similarity.
    """

    questions: tuple[Question, ...]
    metrics: tuple[str, ...]
    what: str
    reads: str = ""


def load_rows(source: RowSource) -> EvaluationRows:
    """The rows that ``source`` means. Raises EvaluationError, ConfigError or DataError."""
    config, split = _config(source)
    questions, reads = _questions(config, split, knows_base=source.config is not None)
    questions = questions[: source.rows]
    if not questions:
        raise EvaluationError(f"{config.data.path} holds no {split} rows to evaluate on; name others with --data FILE")
    metrics = reading_metrics(reads) if reads else _metrics(config, questions)
    return EvaluationRows(questions, metrics, f"{len(questions)} {split} rows of {_named(config, split)}", reads)


def _questions(config: TrainConfig, split: HeldOut, *, knows_base: bool) -> tuple[tuple[Question, ...], str]:
    """The rows, and what is read of them where nothing is written."""
    if config.preference:
        from trainer.preference.preference_data import preferred_answers

        return tuple(preferred_answers(config, split)), ""
    if config.reading:
        from trainer.pooling.questions import reading_questions

        return reading_questions(config.data, config.reading, config.training.seed, split)
    from trainer.data.training_data import load_questions

    rows = _encoder(config) if knows_base else None
    return tuple(load_questions(config.data, config.training.seed, split, rows)), ""


def _encoder(config: TrainConfig) -> RowEncoder | None:
    """What rendered the rows of the run of ``config``; None where its base is not on this machine."""
    from trainer.base_model import load_vocabulary
    from trainer.data.encoding import RowEncoder
    from trainer.data.sources import with_recipe

    try:
        return RowEncoder(with_recipe(config.data), *load_vocabulary(config))
    except (BaseModelError, TrainerError):
        return None


def config_beside(package: Path) -> Path | None:
    """The configuration of the run that left ``package``, where it is still beside it."""
    file = package.resolve().parent / CONFIG_FILE
    return file if file.is_file() else None


def _config(source: RowSource) -> tuple[TrainConfig, HeldOut]:
    if source.recipe:
        if source.folder is None:
            raise EvaluationError(f"say where the files of {source.recipe} are with --path FOLDER")
        split = source.split or _held_out_split(source.recipe)
        data = {"recipe": source.recipe, "path": str(source.folder), "validation": 0, split: "split"}
        return _bare_config(data, source.overrides), split
    if source.data:
        if source.split:
            raise EvaluationError("--split is of a run or a recipe; of --data FILE all rows are asked")
        file = json.dumps(str(source.data.expanduser().resolve()))  # quoted: it may look like YAML
        chosen = [f"data.{key}={file}" for key in ("path", "test")]
        if source.config:
            changes = [*chosen, "data.recipe=null", *source.overrides]
            config = load_config(source.config, changes, {})
            return msgspec.structs.replace(config, preference=None), "test"  # the file holds prompts and responses
        return _bare_config({}, [*chosen, *source.overrides]), "test"
    if source.config is None:
        raise EvaluationError(
            "say which rows to ask: --config RUN/config.yaml, --data FILE, or --recipe NAME --path FOLDER"
        )
    split = source.split or "validation"
    config = load_config(source.config, source.overrides, {})
    if split == "test" and config.data.recipe and not config.data.test:
        config = load_config(source.config, ["data.test=split", *source.overrides], {})
    return config, split


def _held_out_split(recipe: str) -> HeldOut:
    from trainer.recipes import RECIPES

    if recipe not in RECIPES:
        raise EvaluationError(f"unknown recipe {recipe!r}; choose from {', '.join(RECIPES)}")
    return "test" if "test" in RECIPES[recipe].splits else "validation"


def _bare_config(data: dict[str, Any], overrides: Sequence[str]) -> TrainConfig:
    """A configuration of nothing but ``data``, read as any other so that all its checks apply."""
    with tempfile.TemporaryDirectory(prefix="hotswap-eval-") as folder:
        file = Path(folder) / CONFIG_FILE
        file.write_text(yaml.safe_dump({"output": "unused", "data": data}), encoding="utf-8")
        return load_config(file, overrides, {})


def _metrics(config: TrainConfig, questions: Sequence[Question]) -> tuple[str, ...]:
    """The recipe's metrics, else exact_match and what fits the references."""
    if config.data.recipe:
        from trainer.recipes import RECIPES

        return RECIPES[config.data.recipe].metrics
    references = [_json_object(question.reference) for question in questions]
    fits = ["json_valid"] if None not in references else []
    if fits and all("slots" in reference for reference in references if reference is not None):
        fits.append("slot_f1")
    return ("exact_match", *fits)


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = parse_json(text)
    except NotJson:
        return None
    return value if isinstance(value, dict) else None


def _named(config: TrainConfig, split: HeldOut) -> str:
    if config.data.recipe:
        return f"recipe {config.data.recipe}"
    place = getattr(config.data, split)
    return Path(place).name if isinstance(place, str) and place != "split" else str(config.data.path)
