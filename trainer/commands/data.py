"""``hotswap data``: check and preview what would be trained on; list recipes. Exit code 1 where it cannot be."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.common import guarded, parse_settings, silence_libraries

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig
    from trainer.config.task import ReadingTask
    from trainer.data.data_report import Splits
    from trainer.preference.preference_data import PreferenceData

_YAML = (".yaml", ".yml")
_WHAT = "YAML file of a run, or a file or folder of data"
_EPILOG = """
settings are those of hotswap train: data.recipe=snips, data.template=none, base=NAME, ...

examples:
  hotswap data check run.yaml
  hotswap data check rows.jsonl data.columns.prompt=question data.columns.response=answer
  hotswap data check ../data/snips data.recipe=snips --json
  hotswap data preview run.yaml -n 5 --ids
  hotswap data check pairs.json preference=dpo
"""


def main(argv: list[str]) -> int:
    """Run ``hotswap data``."""
    work = {"check": _check, "preview": _preview, "recipes": _recipes}
    parser = argparse.ArgumentParser(
        prog="hotswap data",
        usage="hotswap data {check,preview,recipes} ...",
        description="Look at data before it is trained on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=list(work), metavar="what", help="check, preview, or recipes (a list of them)")
    what = parser.parse_args(argv[:1]).what
    return work[what](argv[1:])


def _check(argv: list[str]) -> int:
    parser = _parser("check", "Count, measure and judge the data of a run as training would read it.")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    return guarded(_run_check, _parse(parser, argv))


def _preview(argv: list[str]) -> int:
    parser = _parser("preview", "Show the first rows as the model sees them: learned text green, or between «».")
    parser.add_argument("-n", type=int, default=3, metavar="N", help="how many rows (default 3)")
    parser.add_argument("--ids", action="store_true", help="every token with its number")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    return guarded(_run_preview, _parse(parser, argv))


def _recipes(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="hotswap data recipes", description="List the data sets with a recipe.")
    parser.parse_args(argv)
    from trainer.recipes import RECIPES

    width = max(map(len, RECIPES))
    for recipe in RECIPES.values():
        tokens = f"; added tokens {' '.join(recipe.added_tokens)}" if recipe.added_tokens else ""
        print(f"{recipe.name:<{width}}  {recipe.summary}")
        print(f"{'':<{width}}  {', '.join(recipe.splits)}; scored by {', '.join(recipe.metrics)}{tokens}")
    return 0


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"hotswap data {name}",
        usage=f"hotswap data {name} [CONFIG.yaml | FILE] [key=value | --key value ...] [options]",
        description=description,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG.yaml | FILE", help=_WHAT)
    return parser


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    args, settings = parse_settings(parser, argv)
    args.settings = settings
    return args


def _load(args: argparse.Namespace) -> tuple[TrainConfig, Any, tuple[int, ...]]:
    """Configuration, tokenizer and the tokens that end a turn."""
    from trainer.config.loading import load_config

    is_yaml = bool(args.config) and args.config.endswith(_YAML)
    data = [f"data.path={args.config}"] if args.config and not is_yaml else []
    nowhere = "output=."  # every configuration has one; nothing is written to it here
    config = load_config(Path(args.config) if is_yaml else None, [nowhere, *data, *args.settings])
    silence_libraries()
    from bases.architecture import read_config
    from bases.finding import resolve_base
    from trainer.base_model import fitted, load_vocabulary
    from trainer.loop.session import split_within

    config = split_within(read_config(resolve_base(config.base), config.trust_remote_code), fitted(config))
    return config, *load_vocabulary(config)


def _run_check(args: argparse.Namespace) -> int:
    config, tokenizer, end_ids = _load(args)
    if config.preference:
        return _check_preferences(config, tokenizer, end_ids, as_json=args.json)
    if config.reading:
        return _check_reading(config, config.reading, tokenizer, as_json=args.json)
    from trainer.data.data_report import check_data_set, report_text
    from trainer.data.splits import progress_messages
    from trainer.data.training_data import split_conversations

    progress = progress_messages(lambda text: print(text, file=sys.stderr, flush=True))
    splits = split_conversations(config.data, config.training.seed, progress)
    report = check_data_set(config, tokenizer, end_ids, progress, splits=splits)
    report.error = report.error or _too_long(config, report.longest)
    if args.json:
        print(_json(report))
        return 1 if report.error else 0
    print(report_text(report))
    if not report.error:
        print("\nthe first row, with what is learned marked (hotswap data preview shows more):")
        _print_rows(splits, tokenizer, end_ids, _Look(1, colour=sys.stdout.isatty()))
    return 1 if report.error else 0


def _too_long(config: TrainConfig, longest: int) -> str | None:
    """Why the base cannot take a row of ``longest`` tokens, as training says it."""
    from bases.architecture import read_config
    from bases.finding import resolve_base
    from trainer.errors import ConfigError
    from trainer.loop.session import check_context

    try:
        check_context(read_config(resolve_base(config.base), config.trust_remote_code), config, longest)
    except ConfigError as error:
        return str(error)
    return None


def _run_preview(args: argparse.Namespace) -> int:
    colour = args.color == "always" or (args.color == "auto" and sys.stdout.isatty())
    look = _Look(max(1, args.n), colour=colour, ids=args.ids)
    config, tokenizer, end_ids = _load(args)
    if config.preference:
        from trainer.preference.preference_data import load_preference_data

        _print_preferences(load_preference_data(config, tokenizer, end_ids), tokenizer, look)
        return 0
    if config.reading:
        from trainer.errors import ConfigError

        raise ConfigError(
            f"task: {config.reading.KIND} learns no words to mark; look at its data with hotswap data check"
        )
    from trainer.data.training_data import split_conversations

    _print_rows(split_conversations(config.data, config.training.seed), tokenizer, end_ids, look)
    return 0


def _check_reading(config: TrainConfig, task: ReadingTask, tokenizer: Any, *, as_json: bool) -> int:
    from trainer.pooling.pooled_data import load_pooled_data

    data = load_pooled_data(config.data, task, tokenizer, config.training.seed)
    error = _too_long(config, data.longest)
    report: dict[str, Any] = {
        "task": data.learned,
        "train": len(data.train),
        "validation": len(data.validation),
        "dropped": data.dropped,
        "labels": {name: data.counts[name] for name in data.labels.names} if data.labels else None,
        "longest": data.longest,
        "notes": list(data.notes),
        "error": error,
    }
    if as_json:
        print(_json(report))
        return 1 if error else 0
    from trainer.tables import aligned

    print("\n".join(data.notes))
    print(f"{len(data.train):,} rows to train on, {len(data.validation):,} to validate on; the longest text has "
          f"{data.longest:,} tokens")  # fmt: skip
    if data.labels:
        print(
            "\n"
            + aligned(
                ("label", "words" if data.labels.of_words else "rows"),
                [(n, f"{data.counts[n]:,}") for n in data.labels.names],
                left=(0,),
            )
        )
    print(f"\nerror: {error}" if error else f"\nthis data can be trained on: {data.learned}")
    return 1 if error else 0


def _check_preferences(config: TrainConfig, tokenizer: Any, end_ids: tuple[int, ...], *, as_json: bool) -> int:
    from trainer.preference.preference_data import check_labels, load_preference_data
    from trainer.preference.preference_report import check_preferences, report_lines

    data = load_preference_data(config, tokenizer, end_ids)
    check_labels(config, data)
    report = check_preferences(config, data)
    report.error = _too_long(config, data.longest)
    if as_json:
        print(_json(report))
        return 1 if report.error else 0
    print("\n".join(report_lines(report)))
    if report.error:
        return 1
    print("\nthe first row (hotswap data preview shows more):")
    _print_preferences(data, tokenizer, _Look(1, colour=sys.stdout.isatty()))
    return 0


@dataclass(frozen=True)
class _Look:
    """How many rows to show, and how."""

    count: int
    colour: bool
    ids: bool = False


def _print_rows(splits: Splits, tokenizer: Any, end_ids: tuple[int, ...], look: _Look) -> None:
    from trainer.data.preview import marked, preview

    for shown in preview(splits, tokenizer, end_ids, look.count):
        if shown.dropped:
            print(f"--- {shown.where}: dropped, {shown.dropped}\n")
        for example in shown.examples:
            learned = sum(label >= 0 for label in example.labels)
            print(f"--- {shown.where}: {len(example)} tokens, {learned} learned")
            print(marked(example, tokenizer, colour=look.colour, ids=look.ids) + "\n")


def _print_preferences(data: PreferenceData[Any], tokenizer: Any, look: _Look) -> None:
    from trainer.data.preview import marked
    from trainer.preference.preference_report import examples_of

    for row in data.train[: look.count]:
        for name, example in examples_of(row).items():
            print(f"--- {name}: {len(example)} tokens")
            print(marked(example, tokenizer, colour=look.colour, ids=look.ids) + "\n")


def _json(report: Any) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(report)).decode()
