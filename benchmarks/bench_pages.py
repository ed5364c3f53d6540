"""How fast the pages of the built book open, and how fast its sliders answer, in headless Chromium from file://.

    make pages                               # what is measured is _build/html as it is
    python benchmarks/bench_pages.py         # every page, median of 3 openings, each in a new browser profile

For each page, in milliseconds after the navigation started: first paint; ``open``, when the load event is over and
whatever the window shows is there, its plots drawn, its formulas typeset, its widgets alive; ``ready``, when that is so
for the whole page, down to its end; and ``blocked``, the sum over all tasks longer than 50 ms of what they take beyond
50 ms: for so long a click would have waited. For each page with the explorer: the time
from the press of an arrow key on a slider to the first frame after the curves have changed.

The record goes to ``results/benchmarks/pages.json``; what is there already is shown beside it, as ratios. A loaded
machine is slower throughout, so compare two books by measuring one after the other, not with an old record.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from bench_activations import origin

from rctaf.records import ROOT, results_dir, write_text

sys.path.insert(0, str(ROOT / "tools"))
from build_book import pages

if TYPE_CHECKING:
    from playwright.sync_api import Page

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PRESSES = 40

WATCH = """() => {
  window.longTasks = [];
  new PerformanceObserver((list) => longTasks.push(...list.getEntries().map((e) => e.duration)))
    .observe({type: "longtask", buffered: true});
}"""

READY = """async () => {
  const inView = (e) => { const r = e.getBoundingClientRect(); return r.bottom > 0 && r.top < innerHeight; };
  const there = (selector, seen, test) =>
    [...document.querySelectorAll(selector)].every((e) => !seen(e) || test(e));
  const done = (seen) =>
    document.readyState === "complete" &&
    there(".plotly-graph-div", seen, (e) => e.querySelector(".main-svg")) &&
    there(".math", seen, (e) => e.querySelector(".katex")) &&
    there('script[type="application/vnd.jupyter.widget-view+json"]', (e) => seen(e.parentElement), () =>
      document.querySelector(".rctaf-explorer polyline"));
  const time = async (seen) => {
    while (!done(seen) && performance.now() < 60000) await new Promise((resolve) => setTimeout(resolve, 5));
    await new Promise(requestAnimationFrame);
    return performance.now();
  };
  const open = await time(inView);
  const ready = await time(() => true);
  await new Promise((resolve) => setTimeout(resolve, 300));  // what was put off until later counts as blocking too
  return {
    first_paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? null,
    open,
    ready,
    blocked: longTasks.reduce((sum, task) => sum + Math.max(0, task - 50), 0),
  };
}"""

ANSWER = """(curves) => {
  window.answer = new Promise((resolve, reject) => {
    setTimeout(reject, 5000, new Error("the slider did not answer"));
    let pressed;
    addEventListener("keydown", (event) => { pressed = event.timeStamp; }, {capture: true, once: true});
    const seen = new MutationObserver(() => {
      seen.disconnect();
      requestAnimationFrame(() => {
        const after = new MessageChannel();  // a message sent within a frame arrives when it is painted
        after.port1.onmessage = () => resolve(performance.now() - pressed);
        after.port2.postMessage(0);
      });
    });
    seen.observe(curves, {attributes: true, childList: true, subtree: true});
  });
}"""


def answers(tab: Page) -> list[float]:
    """Milliseconds from each of many key presses on the first slider to the next painted frame."""
    tab.get_by_role("slider", name="α (sharpness)").first.focus()
    curves = tab.locator(".rctaf-explorer").first.element_handle()
    times = []
    for press in range(PRESSES):
        tab.evaluate(ANSWER, curves)
        tab.keyboard.press("ArrowRight" if press % 20 < 10 else "ArrowLeft")
        times.append(tab.evaluate("() => window.answer"))
    return times


def measure(html: Path, names: list[str], repeats: int, chromium: str | None) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright  # of the developers' packages

    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    sliders: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        for _ in range(repeats):  # all pages once, then all again: a slow minute hits every page
            for name in names:
                browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
                tab = browser.new_page(viewport={"width": 1280, "height": 900})
                tab.add_init_script(f"({WATCH})()")
                tab.goto((html / f"{name}.html").resolve().as_uri(), wait_until="domcontentloaded")
                rows[name].append(tab.evaluate(READY))
                if tab.locator(".rctaf-explorer").count():
                    sliders.setdefault(name, []).extend(answers(tab))
                version = browser.version
                browser.close()
    return {
        "chromium": version,
        "load_per_core": round(os.getloadavg()[0] / (os.cpu_count() or 1), 1),  # above 1: everything here is too slow
        "repeats": repeats,
        "pages_ms": {
            name: {key: round(statistics.median(r[key] or 0 for r in seen), 1) for key in seen[0]}
            for name, seen in rows.items()
        },
        "slider_ms": {
            name: {"median": round(statistics.median(t), 1), "slowest": round(max(t), 1), "presses": len(t)}
            for name, t in sliders.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path, default=ROOT / "_build/html", help="the built book (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="openings of each page (default %(default)s)")
    parser.add_argument("--out", type=Path, default=results_dir() / "benchmarks/pages.json")
    parser.add_argument("pages", nargs="*", help="such as notebooks/explore; default: all of _toc.yml")
    args = parser.parse_args()
    found = [name for name in args.pages or pages() if (args.html / f"{name}.html").exists()]
    if not found:
        print(f"{args.html} holds none of these pages: run `make pages` first", file=sys.stderr)
        return 1
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = os.environ.get("RCTAF_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    started = time.time()
    result = measure(args.html, found, args.repeats, chromium)
    before = json.loads(args.out.read_text())["pages_ms"] if args.out.exists() else {}
    print(
        f"{'page':36} {'first paint':>12} {'open':>8} {'ready':>8} {'blocked':>8}   ms; in brackets: ready over record"
    )
    for name, row in result["pages_ms"].items():
        ratio = f"  ({row['ready'] / before[name]['ready']:.2f})" if name in before else ""
        print(
            f"{name:36} {row['first_paint']:12.0f} {row['open']:8.0f} {row['ready']:8.0f} {row['blocked']:8.0f}{ratio}"
        )
    for name, row in result["slider_ms"].items():
        print(f"{name}: a slider answers in {row['median']:.0f} ms, at worst {row['slowest']:.0f} ms")
    record = {"benchmark": "pages", **result, "provenance": origin(torch.device("cpu"), started)[1]}
    write_text(args.out, json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
