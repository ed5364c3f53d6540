"""What the pages load, and from where: every browser asset comes from the book itself, on the pages that use it."""

from sphinx.application import Sphinx
from sphinx.ext.mathjax import html_visit_displaymath, html_visit_math

WITHOUT_SCRIPTS = """<noscript><p><em>JavaScript, which draws the figures, formulas and sliders of this page, is off:
formulas stand as they were written, in TeX; the numbers of a figure of measurements are in the table
below it.</em></p></noscript>"""


def page_assets(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Add Plotly, RequireJS and the widget manager to the pages that need them."""
    body = context.get("body") or ""

    def script(name: str, priority: int) -> None:
        app.add_js_file(name, priority=priority, loading_method="defer")  # the text is painted first; order is kept

    if any(drawn in body for drawn in ("plotly-graph-div", 'class="math', "jupyter.widget-view")):
        context["body"] = WITHOUT_SCRIPTS + body
    widgets = "application/vnd.jupyter.widget-view+json" in body
    if "plotly-graph-div" in body:
        if widgets:
            script("plotly.min.js", 200)  # before RequireJS: it must not find an AMD loader
        script("plots.js", 210)  # elsewhere this loads it, when it is wanted
    if 'class="math' in body:
        app.add_css_file("katex/katex.min.css")
        script("katex/katex.min.js", 180)
        script("formulas.js", 190)  # formulas first: they take a tenth of a second, plots many
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


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", drop_thebe)
    app.connect("html-page-context", page_assets)
    # the text of a formula between brackets is what book/assets/formulas.js reads, as MathJax would
    app.add_html_math_renderer("katex", (html_visit_math, None), (html_visit_displaymath, None))
    app.add_css_file("book.css")
    app.add_js_file("print.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
