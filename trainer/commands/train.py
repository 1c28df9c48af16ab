"""``hotswap train``. Exit codes: 0 done, 1 one of our errors, 2 wrong usage, 128 + signal when interrupted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.commands.common import SETTINGS_HELP, guarded, import_bitsandbytes, parse_settings, silence_libraries
from trainer.commands.launchers import without_launcher
from trainer.errors import ConfigError

if TYPE_CHECKING:
    from trainer.config.schema import TrainConfig

_EXAMPLES = """
where the output holds a run already:
  --resume                      go on from its last checkpoint
  --resume CHECKPOINT           go on from this one (OUTPUT/checkpoint-N), or the last one in this folder of a run
  --overwrite                   start anew

examples:
  hotswap train --wizard                      # asks, and writes the file: hotswap init
  hotswap train run.yaml
  hotswap train run.yaml learning_rate=1e-4 method.r=16 --output runs/r16
  hotswap train --data dates.jsonl --output runs/dates --method lora
  hotswap train runs/dates/config.yaml --resume
  hotswap train run.yaml --nproc 4 --strategy fsdp
  hotswap train torchrun --standalone --nproc-per-node=1 main.py --do_train ...   (a guide's line as it is printed)

the smallest file:
  output: runs/dates
  method: lora                      # or prefix, prompt, or {type: lora, r: 16, ...}
  data: dates.jsonl                 # rows {"prompt": ..., "response": ...}
"""


def train(argv: list[str]) -> int:
    """Run ``hotswap train``; with ``--wizard`` it is ``hotswap init``."""
    if "--wizard" in argv:
        from trainer.commands.init import init

        return init([token for token in argv if token != "--wizard"])
    parser = argparse.ArgumentParser(
        prog="hotswap train",
        usage="hotswap train [CONFIG.yaml] [key=value | --key value] [--nproc N] [--resume [CHECKPOINT]] [--overwrite]",
        description="Train an adapter as a YAML file and settings say; the package is written to OUTPUT/adapter.",
        epilog=SETTINGS_HELP + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG.yaml", help="YAML file of the run")
    parser.add_argument(
        "--nproc",
        "--nproc_per_node",
        "--num_gpus",
        type=int,
        default=1,
        metavar="N",
        help="train in N processes, each on its own device",
    )
    parser.add_argument(
        "--print-strategy", action="store_true", help="print what --strategy hands to DeepSpeed as JSON, and end"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    try:
        argv = without_launcher(argv)
    except ConfigError as error:
        parser.error(str(error))
    args, settings = parse_settings(parser, argv)
    if {"resume=true", "overwrite=true"} <= set(settings):
        parser.error("give --resume or --overwrite, not both")
    args.settings = settings
    args.argv = argv
    if args.nproc < 1:
        parser.error("--nproc: give at least 1")
    return guarded(_train, args)


def _train(args: argparse.Namespace) -> int:
    from trainer.config.loading import load_config, load_run
    from trainer.distributed.launch import launch, process_count, process_rank

    if args.print_strategy:
        return _print_strategy(load_config(args.config, args.settings, processes=args.nproc))
    from trainer.distributed.launch import watch_launcher
    from trainer.distributed.strategies import check_processes

    if args.nproc > 1 and process_count() == 1:
        check_processes(load_config(args.config, args.settings, processes=args.nproc), args.nproc)
        return launch(args.argv, args.nproc)
    watch_launcher()
    config, start = load_run(args.config, args.settings, processes=process_count())
    silence_libraries()
    import_bitsandbytes()
    from trainer.progress import make_display
    from trainer.run import train as run

    result = run(config, resume=start.resume, overwrite=start.overwrite, display=make_display(args.quiet))
    if process_rank() > 0:
        return 0 if result.stopped_by is None else 128 + result.stopped_by
    if result.stopped_by is not None:
        print(f"stopped at step {result.steps}; go on with: hotswap train {result.output}/config.yaml --resume")
        return 128 + result.stopped_by
    figures = "  ".join(f"{name} {value:g}" for name, value in result.metrics.items())
    print(f"trained {result.steps} steps  {figures}")
    print(f"package: {result.package}" if result.package else f"base: {result.base}")
    return 0


def _print_strategy(config: TrainConfig) -> int:
    from trainer.distributed.strategies import deepspeed_config

    found = deepspeed_config(config)
    print(json.dumps(found, indent=2) if found else f"{config.training.strategy}: torch's own, without settings")
    return 0
