"""``hotswap merge``."""

from __future__ import annotations

import argparse
from pathlib import Path

from trainer.commands.common import guarded, silence_libraries


def merge(argv: list[str]) -> int:
    """Run ``hotswap merge``."""
    parser = argparse.ArgumentParser(
        prog="hotswap merge",
        description="Merge an adapter into a full-precision copy of its base, which is served like any base. "
        "Never into quantized weights: they would be rounded a second time.",
    )
    parser.add_argument("package", type=Path, help="the adapter: OUTPUT/adapter of a training run, or peft's files")
    parser.add_argument("output", type=Path, help="directory of the new base")
    parser.add_argument("--base", help="directory, hub id or name of the base; default: what the package says")
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="type of the new weights; auto (the default) is the base's own",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code that comes with the base")
    return guarded(_merge, parser.parse_args(argv))


def _merge(args: argparse.Namespace) -> int:
    silence_libraries()
    from trainer.export.merge import merge as run

    merged = run(
        args.package, args.output, args.base, args.dtype, args.overwrite, trust_remote_code=args.trust_remote_code
    )
    print(
        f"merged; logits differ from the adapter's by {merged.exact:.1e} of their spread in float32, "
        f"{merged.saved:.1e} as saved in {merged.dtype}"
    )
    print(f"base: {merged.path}")
    return 0
