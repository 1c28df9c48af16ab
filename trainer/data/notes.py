"""What was made of the data, in words for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.config.data import DataConfig
from trainer.data.survey import Survey, describe_dropped
from trainer.data.templates import BASE, NONE, template_name
from trainer.run_files import SERVED_TEMPLATE

_TOO_LONG = {
    "drop": "left out",
    "cut_start": "cut at the start",
    "cut_end": "cut at the end",
    "split": "split into several",
}


def notes_of(
    config: DataConfig,
    surveys: Sequence[Survey],
    *,
    foreign: bool,
    stray_tail: str,
    dropped: Mapping[str, int],
    cut: Mapping[str, int],
    repeated: int,
    shared: int,
) -> tuple[str, ...]:
    """One line for each thing that people should know of the data.

    ``foreign``: the template is not the base's. ``stray_tail``: what it writes after an answer, where that ends no
    turn. ``repeated`` training rows repeat another, ``shared`` validation rows are training rows as well.
    """
    notes = [f"{one.source.name}: {_rows(one.rows)} of the shape {one.layout}" for one in surveys]
    notes += [_template_note(config, surveys, foreign), _truncation_note(config)]
    if stray_tail:
        notes.append(
            f"warning: the template ends answers with {stray_tail!r}, which no token of this base ends a turn with: "
            "it becomes part of every answer; choose a template of this base's markers"
        )
    if cut:
        notes.append("cut: " + "; ".join(f"{_rows(count)} at data.{key}" for key, count in sorted(cut.items())))
    if dropped:
        notes.append(f"left out {describe_dropped(dict(dropped))}")
    if repeated:
        kept = "left out" if config.duplicates == "drop" else "kept; data.duplicates: drop leaves them out"
        notes.append(f"repeated: {_rows(repeated)} ({kept})")
    if shared:
        notes.append(f"warning: {_rows(shared)} to validate on and to train on as well")
    return tuple(notes)


def _template_note(config: DataConfig, surveys: Sequence[Survey], foreign: bool) -> str:
    if all(one.layout.shape == "text" for one in surveys):
        return "no template: the rows are plain text, all of which is learned"
    learned = {"all_answers": "every answer", "last_answer": "the last answer", "everything": "all text"}
    what = f"{learned[config.learn]} of a row is learned"
    if config.template == NONE:
        return f"no template: prompt and response are joined as they are, for /v1/completions; {what}"
    if config.template == BASE:
        return f"template: the base's own; {what}"
    name = template_name(config)
    if not foreign:
        return f"template: {name}, which is the base's own; {what}"
    return (
        f"warning: template {name} is not the base's; serve it with --chat-template OUTPUT/{SERVED_TEMPLATE} "
        f"(other servers refuse the adapter); {what}"
    )


def _truncation_note(config: DataConfig) -> str:
    parts = []
    if config.max_prompt_length:
        parts.append(f"prompts above {config.max_prompt_length} tokens lose old turns, then their end")
    if config.max_response_length:
        parts.append(f"responses above {config.max_response_length} tokens lose their end")
    parts.append(f"rows above {config.max_length} tokens are {_TOO_LONG[config.too_long]}")
    return "; ".join(parts)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
