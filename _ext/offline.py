"""What the pages load, and from where: every browser asset comes from the book itself, on the pages that use it."""

from sphinx.application import Sphinx

# Where the widget manager finds what it would otherwise fetch from a content network.
WIDGET_PATHS = """(() => {
  const root = (document.documentElement.dataset.content_root || "./") + "_static/widgets";
  requirejs.config({paths: {
    "anywidget": root + "/anywidget",
    "@jupyter-widgets": root,
    "@jupyter-widgets/html-manager/dist": root,
  }});
  // ipywidgets hands every label to MathJax 2, whose interface MathJax 3 lacks; the labels hold no mathematics
  addEventListener("load", () => { if (globalThis.MathJax) MathJax.Hub ??= {Queue() {}}; });
})();"""


def page_assets(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """Add Plotly, RequireJS and the widget manager to the pages that need them."""
    body = context.get("body") or ""
    widgets = "application/vnd.jupyter.widget-view+json" in body
    if "plotly-graph-div" in body:
        app.add_js_file("plotly.min.js", priority=200)  # before RequireJS: it must not find an AMD loader
        app.add_js_file("plots.js", priority=210)
    if 'class="table records"' in body:
        app.add_js_file("records.js", loading_method="defer")
    if widgets:  # after every script of the theme, for the same reason
        app.add_js_file("widgets/require.js", priority=900)
        app.add_js_file(None, body=WIDGET_PATHS, priority=901)
        app.add_js_file("widgets/embed-amd.js", priority=902)


def drop_thebe(app: Sphinx) -> None:
    """Jupyter Book always loads sphinx_thebe, which points every page at unpkg.com."""
    for event in ("env-before-read-docs", "doctree-resolved"):
        for listener in list(app.events.listeners.get(event, [])):
            if listener.handler.__module__.split(".")[0] == "sphinx_thebe":
                app.disconnect(listener.id)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", drop_thebe)
    app.connect("html-page-context", page_assets)
    app.add_css_file("book.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
