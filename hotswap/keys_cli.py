"""``hotswap keys``: API keys from the command line, of a running server or of a catalog without one.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage. A new key is all that goes to standard output, so that a script
can take it; no key is ever an argument, which lists of processes show.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hotswap.errors import HotswapError
from hotswap.key_places import Answer, KeyPlace, ServerKeys, catalog_keys
from trainer.commands.adapters_tables import moment, plain
from trainer.commands.server_options import add_server_options, admin_client
from trainer.tables import aligned

SCOPES = ("inference", "admin", "read-only", "fine-tuning")
_LIMITS = {
    "--rpm": ("requests_per_minute", "requests a minute"),
    "--tpm": ("tokens_per_minute", "tokens a minute, of prompts and answers"),
    "--max-concurrency": ("max_concurrency", "requests at once"),
    "--max-queue": ("max_queue", "requests waiting"),
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_EXAMPLES = """\
examples:
  hotswap keys create ops --scope admin --data-dir /srv/hotswap      # the first key, without or beside a server
  hotswap keys create team-a --adapter 'team-a-*' --no-base --rpm 600 --expires 90d
  KEY=$(hotswap keys create ci --scope read-only)                   # the key is shown this once
  hotswap keys rotate team-a --grace 24h --out team-a.key
  hotswap keys update team-a --adapter 'team-a-*' --adapter shared --tpm default
  hotswap keys revoke team-a
  hotswap keys events --outcome refused --since 1h

The admin key of a server stands in $HOTSWAP_ADMIN_KEY or in a file (--admin-key-file). --data-dir, --catalog or --local
work on the catalog itself and need no key; a server that runs on it sees the change within two seconds.
"""


@dataclass(frozen=True)
class Verb:
    """One subcommand: what it does, its arguments, and its work, which prints."""

    summary: str
    arguments: Callable[[argparse.ArgumentParser], None]
    work: Callable[[KeyPlace, argparse.Namespace], Answer]
    show: Callable[[Answer, argparse.Namespace], None]


def main(argv: list[str]) -> int:
    """Run ``hotswap keys``. Raises our own errors for the caller to print."""
    args = _parser().parse_args(argv)
    verb = VERBS[args.verb]
    with _place(args) as place:
        answer = verb.work(place, args)
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        verb.show(answer, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hotswap keys",
        description="Create, look at, change, rotate and revoke API keys, and see what was done with them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        sub = verbs.add_parser(name, help=verb.summary, description=f"{verb.summary[0].upper()}{verb.summary[1:]}.")
        verb.arguments(sub)
        sub.add_argument("--json", action="store_true", help="print the answer as JSON")
        _add_places(sub)
    return parser


def _add_places(parser: argparse.ArgumentParser) -> None:
    add_server_options(parser)
    group = parser.add_argument_group("catalog, instead of a server").add_mutually_exclusive_group()
    group.add_argument("--data-dir", metavar="DIR", help="the --data-dir of a server, running or not")
    group.add_argument("--catalog", metavar="URL", help="the --catalog of a server")
    group.add_argument(
        "--local", action="store_true", help="$HOTSWAP_CATALOG, $HOTSWAP_DATA_DIR or this user's own data directory"
    )


@contextmanager
def _place(args: argparse.Namespace) -> Iterator[KeyPlace]:
    if args.data_dir or args.catalog or args.local:
        catalog = args.catalog or (os.environ.get("HOTSWAP_CATALOG") if args.local else None)
        with catalog_keys(args.data_dir, catalog) as place:
            yield place
        return
    with admin_client(args) as client:
        yield ServerKeys(client)


# ---- arguments ----


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", choices=("active", "expired", "revoked"), help="only these")


def _one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="ID|NAME", help="the key's id, or its name if no other key in use has that")


def _rights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scope", dest="scopes", action="append", choices=SCOPES, help="repeatable; admin includes the others"
    )
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        "--adapter", dest="adapters", action="append", metavar="NAME|PATTERN",
        help="only these adapters exist for its holder, such as 'team-a-*'; repeatable",
    )  # fmt: skip
    names.add_argument("--all-adapters", action="store_true", help="all adapters do")
    names.add_argument("--no-adapters", action="store_true", help="none does")
    parser.add_argument("--base", action=argparse.BooleanOptionalAction, help="whether the base answers it")
    for flag, (field, what) in _LIMITS.items():
        parser.add_argument(
            flag, dest=field, type=_limit, default=argparse.SUPPRESS, metavar="N", help=f"{what}, or: default"
        )
    parser.add_argument(
        "--expires", type=_end, default=argparse.SUPPRESS, metavar="WHEN", help="90d, 12h, 2030-01-31 or never"
    )


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="what people call it")
    _rights(parser)
    _out(parser)


def _update_arguments(parser: argparse.ArgumentParser) -> None:
    _one(parser)
    parser.add_argument("--name", help="what people call it")
    _rights(parser)


def _rotate_arguments(parser: argparse.ArgumentParser) -> None:
    _one(parser)
    parser.add_argument(
        "--grace", type=_duration, default=0.0, metavar="TIME", help="how long the old secret stays good (default: 0s)"
    )
    _out(parser)


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the key there, for its owner alone to read")


def _revoke_arguments(parser: argparse.ArgumentParser) -> None:
    _one(parser)
    parser.add_argument("--forget", action="store_true", help="delete the record of a key that was revoked")


def _event_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="of this adapter, or key (its id)")
    parser.add_argument("--actor", help="by this key (its id), flag, local, server or anonymous")
    parser.add_argument("--action", help="such as upload, activate, key.create, access")
    parser.add_argument("--outcome", choices=("done", "refused"))
    parser.add_argument("--since", type=_ago, metavar="WHEN", help="1h (ago), 7d, or 2030-01-31T12:00")
    parser.add_argument("--until", type=_ago, metavar="WHEN")
    parser.add_argument("--limit", type=_count, default=50, metavar="N", help="the newest N (default: %(default)s)")


def _limit(text: str) -> int | None:
    return None if text == "default" else _count(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(text)


def _duration(text: str) -> float:
    if (found := _DURATION.fullmatch(text)) is None:
        raise argparse.ArgumentTypeError(f"must be a time such as 30m, 24h or 7d, not {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()  # of this machine's time zone where it names none
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be like 24h, 7d or 2030-01-31T12:00, not {text!r}") from error


def _end(text: str) -> float | None:
    if text == "never":
        return None
    return time.time() + _duration(text) if _DURATION.fullmatch(text) else _moment(text)


def _ago(text: str) -> float:
    return time.time() - _duration(text) if _DURATION.fullmatch(text) else _moment(text)


# ---- work ----


def _fields(args: argparse.Namespace) -> dict[str, Any]:
    """What the arguments set."""
    fields: dict[str, Any] = {}
    if args.scopes:
        fields["scopes"] = list(dict.fromkeys(args.scopes))
    if args.adapters or args.all_adapters or args.no_adapters:
        fields["adapters"] = None if args.all_adapters else args.adapters or []
    if args.base is not None:
        fields["base"] = args.base
    if limits := {field: getattr(args, field) for field, _ in _LIMITS.values() if hasattr(args, field)}:
        fields["limits"] = limits
    if hasattr(args, "expires"):
        fields["expires"] = args.expires
    return fields


def _list(place: KeyPlace, args: argparse.Namespace) -> Answer:
    answer = place.keys()
    data = [key for key in answer["data"] if args.state in (None, key["state"])]
    return {**answer, "data": data}


def _create(place: KeyPlace, args: argparse.Namespace) -> Answer:
    _check_out(args.out)
    return place.create({"name": args.name, "scopes": ["inference"], **_fields(args)})


def _show(place: KeyPlace, args: argparse.Namespace) -> Answer:
    return dict(_found(place, args.key))


def _update(place: KeyPlace, args: argparse.Namespace) -> Answer:
    fields = _fields(args) | ({} if args.name is None else {"name": args.name})
    if not fields:
        raise HotswapError("say what to change, for example --adapter; see hotswap keys update --help")
    return place.update(_found(place, args.key)["id"], fields)


def _rotate(place: KeyPlace, args: argparse.Namespace) -> Answer:
    _check_out(args.out)
    return place.rotate(_found(place, args.key)["id"], args.grace)


def _revoke(place: KeyPlace, args: argparse.Namespace) -> Answer:
    return place.revoke(_found(place, args.key, revoked=args.forget)["id"], forget=args.forget)


def _events(place: KeyPlace, args: argparse.Namespace) -> Answer:
    fields = ("name", "actor", "action", "outcome", "since", "until", "limit")
    return place.events({name: value for name in fields if (value := getattr(args, name)) is not None})


def _found(place: KeyPlace, given: str, *, revoked: bool = False) -> Mapping[str, Any]:
    """The key that ``given`` is the id of, or the name: among those in use, or those that were ``revoked``."""
    keys = place.keys()["data"]
    by_id = [key for key in keys if key["id"] == given]
    by_name = [key for key in keys if key["name"] == given and (key["state"] == "revoked") == revoked]
    found: Sequence[Mapping[str, Any]] = by_id or by_name
    if len(found) > 1:
        raise HotswapError(f"several keys are called {given!r}: {', '.join(key['id'] for key in found)}; give the id")
    if not found:
        raise HotswapError(f"there is no key {given!r}; see hotswap keys list")
    return found[0]


# ---- showing ----


def _show_list(answer: Answer, _: argparse.Namespace) -> None:
    rows = [
        (
            plain(key["id"]),
            plain(key["name"]),
            plain(key["hint"]),
            plain(key["state"]),
            ", ".join(key["scopes"]),
            _adapters(key),
            moment(key["expires"]),
            moment(key["last_used"]),
        )
        for key in answer["data"]
    ]
    header = ("ID", "NAME", "KEY", "STATE", "SCOPES", "ADAPTERS", "EXPIRES", "LAST USED")
    print(aligned(header, rows, left=range(len(header))) if rows else "there are no keys")


def _adapters(key: Mapping[str, Any]) -> str:
    named = "all" if key["adapters"] is None else ", ".join(map(plain, key["adapters"])) or "none"
    return named if key["base"] else f"{named}, not the base"


def _show_key(answer: Answer, _: argparse.Namespace) -> None:
    if answer["object"] == "key.deleted":
        print(f"{answer['id']} is forgotten")
        return
    print(_description(answer))


def _description(key: Mapping[str, Any]) -> str:
    limits = ", ".join(
        f"{key['limits'][field]:,} {what.partition(',')[0]}"
        for field, what in _LIMITS.values()
        if key["limits"].get(field) is not None
    )
    rows = {
        "id": key["id"],
        "name": plain(key["name"]),
        "key": key["hint"],
        "state": key["state"],
        "scopes": ", ".join(key["scopes"]),
        "adapters": _adapters(key),
        "limits": limits or "the server's",
        "created": moment(key["created"]),
        "expires": moment(key["expires"]) if key["expires"] else "never",
        "last used": moment(key["last_used"]) if key["last_used"] else "never",
        "rotated": moment(key["rotated"]) if key["rotated"] else None,
        "old secret": f"good until {moment(key['old_secret_until'])}" if key["old_secret_until"] else None,
        "revoked": moment(key["revoked"]) if key["revoked"] else None,
    }
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items() if value is not None)


def _show_new(answer: Answer, args: argparse.Namespace) -> None:
    """The key alone on standard output, or into the file; what it is for a person beside it."""
    print(_description(answer), file=sys.stderr)
    if args.out is None:
        print("the key, which is shown this once:", file=sys.stderr)
        print(answer["key"])
        return
    _write(args.out, answer["key"])
    print(f"the key is in {args.out}", file=sys.stderr)


def _check_out(path: Path | None) -> None:
    """Raise HotswapError for a file that cannot be made: before there is a key that nobody would know."""
    if path is not None and (path.exists() or not path.parent.is_dir()):
        why = "exists" if path.exists() else "has no directory"
        raise HotswapError(f"--out {path} {why}; name a new file")


def _write(path: Path, key: str) -> None:
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(key + "\n")
    except OSError as error:
        raise HotswapError(f"{path}: {error.strerror}; rotate the key, for nobody has seen this one") from error


def _show_events(answer: Answer, _: argparse.Namespace) -> None:
    rows = [
        (
            moment(event["time"], seconds=True),
            plain(event["actor"]),
            plain(event["address"]),
            plain(event["action"]),
            plain(event["name"]) + (f"@{event['version']}" if event["version"] else ""),
            plain(event["outcome"]),
            ", ".join(f"{name} {_short(value)}" for name, value in event["detail"].items()),
        )
        for event in answer["data"]
    ]
    header = ("TIME", "ACTOR", "FROM", "ACTION", "NAME", "OUTCOME", "DETAIL")
    print(aligned(header, rows, left=range(len(header))) if rows else "nothing was done or refused")


def _short(value: object) -> str:
    return plain(value if isinstance(value, str | int | float) else json.dumps(value))[:120]


VERBS = {
    "list": Verb("list all keys", _no_arguments, _list, _show_list),
    "create": Verb("make a key, and print it", _create_arguments, _create, _show_new),
    "show": Verb("show one key", _one, _show, _show_key),
    "update": Verb("change what a key may do, at once", _update_arguments, _update, _show_key),
    "rotate": Verb("give a key a new secret, and print it", _rotate_arguments, _rotate, _show_new),
    "revoke": Verb("end a key at once", _revoke_arguments, _revoke, _show_key),
    "events": Verb("show what was done and refused, newest first", _event_arguments, _events, _show_events),
}
