"""One archive from a web server: bounded in size and time, and never from an address inside our own network.

Whoever may ask for it could otherwise read what only this machine reaches. So the host's addresses are looked up once
and checked, the connection is made to one of those, and every redirect is a new question.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO

import httpx

from server.catalog.sources.errors import not_allowed, stopped, too_large, unavailable

_REDIRECTS = 5
_TIMEOUT = httpx.Timeout(15.0, connect=10.0)
GRACE_SECONDS, _SLOWEST = 30.0, 32 * 1024  # as an upload has: half a minute, and a second for each 32 KiB
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_MAX_URL = 4096


@dataclass(frozen=True)
class WebRules:
    """``hosts`` (HOST or HOST:PORT) alone may be asked, whatever their addresses; none: all with public addresses."""

    hosts: tuple[str, ...]
    max_bytes: int


def fetch_archive(url: str, out: BinaryIO, rules: WebRules, stop: threading.Event) -> str:
    """Write what is at ``url`` to ``out`` and return its SHA-256; given up once ``stop`` is set. Raises SourceError."""
    target = _read_url(url)
    with httpx.Client(timeout=_TIMEOUT, trust_env=False, follow_redirects=False) as client:
        for _ in range(_REDIRECTS + 1):
            request = _request(client, target, _allowed_address(target, rules))
            try:
                response = client.send(request, stream=True)
                with closing(response):
                    if not response.has_redirect_location:
                        return _receive(response, out, rules.max_bytes, stop)
                    target = _next(target, response.headers["location"])
            except (httpx.TransportError, httpx.InvalidURL) as error:
                raise unavailable("its server does not answer, or not to the end") from error
    raise unavailable(f"its server sends on more than {_REDIRECTS} times")


def _read_url(url: str) -> httpx.URL:
    try:
        target = httpx.URL(url) if len(url) <= _MAX_URL else None
    except httpx.InvalidURL:
        target = None
    if target is None or target.scheme not in _PORTS or not target.host:
        raise not_allowed("the source is no address of a web server")
    if target.userinfo:
        raise not_allowed("a source holds no user and password; use a signed address")
    return target


def _next(here: httpx.URL, location: str) -> httpx.URL:
    try:
        there = _read_url(str(here.join(location)))
    except httpx.InvalidURL as error:
        raise unavailable("its server sends on to no address") from error
    if here.scheme == "https" and there.scheme != "https":
        raise not_allowed("its server sends on from https to http")
    return there


def _allowed_address(target: httpx.URL, rules: WebRules) -> str:
    """An address to connect to. Raises SourceError unless the host may be asked."""
    host, port = target.host.lower().rstrip("."), target.port or _PORTS[target.scheme]
    if rules.hosts and not {host, f"{host}:{port}"} & {allowed.lower() for allowed in rules.hosts}:
        raise not_allowed(f"{host} is not among the hosts that this server fetches from (--source-host)")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise unavailable("its host is not known") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not rules.hosts and not all(map(is_public, addresses)):
        raise not_allowed(f"{host} is inside a private network; its operator can allow that with --source-host {host}")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's, in whatever form it is written."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(part is not None and not is_public(str(part)) for part in inner):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _request(client: httpx.Client, target: httpx.URL, address: str) -> httpx.Request:
    """The request of ``target`` to that very address: by now its name may stand for another one."""
    headers = {"Host": target.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "hotswap"}
    url = target.copy_with(host=address)
    return client.build_request(
        "GET", url, headers=headers, extensions={"sni_hostname": target.raw_host.decode("ascii")}
    )


def _receive(response: httpx.Response, out: BinaryIO, most: int, stop: threading.Event) -> str:
    if response.status_code != 200:
        raise unavailable(f"its server answers {response.status_code}")
    if int(response.headers.get("content-length", "0")) > most:
        raise too_large(most)
    digest, size, begin = hashlib.sha256(), 0, time.monotonic()
    for chunk in response.iter_raw():
        digest.update(chunk)
        size += len(chunk)
        if size > most:
            raise too_large(most)
        if stop.is_set():
            raise stopped()
        if time.monotonic() - begin > GRACE_SECONDS + size / _SLOWEST:
            raise unavailable("its server is too slow")
        out.write(chunk)
    return digest.hexdigest()
