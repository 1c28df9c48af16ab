"""``hotswap sweep``. Exit codes as of ``hotswap train``; 1 when every run failed."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.common import SETTINGS_HELP, guarded, import_bitsandbytes, parse_settings, silence_libraries

_METRIC_HELP = (
    "validation_loss (the default), train_loss or exact_match; of GRPO reward_after, of other preferences "
    "reward_accuracy too"
)
_EXAMPLES = """
examples:
  hotswap sweep run.yaml learning_rate=1e-4,5e-4,2e-3
  hotswap sweep run.yaml method.r=4,8,16 learning_rate=1e-4,5e-4 --random 4
  hotswap sweep run.yaml method=lora,prefix,ia3 exact_match_rows=50 --metric exact_match

Each run has its directory in the output; sweep.json and sweep.md hold the ranking. The same command again goes on where
it was interrupted, repeats what failed, and leaves finished runs alone.
"""


def sweep(argv: list[str]) -> int:
    """Run ``hotswap sweep``."""
    parser = argparse.ArgumentParser(
        prog="hotswap sweep",
        usage="hotswap sweep [CONFIG.yaml] key=value,value... [--metric NAME] [--random N] [--overwrite] [--quiet]",
        description="Train a configuration with every combination of settings that have several values; rank the runs.",
        epilog=SETTINGS_HELP + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG.yaml", help="YAML file of the runs")
    parser.add_argument("--metric", help=_METRIC_HELP)
    parser.add_argument("--random", type=_count, metavar="N", help="only N combinations, drawn by the seed")
    parser.add_argument("--overwrite", action="store_true", help="start anew although the output holds a sweep")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    args, settings = parse_settings(parser, argv)
    args.settings = settings
    return guarded(_sweep, args)


def _sweep(args: argparse.Namespace) -> int:
    silence_libraries()
    import_bitsandbytes()
    from trainer.progress import make_display
    from trainer.sweep import as_text
    from trainer.sweep import sweep as run

    display = make_display(args.quiet)
    result = run(
        args.config,
        args.settings,
        metric=args.metric,
        draw=args.random,
        overwrite=args.overwrite,
        display=display,
    )
    if result.runs:
        print(as_text(result.runs, result.metric))
    if result.stopped_by is not None:
        print("stopped; the same command goes on")
        return 128 + result.stopped_by
    best = result.runs[0]
    if best.error:
        return 1
    print(f"best: {best.package}")
    return 0


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count
