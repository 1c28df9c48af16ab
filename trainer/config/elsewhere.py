"""What other trainers say in files of their own, or what means something only beside the rest of a configuration.

Names whose values cannot be converted one by one put them under ``elsewhere`` (``trainer/config/aliases.toml``). When
every source has been read, ``fill_in`` makes our keys of them: where a key of ours says something else, that holds, and
people are told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.config.aliases import ELSEWHERE, PerProcess
from trainer.config.data import is_template_file
from trainer.config.deepspeed_file import read_deepspeed
from trainer.config.named_datasets import Described, Kind, axolotl_datasets, factory_datasets
from trainer.config.nested import NOT_GIVEN, Proposal, get, put
from trainer.errors import ConfigError, Refusals

_log = logging.getLogger(__name__)
_PLAIN = "pt"  # the stage of LLaMA-Factory that learns plain text


class Implied(str):
    """A value that goes with another tool's name; it gives way to what is said outright."""

    __slots__ = ()


def fill_in(raw: dict[str, Any], refusals: Refusals, *, processes: int = 1, folder: Path = Path()) -> None:
    """Replace ``elsewhere`` in ``raw`` by keys of ours; ``refusals`` gathers what cannot be.

    ``processes`` train together; ``folder`` is that of the configuration file, beside which files are looked for too.
    """
    given: dict[str, Any] = raw.pop(ELSEWHERE, {})
    batch = get(raw, "training.batch_size")
    if isinstance(batch, PerProcess):
        put(raw, "training.batch_size", int(batch) * processes)
    _fill_template(raw, given)
    refused = len(refusals.found)
    with refusals.gathered():
        _fill_data(raw, given, folder)
    if len(refusals.found) > refused and get(raw, "data.path") is NOT_GIVEN:
        put(raw, "data.path", "-")  # it was given, in a way that is refused: nothing is lacking
    with refusals.gathered():
        if file := given.get("deepspeed"):
            read = read_deepspeed(file, folder, processes)
            _fill(raw, read.proposals)
            for word in read.words(raw):
                _log.warning(word)
    _fill_strategies(raw, given)
    _settle(raw)


def _fill_data(raw: dict[str, Any], given: Mapping[str, Any], folder: Path) -> None:
    """The data, where LLaMA-Factory or Axolotl describes it. Text alone is learned as in pre-training."""
    datasets = _datasets(raw, given, folder)
    if given.get("stage") == _PLAIN or (datasets and datasets.plain):
        _fill_plain_text(raw)
    if datasets:
        _fill(raw, [Proposal(key, value, datasets.name) for key, value in datasets.settings.items()])


def _fill(raw: dict[str, Any], proposals: Iterable[Proposal]) -> None:
    for one in proposals:
        current = get(raw, one.key)
        if current is NOT_GIVEN or isinstance(current, Implied):
            put(raw, one.key, one.value)
        elif current != one.value and not one.derived:
            _log.warning("%s says %s: %s, but %s is given and taken", one.said_by, one.key, one.value, current)


def _fill_template(raw: dict[str, Any], given: Mapping[str, Any]) -> None:
    """LLaMA-Factory names a template for the base; the base has its own. Alone, ``template`` is our own short key."""
    template = given.get("template", NOT_GIVEN)
    if template is NOT_GIVEN:
        return
    theirs = not given.keys().isdisjoint(("stage", "dataset")) and isinstance(template, str)
    if theirs and template != "none" and "{" not in template and not is_template_file(template):
        if template != "chat":
            _log.warning("template %s: the base's own chat template is used; data.template: NAME is another", template)
        template = "chat"
    put(raw, "data.template", template)


def _fill_plain_text(raw: dict[str, Any]) -> None:
    """Pre-training: documents are split at the context and packed, where packing is exact."""
    if raw.get("preference"):
        raise ConfigError("stage: pt learns plain text, and preference compares answers; give one of them")
    _fill(raw, [Proposal("data.shape", "text", "stage pt")])
    for key, value in (("data.too_long", "split"), ("training.packing", "auto")):
        if get(raw, key) is NOT_GIVEN or isinstance(get(raw, key), Implied):
            put(raw, key, value)


def _datasets(raw: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> Described | None:
    """The data that LLaMA-Factory's or Axolotl's keys describe."""
    stage = given.get("stage", "sft")
    kind: Kind = "text" if stage == _PLAIN else "preference" if raw.get("preference") else "answers"
    found: list[Described] = []
    if "dataset" in given or "eval_dataset" in given:
        names, held_out = given.get("dataset") or [], given.get("eval_dataset") or []
        found.append(factory_datasets(names, held_out, given.get("dataset_dir"), folder, kind))
    if "pretraining_dataset" in given:
        found.append(axolotl_datasets(given["pretraining_dataset"], None, folder, "text"))
    if "datasets" in given:
        found.append(axolotl_datasets(given["datasets"], given.get("test_datasets"), folder, kind))
    if len(found) > 1:
        raise ConfigError(f"{' and '.join(one.name for one in found)} both name the training data; give one of them")
    return found[0] if found else None


def _fill_strategies(raw: dict[str, Any], given: Mapping[str, Any]) -> None:
    """When to evaluate and to save. transformers looks at no number of steps beside another strategy than steps."""
    for name in ("eval", "save"):
        strategy = given.get(f"{name}_strategy")
        if strategy is None:
            continue
        key = f"training.{name}_steps"
        if strategy == "best":
            _fill(raw, [Proposal("training.best_checkpoint", True, "save_strategy best")])
            continue
        if get(raw, key) not in (NOT_GIVEN, None, strategy):
            _log.warning("%s_strategy %s: %s is not looked at", name, strategy, key)
        put(raw, key, strategy)
        asked = get(raw, "training.exact_match_rows") not in (NOT_GIVEN, 0)
        if name == "eval" and strategy == "no" and get(raw, "data.validation") is NOT_GIVEN and not asked:
            put(raw, "data.validation", 0)  # rows held back would be looked at by nobody


def _settle(raw: dict[str, Any]) -> None:
    """Let values that were only implied be given."""
    for key, value in raw.items():
        if isinstance(value, dict):
            _settle(value)
        elif isinstance(value, Implied):
            raw[key] = str(value)
