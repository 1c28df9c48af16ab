"""The pictures of docs/console.md, taken of a real server under load: ``python -m tests.server.console.screenshots``.

Takes the adapters that a run of the demo left (``make demo``), or those of ``--runs``.
"""

from __future__ import annotations

import argparse
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, sync_playwright

from adapters.package.archive import pack
from bases.finding import DEFAULT_BASE, resolve_base
from hotswap.demo.tasks import CONTACTS, DATES
from tests.server.console.browser import ROOT_KEY, chromium, launch
from tests.server.live import Live, live_server

LIVE_SECONDS = 70
WIDE, PHONE = {"width": 1280, "height": 1010}, {"width": 390, "height": 844}
PROMPTS = {
    "contacts": [row.prompt for row in CONTACTS.rows(1, 12, seed=3)[1]],
    "dates": [row.prompt for row in DATES.rows(1, 12, seed=3)[1]],
}


def main() -> None:
    """Serve, ask, look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("demo-out/runs"), metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("docs/console"), metavar="DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for what the server keeps")
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    program = chromium()
    if program is None:
        parser.error("Chromium is not installed (Debian's package: chromium)")
    adapters = [
        (name, str(args.runs / run / "adapter")) for name, run in (("contacts", "contacts-v1"), ("dates", "dates"))
    ]
    engine = {"quantize": "gguf", "kv_cache_gb": 0.3}
    with live_server(
        resolve_base(DEFAULT_BASE), args.work / "data", adapters=adapters, engine=engine, admin_key=ROOT_KEY
    ) as live:
        with live.http(Authorization=f"Bearer {ROOT_KEY}") as http:
            _publish(http, args.runs / "contacts-v2" / "adapter", args.work)
        with _traffic(live), sync_playwright() as playwright:
            browser = launch(playwright, program)
            _look(browser, live, args.out)
            browser.close()


def _publish(http: httpx.Client, package: Path, work: Path) -> None:
    """A second version of contacts, with a share of its requests; and a key."""
    pack(package, archive := work / "contacts.tar")
    form = {"name": "contacts", "replace": "true", "activate": "false"}
    http.post("/v1/adapters", data=form, files={"file": archive.read_bytes()}).raise_for_status()
    rules = {"max_error_rate": 0.05, "max_ttft_p95_ratio": 2.0, "min_requests": 5}
    http.patch(
        "/v1/adapters/contacts", json={"canary": {"version": 2, "weight": 0.3, "rules": rules}}
    ).raise_for_status()
    for name, scopes in (
        ("support team", ["inference"]),
        ("dashboards", ["read-only"]),
        ("data science", ["fine-tuning"]),
    ):
        body = {"name": name, "scopes": scopes, "adapters": ["contacts*"] if name == "support team" else None}
        http.post("/v1/keys", json=body).raise_for_status()


@contextmanager
def _traffic(live: Live) -> Iterator[None]:
    ended = threading.Event()

    def ask(model: str, prompts: list[str], pause: float) -> None:
        with live.http(Authorization=f"Bearer {ROOT_KEY}") as http:
            for prompt in itertools.cycle(prompts):
                messages = [{"role": "user", "content": prompt}]
                http.post("/v1/chat/completions", json={"model": model, "messages": messages, "max_tokens": 24})
                if ended.wait(pause):
                    return

    base = live.context.base_name
    each = [("contacts", PROMPTS["contacts"], 0.3), ("dates", PROMPTS["dates"], 0.8), (base, PROMPTS["dates"], 1.0)]
    threads = [threading.Thread(target=ask, args=one) for one in each]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _look(browser: Browser, live: Live, out: Path) -> None:
    for scheme in ("light", "dark"):
        page = _open(browser, live, WIDE, scheme)
        _wide(page, out, scheme)
        page.context.close()
    page = _open(browser, live, PHONE, "light")
    _narrow(page, out)
    page.context.close()


def _wide(page: Page, out: Path, scheme: str) -> None:
    page.goto("/console#/")
    page.wait_for_timeout(LIVE_SECONDS * 1000)
    _shoot(page, out / f"live-{scheme}.png")
    if scheme == "dark":
        return
    page.goto("/console#/adapters/contacts")
    page.get_by_role("slider").wait_for()
    page.wait_for_timeout(3000)
    _shoot(page, out / "adapter.png")
    page.get_by_role("button", name="Details version 2").click()
    page.get_by_role("img", name="Loss by step").wait_for()
    _shoot(page, out / "manifest.png")
    page.goto("/console#/playground/contacts@2")
    page.get_by_label("Message", exact=True).fill(PROMPTS["contacts"][0])
    page.get_by_label("Most tokens").fill("48")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("ended by").nth(1).wait_for()
    page.get_by_role("group").last.focus()
    _shoot(page, out / "playground.png")


def _narrow(page: Page, out: Path) -> None:
    page.goto("/console#/")
    page.wait_for_timeout(15_000)
    _shoot(page, out / "phone.png")


def _open(browser: Browser, live: Live, size: dict[str, int], scheme: str) -> Page:
    context = browser.new_context(base_url=live.url, viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.add_init_script(f"sessionStorage.setItem('hotswap.key', {ROOT_KEY!r})")
    return page


def _shoot(page: Page, path: Path) -> None:
    """What the window shows, in a few hundred kB."""
    page.screenshot(path=path)


if __name__ == "__main__":
    main()
