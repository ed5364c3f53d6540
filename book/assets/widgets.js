// Where the widget manager finds what it would otherwise fetch from a content network.
(() => {
  const root = (document.documentElement.dataset.content_root || "./") + "_static/widgets";
  requirejs.config({
    paths: {
      anywidget: root + "/anywidget",
      "@jupyter-widgets": root,
      "@jupyter-widgets/html-manager/dist": root,
    },
  });
  // ipywidgets hands every label to MathJax 2, whose interface MathJax 3 lacks; the labels hold no mathematics
  addEventListener("load", () => {
    if (globalThis.MathJax) MathJax.Hub ??= { Queue() {} };
  });
})();
