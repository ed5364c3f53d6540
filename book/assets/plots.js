// Draws the Plotly figures of a page, those in view at once and the others, for which Plotly need not be there
// before, one by one when nothing else is to be done, in the colours of the page, now and whenever the reader switches between light and dark. (The widget
// does this by itself.) A click on a point that names its runs opens their records.
(() => {
  "use strict";
  const theme = () => (document.documentElement.dataset.theme === "dark" ? "dark" : "light");
  const themed = (template) => {
    const page = getComputedStyle(document.documentElement);
    const [text, back] = ["text-base", "surface"].map((name) => page.getPropertyValue(`--pst-color-${name}`).trim());
    const line = theme() === "dark" ? "rgba(255,255,255,0.18)" : "rgba(0,0,0,0.14)";
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
    const box = { bgcolor: back, font: { color: text } };
    const layout = structuredClone(template.layout);
    return {
      ...template,
      layout: {
        ...layout,
        font: { ...layout.font, color: text },
        hoverlabel: { ...layout.hoverlabel, ...box },
        modebar: { color: text, activecolor: text, bgcolor: "rgba(0,0,0,0)" },
        xaxis: { ...layout.xaxis, ...axis },
        yaxis: { ...layout.yaxis, ...axis },
        updatemenudefaults: box,
        sliderdefaults: box,
      },
    };
  };
  const openRecords = (event) => {
    const point = event.points.find((point) => point.customdata);
    if (!point) return;
    const root = document.documentElement.dataset.content_root || "./";
    location.href = `${root}notebooks/figures/records.html#${point.customdata.split(" ").join(",")}`;
  };
  const inView = (element) => {
    const { top, bottom } = element.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  };
  const address = new URL("plotly.min.js", document.currentScript.src).href;
  const plotly = () =>
    new Promise((resolve) => {
      if (window.Plotly) return resolve(); // on pages with widgets, where it must come before RequireJS
      const script = Object.assign(document.createElement("script"), { src: address, onload: resolve });
      document.head.append(script);
    });
  const loaded = new Promise((resolve) => addEventListener("load", resolve));
  const idle = () => new Promise((resolve) => requestIdleCallback(resolve, { timeout: 2000 }));
  const draw = async () => {
    const plots = [...document.querySelectorAll(".plotly-graph-div")];
    const seen = new Set(plots.filter(inView));
    for (const plot of [...seen, ...plots.filter((plot) => !seen.has(plot))]) {
      if (!seen.has(plot)) {
        await loaded;
        await idle();
      }
      await plotly();
      const source = plot.querySelector("script");
      const figure = JSON.parse(source.textContent);
      source.remove();
      figure.layout.template = themed(figure.layout.template);
      await Plotly.newPlot(plot, figure);
      plot.on("plotly_click", openRecords);
      plot.dataset.theme = theme();
    }
  };
  const recolour = async () => {
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
      if (plot.dataset.theme === theme()) continue;
      await Plotly.relayout(plot, { template: themed(plot.layout.template) });
      plot.dataset.theme = theme();
    }
  };
  draw().then(() => {
    recolour(); // in case the reader switched while they were drawn
    new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  });
})();
