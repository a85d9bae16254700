"""How long a page takes to open in a fresh browser: `python -m tests.support.page_speed FILE... [--times 3]`.

Each figure is the median of several cold starts, each with a new browser and an empty profile; seconds from
the start of the navigation to the frame that shows it. It reports and judges nothing: time depends on the
machine. The browser reports no errors here, since watching for them makes it read scripts again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.browser import PATIENCE_S, Browser

#: Runs before the page's own scripts and notes when the frame after something became true has been painted.
WATCH = """(() => {
  const seen = window.pageTimes = {};
  const note = (name, found) => {
    if (name in seen || !found) return;
    seen[name] = null;
    requestAnimationFrame(() => setTimeout(() => { seen[name] = performance.now() / 1000; }));
  };
  const inView = (place) => { const { top, bottom } = place.getBoundingClientRect();
    return bottom > 0 && top < innerHeight; };
  new MutationObserver(() => {
    const places = [...document.querySelectorAll(".chart")];
    const drawn = places.filter((place) => place.querySelector(".main-svg"));
    note("usable", document.getElementById("filter-count")?.textContent);
    note("chart", drawn.some(inView));
    note("all", drawn.length && drawn.length === places.length);
  }).observe(document, { childList: true, subtree: true, characterData: true });
})()"""
#: What is measured: its name, the place in the file that is opened, and what is done when the page is loaded.
MEASURED = {
    "table usable": ("usable", "", ""),
    "first chart in view": ("chart", "", ""),
    "everything drawn": ("all", "", "document.getElementById('draw-all').click()"),
    "ready to print": ("all", "", "dispatchEvent(new Event('beforeprint'))"),
}


def seconds(path: Path, of: str) -> float:
    """Seconds until one of `MEASURED` is seen, from a cold start."""
    name, fragment, action = MEASURED[of]
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile), ("Page",))
        try:
            browser.size(1280, 900)
            browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
            browser.open(path, fragment)
            if action:
                browser.run(action)
            ends = time.monotonic() + PATIENCE_S
            while (found := browser.run(f"pageTimes.{name} ?? null")) is None:
                assert time.monotonic() < ends, f"{path}: {of} was not seen"
                time.sleep(0.02)
            return float(found)
        finally:
            browser.close()


def main() -> None:
    """Print one line for each file and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    for path in (file.absolute() for file in asked.files):
        print(f"{path.name}, {path.stat().st_size / 1e6:.2f} MB")
        for of in MEASURED:
            taken = [seconds(path, of) for _ in range(asked.times)]
            each = ", ".join(f"{value:.2f}" for value in taken)
            print(f"  {of:20} {statistics.median(taken):.2f} s ({each})", flush=True)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load} (1, 5, 15 minutes)")


if __name__ == "__main__":
    main()
