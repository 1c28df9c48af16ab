"""A real S3 server of this process, for whoever imports the fixtures."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import httpx
import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server of this process."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a new bucket, and what is needed to reach it in the environment."""
    bucket = f"hotswap-{secrets.token_hex(4)}"
    assert httpx.put(f"{s3_server}/{bucket}").status_code == 200
    settings = {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return f"s3://{bucket}/some/prefix"
