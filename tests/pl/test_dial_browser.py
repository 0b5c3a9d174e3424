"""The dial page in Chromium, if it is installed: the page as the slider moves."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anndata import AnnData

from celldial import pl
from helpers.dial import HOSTILE, decode_floats, dial_cells, names_in, payload_of, with_hostile_names

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MARGIN = 22  # of the map, in pixels


@pytest.fixture
def cells() -> AnnData:
    return dial_cells()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start the Chromium of the system, or skip."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class OpenPage:
    """A page in the browser, which may load only its own file, with its requests and error messages."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, height: int = 800) -> None:
        self.file, self.payload = file, payload_of(file)
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", locale="en-US"
        )
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.context.route("**/*", self._allow_own_file)
        self.tab = self.context.new_page()
        self.tab.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.messages.append(str(error)))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("#marker", state="attached")

    def _allow_own_file(self, route: Any) -> None:
        self.requests.append(route.request.url)
        if route.request.url == self.file.as_uri():
            route.continue_()
        else:
            route.abort()

    def stop_clock(self) -> None:
        """Run timers only in `clock.run_for`, so that a busy machine has no effect."""
        self.tab.clock.install(time=0)
        self.tab.clock.pause_at(1000)

    def press(self, *keys: str) -> None:
        self.tab.focus("#slider")
        for key in keys:
            self.tab.keyboard.press(key)

    def set(self, step: int) -> None:
        """Move the slider as with a mouse."""
        self.tab.eval_on_selector(
            "#slider",
            "(slider, step) => { slider.value = step; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
            step,
        )

    def seen(self) -> dict[str, Any]:
        """Return the visible content."""
        return self.tab.evaluate(
            """() => {
                const box = (node) => node.getBoundingClientRect();
                const middle = (node) => [box(node).x + box(node).width / 2, box(node).y + box(node).height / 2];
                const map = document.getElementById("map");
                const corner = [box(map).x + map.clientLeft, box(map).y + map.clientTop];
                const [slider, phase] = ["slider", "phase"].map((id) => document.getElementById(id));
                return {
                    step: Number(slider.value),
                    valuetext: slider.getAttribute("aria-valuetext"),
                    position: document.getElementById("position").textContent,
                    phase: phase.hidden ? null : phase.textContent,
                    marker: middle(document.querySelector("#marker .inner")).map((at, d) => at - corner[d]),
                    size: [map.clientWidth, map.clientHeight],
                    rows: [...document.querySelectorAll("tbody tr")].map((row) => {
                        const [track, fill, whisker] = [".track", ".fill", ".whisker"].map(
                            (at) => box(row.querySelector(at)),
                        );
                        return {
                            name: row.querySelector(".name").textContent,
                            width: track.width,
                            fill: fill.width / track.width,
                            lower: (whisker.left - track.left) / track.width,
                            upper: (whisker.right - track.left) / track.width,
                            value: row.querySelector(".value b").textContent,
                            interval: row.querySelector(".value small").textContent,
                            change: row.querySelector(".change").textContent,
                        };
                    }),
                };
            }"""
        )

    def check(self, step: int) -> dict[str, Any]:
        """Compare what is shown with the stored values."""
        seen, payload = self.seen(), self.payload
        assert seen["step"] == step
        assert seen["position"] == payload["positions"][step]
        assert seen["valuetext"].startswith(payload["positions"][step])
        x, y = payload["map"]["path"][step]
        width, height = (size - 2 * MARGIN for size in seen["size"])
        np.testing.assert_allclose(seen["marker"], [MARGIN + x * width, MARGIN + (1 - y) * height], atol=1)
        assert [row["name"] for row in seen["rows"]] == names_in(payload)
        mean_f, lower_f, upper_f, change_f = (
            decode_floats(payload, what)[step] for what in ("mean", "lower", "upper", "change")
        )
        highest_f = np.maximum(decode_floats(payload, "upper"), decode_floats(payload, "mean")).max(0)
        # Widths are rounded to a pixel. A whisker is at least three pixels wide.
        for name, value_f, pixels in (("fill", mean_f, 1), ("lower", lower_f, 1), ("upper", upper_f, 4)):
            shown_f = [row[name] for row in seen["rows"]]
            np.testing.assert_allclose(shown_f, value_f / highest_f, atol=pixels / seen["rows"][0]["width"])
        np.testing.assert_allclose([number(row["value"]) for row in seen["rows"]], mean_f, rtol=0.06)
        intervals = np.array([[number(end) for end in row["interval"].split("–")] for row in seen["rows"]])
        np.testing.assert_allclose(intervals, np.column_stack([lower_f, upper_f]), rtol=0.06)
        changes = [number(row["change"].split()[0]) for row in seen["rows"]]
        np.testing.assert_allclose(changes, change_f, atol=0.006)
        return seen

    def close(self) -> None:
        self.context.close()


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


@pytest.fixture
def open_page(browser) -> Iterator[Any]:
    """Return a function that opens pages; at the end, check that there were no errors and no other requests."""
    opened: list[OpenPage] = []

    def open_file(file: Path, **options: int) -> OpenPage:
        opened.append(OpenPage(browser, file, **options))
        return opened[-1]

    yield open_file
    for each in opened:
        each.close()
    for each in opened:
        assert each.messages == []
        assert each.requests == [each.file.as_uri()]


def test_keys_and_slider_move_marker_and_bars(cells, tmp_path, open_page):
    page = open_page(pl.dial(cells, "CD4 T to CD8 T", color="cell_type", path=tmp_path / "dial.html"))
    at_start = page.check(0)
    assert at_start["valuetext"] == "0% of the path"
    page.press("ArrowRight")
    after = page.check(1)
    assert after["marker"] != at_start["marker"]
    assert [row["value"] for row in after["rows"]] != [row["value"] for row in at_start["rows"]]
    for keys, step in ((["End"], 24), (["ArrowRight"], 24), (["ArrowLeft", "PageDown"], 20), (["Home"], 0)):
        page.press(*keys)
        page.check(step)
    page.press("ArrowDown")
    page.check(0)
    page.set(12)
    assert page.check(12)["valuetext"] == "50% of the path"


def test_a_circle_has_no_end(cells, tmp_path, open_page):
    page = open_page(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    assert page.check(0)["phase"] == "G1"
    page.press("End")
    at_end = page.check(24)
    page.press("Home")
    at_start = page.check(0)
    assert at_end["rows"] == at_start["rows"]  # the same position
    page.press("ArrowLeft")
    page.check(23)
    page.press("ArrowRight", "ArrowRight")
    page.check(1)
    page.press("PageUp", "PageUp", "PageUp", "PageUp", "ArrowUp")
    seen = page.check(14)
    assert seen["phase"] == "S"
    assert seen["valuetext"] == "3.67 rad, phase S"
    for _ in range(4):
        page.press("PageUp")
    page.check(2)


def test_a_click_on_the_path_moves_the_slider(cells, tmp_path, open_page):
    page = open_page(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    width, height = page.seen()["size"]
    x, y = page.payload["map"]["path"][9]
    where = {"x": MARGIN + x * (width - 2 * MARGIN), "y": MARGIN + (1 - y) * (height - 2 * MARGIN)}
    page.tab.click("#map", position=where)
    page.check(9)
    page.tab.click("#map", position={"x": 3, "y": 3})  # far from the path
    page.check(9)


def test_play_moves_the_slider_until_it_is_stopped(cells, tmp_path, open_page):
    page = open_page(pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    page.stop_clock()
    page.tab.clock.run_for(3000)
    page.check(0)  # it does not start by itself
    page.tab.click("#play")
    assert page.tab.inner_text("#play") == "Stop"
    page.tab.clock.run_for(3500)
    page.check(3)  # one step a second with reduced motion
    page.tab.click("#play")
    page.tab.clock.run_for(3000)
    page.check(3)
    assert page.tab.inner_text("#play") == "Play"
    assert page.tab.text_content("#announced") == "0.79 rad, phase G1"


def test_play_stops_at_the_end_of_a_path(cells, tmp_path, open_page):
    page = open_page(pl.dial(cells, "interferon", path=tmp_path / "dial.html"))
    page.stop_clock()
    page.set(22)
    page.tab.click("#play")
    page.tab.clock.run_for(10_000)
    page.check(24)
    assert page.tab.inner_text("#play") == "Play"
    page.tab.click("#play")  # again, from the start
    page.tab.clock.run_for(1500)
    page.check(1)


@pytest.mark.parametrize("width", [320, 360, 700, 1000, 1280])
def test_nothing_overflows(cells, tmp_path, open_page, width):
    cells.uns["latent_traverse"]["cell_cycle"]["feature_names"][:] = [
        f"a-very-long-name-{'x' * 60}{k}" for k in range(40)
    ]
    cells.obs["kind"] = [f"{'kind' * 20} {c % 12}" for c in range(240)]
    page = open_page(pl.dial(cells, "cell_cycle", color="kind", path=tmp_path / "dial.html"), width=width)
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width
    below = page.tab.evaluate(
        "document.getElementById('features').getBoundingClientRect().top"
        " >= document.getElementById('map').getBoundingClientRect().bottom"
    )
    assert below == (width < 860)
    page.press("End")
    page.check(24)


def test_hostile_names_are_shown_as_text(cells, tmp_path, open_page):
    page = open_page(pl.dial(with_hostile_names(cells), "CD4 T to CD8 T", color=HOSTILE, path=tmp_path / "dial.html"))
    page.press("End")
    assert page.tab.evaluate("window.hostile") is None
    assert page.tab.locator("img").count() == 0
    names = page.tab.locator("tbody .name").all_text_contents()
    assert len(names) == 20
    assert sum(name.startswith(HOSTILE) for name in names) == 19
    assert f"from {HOSTILE} to {{{{script}}}}" in page.tab.text_content("h1")
    assert "<b>bold</b>" in page.tab.locator("#legend li").all_text_contents()


def test_the_policy_holds(cells, tmp_path, browser):
    """The content security policy blocks an injected script and an injected request."""
    page = OpenPage(browser, pl.dial(cells, "cell_cycle", path=tmp_path / "dial.html"))
    page.tab.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.hostile = 1";
            document.body.append(script);
            const picture = document.createElement("img");
            picture.src = "https://example.org/picture.png";
            document.body.append(picture);
        }"""
    )
    for _ in range(1000):
        page.tab.wait_for_timeout(20)
        if len(page.messages) == 2:  # one for each that was blocked
            break
    assert page.tab.evaluate("window.hostile") is None
    assert len(page.messages) == 2
    assert page.requests == [page.file.as_uri()]
    page.close()


def test_names_for_screen_readers(cells, tmp_path, open_page):
    page = open_page(pl.dial(cells, "interferon", color="score", path=tmp_path / "dial.html"))
    assert page.tab.get_by_role("slider", name="interferon score").count() == 1
    assert page.tab.get_by_role("img", name=re.compile("240 cells .*UMAP.*from start")).count() == 1
    assert page.tab.get_by_role("table", name="Genes, expected counts per 10,000").count() == 1
    assert page.tab.get_by_role("rowheader").count() == 20
    assert page.tab.locator("html[lang=en]").count() == 1
