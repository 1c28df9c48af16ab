"""``hotswap adapters``: what a running server serves, looked at and changed from the command line.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 130 interrupted. ``hotswap rollback`` is one of its verbs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from trainer.commands.adapters_upload import UPLOAD
from trainer.commands.adapters_verbs import VERBS as OTHERS
from trainer.commands.common import guarded
from trainer.commands.server_options import add_server_options, admin_client
from trainer.errors import PublishError

VERBS = {"list": OTHERS["list"], "show": OTHERS["show"], "upload": UPLOAD, **OTHERS}
_EXAMPLES = """\
examples:
  hotswap adapters list
  hotswap adapters upload dates runs/dates --canary 5%          # a new version, for a twentieth of the requests
  hotswap adapters upload dates hf:org/dates-lora@v2 --replace  # which the server gets itself; also https://, s3://
  hotswap adapters promote dates                                # or: abort dates
  hotswap adapters rollback dates --expected-live 4
  hotswap adapters set dates --weight 2 --rpm 600 --retention 5 --tpm default
  hotswap adapters rm dates@3 --url https://models.example --key-file admin.key

Every verb has --help, and --json for programs: the server's answer. What changes something takes --if-match or
--expected-live, so that nobody overwrites what somebody else has changed meanwhile.
"""
_HERE = {  # by the server's code of a refusal: what to do on this command line
    "adapter_exists": "; here: --replace, --candidate or --canary",
    "live_version_changed": "; here: hotswap adapters show",
    "precondition_failed": "; here: hotswap adapters show",
}


def main(argv: list[str]) -> int:
    """Run ``hotswap adapters``."""
    return guarded(_run, _parser().parse_args(argv))


def rollback(argv: list[str]) -> int:
    """Run ``hotswap rollback``."""
    parser = argparse.ArgumentParser(prog="hotswap rollback", description=_sentence(VERBS["rollback"].summary))
    _add_verb(parser, "rollback", again=False)
    return guarded(_run, parser.parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hotswap adapters",
        description="Look at the adapters of a running server, and change them while requests run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_common(parser, again=False)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        _add_verb(verbs.add_parser(name, help=verb.summary, description=_sentence(verb.summary)), name, again=True)
    return parser


def _add_verb(parser: argparse.ArgumentParser, name: str, *, again: bool) -> None:
    VERBS[name].add_arguments(parser)
    _add_common(parser, again=again)
    parser.set_defaults(verb=name, wrong_usage=parser.error)


def _add_common(parser: argparse.ArgumentParser, *, again: bool) -> None:
    """The flags of every verb. ``again``: they may stand before it, too, and are not given by default here."""
    json_default = argparse.SUPPRESS if again else False
    parser.add_argument("--json", action="store_true", default=json_default, help="print the server's answer, as JSON")
    add_server_options(parser, again=again)


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."


def _run(args: argparse.Namespace) -> int:
    from trainer.serving.client import RefusedError

    with admin_client(args) as client:
        try:
            done = VERBS[args.verb].run(client, args)
        except RefusedError as error:
            if args.json and error.answer:
                _print_json(error.answer)
            raise PublishError(f"{error}{_HERE.get(error.code or '', '')}") from error
    if args.json:
        _print_json(done.answer)
        return 0
    print(done.text)
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _print_json(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer, ensure_ascii=False, indent=2))
