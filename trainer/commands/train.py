"""``hotswap train``. Exit codes: 0 done, 1 one of our errors, 2 wrong usage, 128 + signal when interrupted."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.common import guarded, silence_libraries

_TRAIN_EXAMPLES = """\
a key is dotted (training.learning_rate=1e-4) or its last part alone (learning_rate=1e-4); HOTSWAP_TRAIN_<KEY> in the
environment does the same, with __ for the dot. The smallest file:

  output: runs/dates
  method: lora                      # or prefix, prompt, or {type: lora, r: 16, ...}
  data: {path: dates.jsonl}         # rows {"prompt": ..., "response": ...}
"""


def train(argv: list[str]) -> int:
    """Run ``hotswap train``."""
    parser = argparse.ArgumentParser(
        prog="hotswap train",
        description="Train an adapter as a YAML file says; the package is written to OUTPUT/adapter.",
        epilog=_TRAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="YAML file of the run")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="values that override the file")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output directory")
    start.add_argument("--overwrite", action="store_true", help="start anew although the output holds a run")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return guarded(_train, parser.parse_intermixed_args(argv))


def _train(args: argparse.Namespace) -> int:
    from trainer.config.file import load_config

    config = load_config(args.config, args.overrides)
    silence_libraries()
    from trainer.loop.progress import make_display
    from trainer.run import train as run

    result = run(config, resume=args.resume, overwrite=args.overwrite, display=make_display(args.quiet))
    if result.stopped_by is not None:
        print(f"stopped at step {result.steps}; go on with: hotswap train {result.output}/config.yaml --resume")
        return 128 + result.stopped_by
    figures = "  ".join(f"{name} {value:g}" for name, value in result.metrics.items())
    print(f"trained {result.steps} steps  {figures}")
    print(f"package: {result.package}")
    return 0
