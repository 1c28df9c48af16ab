"""``hotswap init``: asks for data, base and method, and writes the YAML file of a run.

Exit codes: 0 done, 1 one of our errors, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.common import SETTINGS_HELP, guarded, parse_settings, silence_libraries

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig
    from trainer.plan.planning import Plan

_EXAMPLES = """
examples:
  hotswap init                                                  asks, looks at the data, writes run.yaml
  hotswap init dates.yaml --data dates.jsonl --yes              asks nothing: the usual base and method
  hotswap init --data pairs.jsonl --base org/name --method prefix quantize=nf4
"""
_ENOUGH = 0.9  # of the memory there is


def init(argv: list[str]) -> int:
    """Run ``hotswap init``."""
    parser = argparse.ArgumentParser(
        prog="hotswap init",
        usage="hotswap init [FILE.yaml] [--data FILE] [--base NAME] [--method NAME] [key=value ...] [--yes]",
        description="Ask for data, base and method, look at the data, and write the YAML file of a run with values "
        "that fit it; say what the run will take. What is given is not asked for.",
        epilog=SETTINGS_HELP + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, nargs="?", default=Path("run.yaml"), metavar="FILE.yaml")
    parser.add_argument("--yes", action="store_true", help="ask nothing: what is usual where nothing is given")
    parser.add_argument("--overwrite", action="store_true", help="write the file anew where it exists")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="real steps to time, 0 for none (default 2)")
    args, settings = parse_settings(parser, argv, needs_any=False)
    args.settings = settings
    return guarded(_init, args)


def _init(args: argparse.Namespace) -> int:
    from trainer.config.loading import given_values, load_config
    from trainer.errors import ConfigError
    from trainer.files import check_writable, write_whole

    if args.config.exists() and not args.overwrite:
        raise ConfigError(f"{args.config} is there already: name another file, or give --overwrite")
    check_writable(args.config, ConfigError)
    given = given_values(args.settings)
    settings = [*_answers(given, asks=not args.yes), *args.settings]
    silence_libraries()
    from trainer.proposal import as_yaml, look, preference_of, proposal, task_of

    config = load_config(None, settings)
    if config.preference is None and config.task is None:
        if kind := preference_of(config):
            print(f"the rows are for preference training: {kind}")
            settings.append(f"preference.type={kind}")
        elif kind := task_of(config):
            print(f"the rows are for the task {kind}")
            settings.append(f"task.type={kind}")
        config = load_config(None, settings)
    seen = look(config)
    print(f"\n{seen.text}\n")
    values = proposal(config, seen)
    config, plan = _that_fits(settings, values)
    write_whole(args.config, as_yaml(config, seen, str(args.config)))
    _tell_plan(config, plan, args.steps)
    print(f"\nwritten: {args.config}; train with: hotswap train {args.config}")
    return 0


def _answers(given: dict[str, Any], *, asks: bool) -> list[str]:
    """Settings for what is not ``given``."""
    from bases.finding import DEFAULT_BASE
    from trainer.config.methods import METHODS

    def wrong_method(name: str) -> str:
        return "" if name in METHODS else f"{name!r} is no method; choose from {', '.join(METHODS)}"

    settings: list[str] = []
    ask = _ask if asks else _take
    data = given.get("data", {}).get("path")
    if data is None:
        data = ask("data (a file, a folder, or hub:owner/name)", "", "--data", _wrong_data)
        settings.append(f"data.path={data}")
    if "base" not in given:
        settings.append(f"base={ask('base model', DEFAULT_BASE, '--base', _wrong_base)}")
    if "method" not in given:
        settings.append(f"method={ask('method', 'lora', '--method', wrong_method)}")
    if "output" not in given:
        usual = f"runs/{_stem(data if isinstance(data, str) else data[0])}"
        settings.append(f"output={ask('output directory', usual, '--output', lambda _: '')}")
    return settings


def _stem(data: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(data.partition("#")[0]).name.partition(".")[0]) or "run"


def _ask(what: str, usual: str, flag: str, wrong: Callable[[str], str]) -> str:
    """The answer to a question, asked again while it is ``wrong``. Raises ConfigError at the end of the input."""
    from trainer.errors import ConfigError

    while True:
        try:
            answer = input(f"{what} [{usual}]: " if usual else f"{what}: ").strip() or usual
        except (EOFError, RuntimeError, UnicodeDecodeError) as error:  # RuntimeError: there is no standard input at all
            print()
            raise ConfigError(f"there is no answer to {what!r}: give {flag}, or --yes for what is usual") from error
        problem = wrong(answer) if answer else "an answer is needed"
        if not problem:
            return answer
        print(problem)


def _take(what: str, usual: str, flag: str, wrong: Callable[[str], str]) -> str:
    from trainer.errors import ConfigError

    if not usual:
        raise ConfigError(f"{flag}: give {what}")
    if problem := wrong(usual):
        raise ConfigError(problem)
    return usual


def _wrong_data(path: str) -> str:
    from trainer.config.data import DataConfig
    from trainer.config.data import complete_data as complete
    from trainer.data.sources import find_train_source
    from trainer.errors import TrainerError

    try:
        find_train_source(complete(DataConfig(path=path)))
    except TrainerError as error:
        return str(error)
    return ""


def _wrong_base(name: str) -> str:
    from bases.errors import BaseModelError
    from bases.finding import resolve_base

    try:
        resolve_base(name)
    except BaseModelError as error:
        return str(error)
    return ""


def _that_fits(settings: Sequence[str], values: dict[str, dict[str, Any]]) -> tuple[TrainConfig, Plan | None]:
    """The run that is proposed, with gradient checkpointing where its batch needs more memory than there is."""
    from trainer.config.loading import load_config
    from trainer.plan.planning import plan_run

    config = load_config(None, settings, defaults=values)
    if config.preference or config.reading:
        return config, None
    plan = plan_run(config, 0)
    if plan.memory.peak < _ENOUGH * _memory() or plan.other is None or plan.other.peak > plan.memory.peak:
        return config, plan
    values = {**values, "training": {**values["training"], "gradient_checkpointing": True}}
    config = load_config(None, settings, defaults=values)
    return config, plan_run(config, 0)


def _memory() -> int:
    """Bytes that training may use: of the device, or of this machine."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _tell_plan(config: TrainConfig, plan: Plan | None, steps: int) -> None:
    from trainer.plan.planning import plan_run
    from trainer.plan.report import gigabytes, run_text

    if plan is None:
        print("parameters, memory and time: hotswap plan knows runs that learn to write answers only")
        return
    if (here := _memory()) * _ENOUGH < plan.memory.peak:
        print(f"this run needs {gigabytes(plan.memory.peak)}, and there are {gigabytes(here)}", file=sys.stderr)
        print("lower batch_size or max_length, or give quantize=nf4 where the method allows it", file=sys.stderr)
        steps = 0
    print(run_text(plan_run(config, steps) if steps > 0 else plan))
