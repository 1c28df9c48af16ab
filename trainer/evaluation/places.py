"""Where models are asked: a server that runs already, or one of our own for as long as it takes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import EvaluationError, PublishError
from trainer.evaluation.http import Connection, not_like_hotswap
from trainer.evaluation.targets import Serving, Target
from trainer.evaluation.types import Endpoint
from trainer.local_server import start_server, wait_until_ready
from trainer.publishing.admin import AdminClient
from trainer.publishing.upload import publish

Endpoints = Mapping[Target, Endpoint]
_SECONDS = 60.0
_log = logging.getLogger(__name__)


@contextmanager
def own_server(serving: Serving, targets: Sequence[Target]) -> Iterator[Endpoints]:
    """``hotswap serve`` with the packages of ``targets``, which all have the base of ``serving``; stopped at the end.

    Raises ServerStartError with the server's own last words.
    """
    names = {target: f"evaluated-{i}" for i, target in enumerate(targets) if target.package}
    adapters = [f"--adapter={name}={target.package}" for target, name in names.items()]
    options = ["--model", serving.base, "--quantize", serving.quantize, "--dtype", serving.dtype, "--allow-noop"]
    folder = Path(tempfile.mkdtemp(prefix="hotswap-eval-"))
    if serving.template:
        options.append(f"--chat-template={serving.template}")
    with start_server([*options, *adapters], folder / "server.log") as server:
        asyncio.run(wait_until_ready(server))
        try:
            base = asyncio.run(_base_name(Endpoint(server.url, "", server.key)))
            yield {target: Endpoint(server.url, names.get(target, base), server.key) for target in targets}
        finally:
            shutil.rmtree(folder)  # of a server that did not start the log stays


@contextmanager
def running_server(
    server: str, targets: Sequence[Target], *, api_key: str | None, admin_key: str | None
) -> Iterator[Endpoints]:
    """The server at ``server``. Packages are uploaded under a name of their own and removed at the end.

    Raises EvaluationError, and PublishError for a package that it does not take.
    """
    key = api_key or admin_key
    uploaded: dict[Target, str] = {}
    base = asyncio.run(_base_name(Endpoint(server, "", key)))
    try:
        for target in targets:
            if target.trained_base:
                raise EvaluationError(
                    f"{target.label} is a whole base, which a running server cannot load; leave --server out"
                )
            if target.package:
                uploaded[target] = f"eval-{secrets.token_hex(4)}"  # before: it may arrive and the answer be lost
                publish(target.package, server, uploaded[target], allow_noop=True, admin_key=admin_key)
        names = {target: uploaded.get(target) or target.name or base for target in targets}
        yield {target: Endpoint(server, name, key) for target, name in names.items()}
    finally:
        _remove(server, uploaded.values(), admin_key)


async def _base_name(endpoint: Endpoint) -> str:
    async with Connection(endpoint, _SECONDS, 1) as connection:
        models = await connection.get("/v1/models")
    try:
        return str(next(model["id"] for model in models["data"] if model.get("parent") is None))
    except (KeyError, TypeError, StopIteration) as error:
        raise not_like_hotswap(endpoint.server, "no base among its models") from error


def _remove(server: str, names: Iterable[str], admin_key: str | None) -> None:
    """Remove what was uploaded, as far as it can be: answers that are there already are not lost over it."""
    with AdminClient(server, admin_key, timeout=_SECONDS) as client:
        for name in names:
            try:
                client.delete(name)
            except PublishError as error:
                _log.warning("%s, which eval uploaded, may still be on %s: %s", name, client.server, error)
