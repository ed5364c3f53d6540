// Paper is white: a page in the dark theme is printed in the light one. And it is narrow: a view box lets book.css
// shrink the figures, which are drawn for the screen and not drawn again while a browser prints.
(() => {
  "use strict";
  const page = document.documentElement;
  const figures = () => document.querySelectorAll(".plotly-graph-div .main-svg, .rctaf-explorer svg");
  let theme;
  addEventListener("beforeprint", () => {
    for (const figure of figures()) {
      const { width, height } = figure.getBoundingClientRect();
      if (width) figure.setAttribute("viewBox", `0 0 ${width} ${height}`); // else it is in a closed fold
    }
    theme = page.dataset.theme;
    page.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    page.dataset.theme = theme;
    for (const figure of figures()) figure.removeAttribute("viewBox");
  });
})();
