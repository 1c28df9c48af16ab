"""The figures of the page are those of the server; and the page fits, in every size and colour, without a mouse."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.server.console.browser import ROOT_KEY, Watched
from tests.server.live import Live

QUANTILES = r"""async () => {
  const { parse, histograms, Histogram } = await import("./console/prometheus.js");
  const lines = ['m_bucket{le="0.1",a="x\\"y"} 2', 'm_bucket{le="0.5",a="x\\"y"} 6', 'm_bucket{le="+Inf",a="x\\"y"} 8'];
  const [[key, first]] = histograms(parse([...lines, "# HELP m"].join("\n")), "m", (labels) => labels.a);
  const later = new Histogram(first.bounds, [2, 10, 12]);
  const none = new Histogram(first.bounds, [0, 0, 0]);
  const of = [0.25, 0.5, 0.99].map((q) => first.quantile(q));
  return [key, ...of, later.since(first).quantile(0.5), none.quantile(0.5)];
}"""
UNNAMED = """[...document.querySelectorAll("button, a, input, select, textarea")]
  .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.labels?.length)).length"""
VIEWS = ("", "adapters", "adapters/first", "playground", "jobs", "keys", "audit")


def test_figures_of_each_version(watched: Watched, page: Page, live: Live) -> None:
    watched.open()
    expect(page.get_by_text("connected")).to_be_visible()
    body = {"model": "first", "prompt": "abc", "max_tokens": 4, "ignore_eos": True}
    with live.http(Authorization=f"Bearer {ROOT_KEY}") as http:
        for _ in range(3):
            assert http.post("/v1/completions", json=body).status_code == 200
        assert http.post("/v1/completions", json={**body, "model": "nobody"}).status_code == 404
    page.get_by_text("Since start").click()
    row = page.get_by_role("row", name="first@1")
    expect(row.get_by_role("cell").nth(3)).to_contain_text("ms")
    value = live.context.metrics.registry.get_sample_value
    labels = {"model": "tiny", "adapter": "first", "version": "1"}
    told = live.on_loop(lambda: value("hotswap_time_to_first_token_seconds_count", labels))
    expect(row.get_by_role("cell").nth(0)).to_have_text(f"{told:.0f}")
    expect(page.get_by_role("term").filter(has_text="Errors")).to_be_visible()
    expect(page.get_by_role("img", name="Requests a second")).to_be_visible()


def test_quantiles_are_those_of_prometheus(watched: Watched) -> None:
    """Against values computed by hand: evenly spread in a bucket, the last bound where it lies beyond it."""
    page = watched.open()
    found = page.evaluate(QUANTILES)
    assert found == ['x"y', pytest.approx(0.1), pytest.approx(0.3), 0.5, pytest.approx(0.3), None]


def test_numbers_as_people_read_them(watched: Watched) -> None:
    page = watched.open()
    found = page.evaluate("""async () => {
      const { bytes, count, percent, rate, seconds } = await import("./console/format.js");
      const sizes = [0, 999, 1500, 96_600_000, 200e6, 560e6, 1e9, 100e12].map(bytes);
      return [...sizes, ...[9999, 100_000, 2_500_000].map(count), percent(0.005), rate(1234), seconds(0.1)];
    }""")
    sizes = ["0 B", "999 B", "1.5 kB", "96.6 MB", "200 MB", "560 MB", "1 GB", "100 TB"]
    assert found == [*sizes, "9,999", "100k", "2.5M", "0.5%", "1234", "100 ms"]


def test_an_outage_is_told_once_and_what_was_seen_stays(watched: Watched, page: Page) -> None:
    page.clock.install()
    watched.open("adapters")
    row, alert = page.get_by_role("row", name="first"), page.get_by_role("alert")
    expect(row).to_be_visible()
    page.context.set_offline(True)
    page.clock.fast_forward(5000)
    expect(alert).to_contain_text("The adapters cannot be read; what is shown is of")
    expect(alert).to_contain_text("does not answer")
    alert.evaluate("(node) => (node.dataset.first = 'yes')")
    with page.expect_event("requestfailed"):
        page.clock.fast_forward(5000)
    expect(alert).to_have_attribute("data-first", "yes")  # or it would be read out again
    expect(row).to_be_visible()
    page.context.set_offline(False)
    page.clock.fast_forward(5000)
    expect(alert).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_every_view_fits_a_phone(browser: Browser, live: Live, scheme: str) -> None:
    size = {"width": 360, "height": 740}
    with browser.new_context(base_url=live.url, viewport=size, color_scheme=scheme, has_touch=True) as context:  # type: ignore[arg-type]
        watched = Watched(context, live.url)
        watched.enter_key(ROOT_KEY)
        for view in VIEWS:
            page = watched.open(view)
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            expect(page.get_by_label("Loading")).to_have_count(0)
            widths = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
            assert widths[0] <= widths[1], f"{view} is {widths[0]} wide"
        watched.check()


@pytest.mark.slow
def test_colours_follow_the_system_and_the_switch(watched: Watched, page: Page) -> None:
    watched.open()
    paper = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(paper)
    assert light != dark
    page.get_by_label("Colours").select_option("Dark")
    assert page.evaluate(paper) == dark
    page.reload()
    assert page.evaluate(paper) == dark
    page.get_by_label("Colours").select_option("Auto")
    assert page.evaluate(paper) == light


def test_all_is_reached_by_keyboard(watched: Watched, page: Page) -> None:
    watched.open()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_role("link", name="Keys").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    new = page.get_by_role("button", name="New key")
    new.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_label("Name")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(new).to_be_focused()
    assert page.evaluate(UNNAMED) == 0
    page.evaluate("location.hash = '#/keys/%'")  # an address that was cut when it was copied
    expect(new).to_be_visible()
    page.reload()
    expect(new).to_be_visible()
