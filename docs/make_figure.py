"""Make the figure of the README: the dial of the demo's simulated cells, as a browser shows it.

``make demo && python docs/make_figure.py`` needs playwright and a Chromium.
"""

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURE = ROOT / "demo" / "multiome_dial.html", ROOT / "docs" / "_static" / "dial.png"
STEP = 33  # of 49: in S phase

if __name__ == "__main__":
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 770})
        page.goto(PAGE.as_uri())
        slider = page.get_by_role("slider")
        slider.fill(str(STEP))
        slider.evaluate("slider => slider.blur()")
        page.screenshot(path=FIGURE)
        browser.close()
