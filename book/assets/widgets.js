// Loads RequireJS and the widget manager: at once where a widget is in view, else when nothing else is to be done.
// Also says where the manager finds what it would otherwise fetch from a content network.
(() => {
  "use strict";
  const folder = new URL("widgets/", document.currentScript.src).href;
  const load = (name) =>
    new Promise((resolve) => {
      const script = Object.assign(document.createElement("script"), { src: folder + name, onload: resolve });
      document.head.append(script);
    });
  const start = async () => {
    await load("require.js");
    requirejs.config({
      paths: {
        anywidget: folder + "anywidget",
        "@jupyter-widgets": folder.slice(0, -1),
        "@jupyter-widgets/html-manager/dist": folder.slice(0, -1),
      },
    });
    await load("embed-amd.js");
  };
  const widget = document.querySelector('script[type="application/vnd.jupyter.widget-view+json"]').parentElement;
  if (widget.getBoundingClientRect().top < innerHeight) start();
  else addEventListener("load", () => requestIdleCallback(start, { timeout: 2000 }));
})();
