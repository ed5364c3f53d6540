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
})();
