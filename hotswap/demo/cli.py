"""``hotswap demo``."""

from __future__ import annotations

import argparse
import asyncio
from importlib.util import find_spec
from pathlib import Path

from bases.finding import DEFAULT_BASE
from hotswap.errors import DemoError

CHOICES = ("auto", "gguf", "nf4", "int8", "none")


def main(argv: list[str]) -> int:
    """Run the demo; 0 when every check held, 1 when one did not. Raises HotswapError or TrainerError when it cannot."""
    args = _parse(argv)
    if find_spec("openai") is None:
        raise DemoError("the demo drives the server with the openai client; run: pip install 'hotswap[demo]'")
    from rich.console import Console

    from hotswap.demo.commands import DemoSettings
    from hotswap.demo.flow import Demo
    from hotswap.demo.report import WIDTH
    from hotswap.demo.staying import stay
    from trainer.commands.common import end_on_sigterm

    settings = DemoSettings(
        out=args.out, base=args.base, quantize=args.quantize, seed=args.seed, reuse=args.reuse, stay=args.stay
    )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    # as Ctrl-C does: the server and a training that runs are stopped too
    end_on_sigterm()
    demo = Demo(settings, console)
    ok = asyncio.run(demo.run())
    console.print(f"\nreport.txt, report.json, logs and adapters are in {args.out}", markup=False)
    if args.stay:
        asyncio.run(stay(demo.options, args.out / "console.log", console))
    return 0 if ok else 1


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hotswap demo",
        description="Train a LoRA and a prefix adapter, serve the quantized base, upload and replace adapters while "
        "it answers, and report accuracy, latency and whether any request failed or was mixed up. Takes minutes.",
    )
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--base", default=DEFAULT_BASE, metavar="ID|DIR", help="the base model (default: %(default)s)")
    parser.add_argument(
        "--quantize", choices=CHOICES, default="auto", help="default: as a GGUF file stored the base, or nf4"
    )
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default: %(default)s)")
    parser.add_argument("--reuse", action="store_true", help="take the adapters that an earlier run left in DIR")
    parser.add_argument(
        "--stay", action="store_true", help="serve base and adapters again at the end, with the console, until Ctrl-C"
    )
    return parser.parse_args(argv)
