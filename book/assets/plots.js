// Plotly draws text in colours of its own: take those of the page, now and whenever the reader
// switches between light and dark. (The widget does this by itself.) A click on a point that names
// its runs opens their records.
(() => {
  "use strict";
  const recolour = () => {
    const page = getComputedStyle(document.documentElement);
    const text = page.getPropertyValue("--pst-color-text-base").trim();
    const back = page.getPropertyValue("--pst-color-background").trim();
    const surface = page.getPropertyValue("--pst-color-surface").trim();
    const dark = document.documentElement.dataset.theme === "dark";
    const line = dark ? "rgba(255,255,255,0.18)" : "rgba(0,0,0,0.14)";
    for (const plot of document.querySelectorAll(".plotly-graph-div.js-plotly-plot")) {
      const change = {
        "font.color": text,
        "hoverlabel.font.color": text,
        "hoverlabel.bgcolor": surface,
        "modebar.color": text,
        "modebar.activecolor": text,
        "modebar.bgcolor": "rgba(0,0,0,0)",
      };
      for (const axis of Object.keys(plot._fullLayout).filter((key) => /^[xy]axis\d*$/.test(key))) {
        change[`${axis}.gridcolor`] = line;
        change[`${axis}.zerolinecolor`] = line;
        change[`${axis}.linecolor`] = line;
      }
      for (const menus of ["updatemenus", "sliders"]) {
        (plot.layout[menus] || []).forEach((_, i) => {
          change[`${menus}[${i}].bgcolor`] = surface;
          change[`${menus}[${i}].font.color`] = text;
        });
      }
      plot.dataset.theme = dark ? "dark" : "light";
      Plotly.relayout(plot, change);
    }
  };
  const openRecords = (event) => {
    const point = event.points.find((point) => point.customdata);
    if (!point) return;
    const root = document.documentElement.dataset.content_root || "./";
    location.href = `${root}notebooks/figures/records.html#${point.customdata.split(" ").join(",")}`;
  };
  // "load" comes after the figures' own inline scripts, which draw them
  addEventListener("load", () => {
    recolour();
    for (const plot of document.querySelectorAll(".js-plotly-plot")) plot.on("plotly_click", openRecords);
    new MutationObserver(recolour).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  });
})();
