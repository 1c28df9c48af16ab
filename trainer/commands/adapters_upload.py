"""``hotswap adapters upload``: a package from here, or a source that the server reads itself, becomes a version."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.commands.adapters_tables import numbers, percent
from trainer.commands.adapters_verbs import Done, Verb, add_guards, share_argument
from trainer.errors import PublishError

if TYPE_CHECKING:
    from trainer.serving.client import AdminClient, ServedVersion

_ELSEWHERE = re.compile(r"hf:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")


def is_source(path: str) -> bool:
    """Whether ``path`` is not of this machine's files: a hub id or a URL, which the server is to read."""
    return _ELSEWHERE.match(path) is not None


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the name that requests will use")
    parser.add_argument(
        "path", metavar="PATH",
        help="the output of a training run, a package's folder or archive; or what the server gets itself: "
        "hf:org/name@revision, https://..., s3://...",
    )  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--replace", action="store_true", help="as the next version of a name that is served already")
    kind.add_argument("--candidate", action="store_true", help="serve it as NAME@VERSION alone")
    kind.add_argument(
        "--canary", type=share_argument, metavar="SHARE", help="a candidate that gets a share of the requests, like 5%%"
    )
    parser.add_argument("--digest", metavar="HEX", help="of a source: the SHA-256 that its content must have")
    parser.add_argument("--allow-noop", action="store_true", help="also if it answers exactly as the base does")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_guards(parser)


def _upload(client: AdminClient, args: argparse.Namespace) -> Done:
    if args.digest and not is_source(args.path):
        args.wrong_usage("--digest is for a source that the server reads: hf:..., https://..., s3://...")
    version = _fetched(client, args) if is_source(args.path) else _sent(client, args)
    if args.canary is None:
        return Done(version.answer, _words(version), version.warnings)
    if version.state == "live":
        return Done(version.answer, f"{_words(version)}: it needs no canary", version.warnings)
    return with_share(client, version, args.canary)


def _sent(client: AdminClient, args: argparse.Namespace) -> ServedVersion:
    if _HUB_ID.fullmatch(args.path) and not Path(args.path).exists():
        raise PublishError(f"there is no {args.path} here; what the server is to get from the hub is hf:{args.path}")
    from trainer.progress import show_upload
    from trainer.serving.upload import checked_package, upload

    with checked_package(Path(args.path), args.name) as package:
        return upload(
            client,
            package,
            args.name,
            replace=args.replace,
            activate=not _is_candidate(args),
            allow_noop=args.allow_noop,
            expected_live=args.expected_live,
            if_match=args.if_match,
            progress=None if args.quiet else show_upload,
        )


def _fetched(client: AdminClient, args: argparse.Namespace) -> ServedVersion:
    from adapters.names import check_name

    fields: dict[str, Any] = {
        "name": check_name(args.name),
        **source_fields(args.path),
        "replace": args.replace,
        "activate": not _is_candidate(args),
        "allow_noop": args.allow_noop,
        "digest": args.digest,
    }
    if not args.quiet and sys.stderr.isatty():
        print(f"{client.server} gets {args.path} ...", file=sys.stderr)
    given = {name: value for name, value in fields.items() if value is not None}
    return client.fetch(given, expected_live=args.expected_live, if_match=args.if_match)


def source_fields(path: str) -> dict[str, str]:
    """What the server is to get, as it wants to be told: ``hf:org/name@revision`` is a hub id and its revision."""
    scheme, _, rest = path.partition(":")
    if scheme.lower() != "hf":
        return {"source": path}
    name, at, revision = rest.removeprefix("//").partition("@")
    return {"source": f"hf://{name}", **({"revision": revision} if at else {})}


def _is_candidate(args: argparse.Namespace) -> bool:
    return bool(args.candidate) or args.canary is not None


def with_share(client: AdminClient, version: ServedVersion, weight: float) -> Done:
    """Let a candidate that was uploaded answer a share of the requests. Raises PublishError, which says where it is."""
    try:
        answer = client.canary(version.name, version.version, weight)
    except PublishError as error:
        raise PublishError(f"{version} was uploaded and waits as a candidate, but {error}") from error
    text = f"{version} gets {percent(weight)} of the requests to {version.name}  digest {version.digest}"
    return Done(answer, text, version.warnings)


def _words(version: ServedVersion) -> str:
    where = {"live": f"{version.name} serves version {version.version}", "candidate": f"{version} waits as a candidate"}
    evicted = version.answer.get("evicted")
    deleted = f"; {numbers(evicted)} deleted" if isinstance(evicted, list) and evicted else ""
    return f"{where.get(version.state, f'{version} is {version.state}')}{deleted}  digest {version.digest}"


UPLOAD = Verb("upload a package, or name a source, as a version of an adapter", _arguments, _upload)
