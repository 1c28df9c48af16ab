"""``hotswap plan``. Exit codes: 0 done, 1 one of our errors, 2 wrong usage."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from trainer.commands.common import SETTINGS_HELP, guarded, parse_settings, silence_libraries

_EXAMPLES = """
examples:
  hotswap plan run.yaml                          the run of this file: parameters, memory, time of a few real steps
  hotswap plan run.yaml method=full --steps 0    another method, and no time
  hotswap plan --shape chatglm-6b                the methods on a base known by name; nothing is downloaded
  hotswap plan --shape qwen2.5-7b --method lora quantize=nf4 batch_size=1 max_length=2048
"""


def plan(argv: list[str]) -> int:
    """Run ``hotswap plan``."""
    parser = argparse.ArgumentParser(
        prog="hotswap plan",
        usage="hotswap plan [CONFIG.yaml | --shape NAME] [key=value | --key value ...] [--steps N] [--json]",
        description="What a run will take: trainable parameters, memory by part, time. Nothing is written.",
        epilog=SETTINGS_HELP + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG.yaml", help="YAML file of the run")
    parser.add_argument("--shape", metavar="NAME", help="a base known by name, without weights and data; list: names")
    parser.add_argument("--steps", type=_count, default=4, help="real steps to time, 0 for none (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON; memory in bytes, times in seconds")
    args, settings = parse_settings(parser, argv)
    if args.shape and args.config:
        parser.error("--shape stands for a base without a file; give one of them")
    args.settings = settings
    return guarded(_plan, args)


def _plan(args: argparse.Namespace) -> int:
    if args.shape == "list":
        return _list_presets()
    if args.shape:
        return _plan_preset(args)
    from trainer.config.loading import load_config

    config = load_config(args.config, args.settings, defaults={"output": "plan"})  # where nothing is written
    silence_libraries()
    from trainer.plan.planning import plan_run
    from trainer.plan.report import run_data, run_text

    planned = plan_run(config, args.steps)
    _print(args.json, run_data(planned), run_text(planned))
    return 0


def _plan_preset(args: argparse.Namespace) -> int:
    from trainer.config.loading import load_config
    from trainer.plan.model_presets import model_preset

    preset = model_preset(args.shape)
    given = ["output=plan", "data.path=plan", *args.settings]  # neither is read
    config = load_config(None, given)
    one = any(item.partition("=")[0].removeprefix("--").split(".")[0] == "method" for item in args.settings)
    rows = [] if one else [(label, words, load_config(None, [*given, *words.split()])) for label, words in preset.rows]
    silence_libraries()
    from trainer.plan.planning import compare_methods, plan_preset
    from trainer.plan.report import preset_data, preset_text, run_data, run_text

    if one:
        planned = plan_preset(preset, config)
        _print(args.json, run_data(planned), run_text(planned))
    else:
        compared = compare_methods(preset, rows)
        _print(args.json, preset_data(compared), preset_text(compared))
    return 0


def _list_presets() -> int:
    from trainer.plan.model_presets import MODEL_PRESETS
    from trainer.tables import aligned

    rows = [(preset.name, f"{preset.parameters:,}", preset.summary) for preset in MODEL_PRESETS.values()]
    print(aligned(rows[0], rows[1:], left=(0, 2)))
    return 0


def _print(as_json: bool, data: dict[str, Any], text: str) -> None:
    if not as_json:
        print(text)
        return
    import json

    print(json.dumps(data, indent=2))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("expected a number of steps")
    return int(text)
