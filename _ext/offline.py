"""What the pages load, and from where: every browser asset comes from the book itself, on the pages that use it."""

import html
from pathlib import Path

from sphinx.application import Sphinx

WITHOUT_SCRIPTS = """<noscript><style>.plotly-graph-div { display: none; } .cell_output { min-height: 0 !important; }
</style><p><em>JavaScript, which draws the figures and sliders of this page, is off; the numbers of a figure of
measurements are in the table below it.</em></p></noscript>"""


# as the theme's own script does, which comes long after the page is seen for the first time
THEME = """if (document.documentElement.dataset.mode === "auto") document.documentElement.dataset.theme =
matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";"""

INDEX = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<meta http-equiv="refresh" content="0; url={page}">
<p><a href="{page}">{title}</a></p>
</html>
"""


def page_assets(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Add Plotly, RequireJS and the widget manager to the pages that need them."""
    body = context.get("body") or ""
    if pagename == app.config.root_doc:
        context["docstitle"] = ""  # it is the title of that page

    def script(name: str, priority: int) -> None:
        app.add_js_file(name, priority=priority, loading_method="defer")  # the text is painted first; order is kept

    if any(drawn in body for drawn in ("plotly-graph-div", "jupyter.widget-view")):
        context["body"] = WITHOUT_SCRIPTS + body
    widgets = "application/vnd.jupyter.widget-view+json" in body
    if "plotly-graph-div" in body:
        if widgets:
            script("plotly.min.js", 200)  # before RequireJS: it must not find an AMD loader
        script("plots.js", 210)  # elsewhere this loads it, when it is wanted
    if 'class="math' in body:
        app.add_css_file("katex/katex.min.css")
        script("formulas.js", 190)
    if 'class="table records"' in body:
        script("records.js", 230)
    if widgets:
        script("widgets.js", 900)  # after every script of the theme, for the same reason


def drop_thebe(app: Sphinx) -> None:
    """Jupyter Book always loads sphinx_thebe, which points every page at unpkg.com."""
    for event in ("env-before-read-docs", "doctree-resolved"):
        for listener in list(app.events.listeners.get(event, [])):
            if listener.handler.__module__.split(".")[0] == "sphinx_thebe":
                app.disconnect(listener.id)


def write_index(app: Sphinx, exception: Exception | None) -> None:
    """The way to the first page, before sphinx_external_toc makes one without a language, a title or a link."""
    if exception is None:
        index = INDEX.format(title=html.escape(app.config.html_title), page=f"{app.config.root_doc}.html")
        (Path(app.outdir) / "index.html").write_text(index, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write_index, priority=100)
    app.connect("builder-inited", drop_thebe)
    app.connect("html-page-context", page_assets)
    app.add_css_file("book.css")
    app.add_js_file(None, body=THEME, priority=0)
    app.add_js_file("print.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
