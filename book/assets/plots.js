// Draws the Plotly figures of a page, those in view at once and the others, for which Plotly need not be there
// before, one by one when nothing else is to be done, in the colours of the page, now and whenever the reader
// switches between light and dark. (The widget does this by itself.) Where a figure is narrow its title is broken
// into shorter lines and its legend stands below. A click on a point that names its runs opens their records.
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
  const NARROW = 560; // pixels
  const LEGEND = 150; // enough for most, until it is known
  const CHARACTER = 7; // the width of one in a title of 13 pixels, on average
  const wrapped = (text, length) =>
    text
      .replaceAll("<br>", " ")
      .split(" ")
      .reduce((lines, word) => {
        const longer = `${lines.at(-1)} ${word}`;
        if (lines.length && longer.length <= length) lines[lines.length - 1] = longer;
        else lines.push(word);
        return lines;
      }, []);
  const legendBelow = (layout, width) => width < NARROW || layout.legend?.yref === "container";
  const room = (layout, legend) => ({ height: (layout.height ?? 420) + legend, "margin.b": 50 + legend });
  // The layout of a figure this wide. How high its legend is can be told only when it is drawn: see `show`.
  const laidOut = (layout, width) => {
    const own = { ...structuredClone(layout), width, template: themed(layout.template), uirevision: true };
    // a finger that moves over a figure scrolls the page; the tool bar still has the zoom
    if (matchMedia("(hover: none)").matches) own.dragmode = false;
    if (legendBelow(layout, width)) {
      own.height = room(layout, LEGEND).height;
      own.margin = { ...own.margin, b: room(layout, LEGEND)["margin.b"] };
      own.legend = { ...own.legend, orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" };
    }
    if (width >= NARROW) return own;
    const title = layout.title?.text ? wrapped(layout.title.text, width / CHARACTER) : [];
    if (title.length) {
      const pad = { t: title.length > 1 ? 43 : 33, l: 4 }; // below the tool bar; Plotly sets several lines higher
      const place = { x: 0, xref: "container", xanchor: "left", y: 1, yanchor: "top", pad };
      own.title = { text: title.join("<br>"), font: { size: 13 }, ...place };
    }
    for (const note of own.annotations ?? []) note.font = { ...note.font, size: 11 };
    own.font = { ...own.font, size: 12 };
    own.margin = { ...own.margin, t: (title.length ? 63 : 44) + 17 * title.length, l: 50, r: 10 };
    return own;
  };
  // What a screen reader says of a figure, which would read out every number of its axes otherwise.
  const described = ({ data, layout }) => {
    const notes = (layout.annotations ?? []).filter((note) => note.xref === "paper" && note.yref === "paper");
    const titles = layout.title?.text ? [layout.title] : notes; // the latter are those of the panels
    const axes = Object.keys(layout).filter((name) => /^[xy]axis/.test(name)).map((name) => layout[name].title);
    const series = data.filter((trace) => trace.showlegend !== false).map((trace) => ({ text: trace.name }));
    const listed = (parts) => [...new Set(parts.map((part) => part?.text).filter(Boolean))].join(", ");
    const all = { "": titles, "axes: ": axes, "shown: ": series };
    const said = Object.entries(all).filter(([, parts]) => listed(parts)).map(([kind, parts]) => kind + listed(parts));
    return `Figure: ${said.join("; ").replace(/<[^>]*>/g, " ")}`;
  };
  const DOUBLE_CLICK = 300; // milliseconds, as Plotly has it
  const figures = new Map(); // element -> what the file holds
  const state = (plot) => `${theme()} ${plot.clientWidth}`; // what a figure is drawn for
  const show = async (plot) => {
    const { data, layout, config } = figures.get(plot);
    const width = plot.clientWidth || 700;
    plot.dataset.state = state(plot);
    const own = laidOut(layout, width);
    plot.style.height = `${own.height ?? 420}px`;
    await Plotly.react(plot, data, own, config);
    if (legendBelow(layout, width)) {
      const legend = plot.querySelector(".legend");
      const needed = room(layout, legend ? Math.ceil(legend.getBoundingClientRect().height) + 8 : 0);
      plot.style.height = `${needed.height}px`;
      await Plotly.relayout(plot, needed);
    }
    plot.role = "group"; // the buttons of its tool bar are in it
    plot.ariaLabel = described(figures.get(plot));
    for (const drawing of plot.querySelectorAll(".main-svg")) drawing.ariaHidden = "true";
    plot.dataset.theme = theme();
    plot.dataset.narrow = width < NARROW;
  };
  // A finger cannot hover: its first tap on a point shows the label, the next one on the same point opens the records.
  const openRecords = (plot) => {
    let touch = false;
    let read; // the point whose label a tap has shown
    let before; // the same when this tap began: Plotly may make two clicks of one
    let leaving; // after a moment: a double click, which shows the whole figure again, begins with a click
    const begin = (event) => {
      touch = event.pointerType === "touch";
      before = read;
    };
    plot.addEventListener("pointerdown", begin, true);
    plot.on("plotly_click", (event) => {
      clearTimeout(leaving);
      const point = event.points.find((point) => point.customdata);
      if (!point || event.event.detail > 1) return;
      const place = `${point.curveNumber} ${point.pointNumber}`;
      if (touch && place !== before) {
        read = place;
        return;
      }
      const root = document.documentElement.dataset.content_root || "./";
      const records = `${root}notebooks/figures/records.html#${point.customdata.split(" ").join(",")}`;
      leaving = setTimeout(() => location.assign(records), DOUBLE_CLICK);
    });
    plot.on("plotly_doubleclick", () => clearTimeout(leaving));
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
      figures.set(plot, JSON.parse(source.textContent));
      source.remove();
      await show(plot);
      openRecords(plot);
    }
  };
  let last = Promise.resolve();
  const redraw = () => {
    if (matchMedia("print").matches) return; // the drawing for the screen is made smaller: print.js
    last = last.then(async () => {
      for (const plot of figures.keys()) {
        if (plot.clientWidth && plot.dataset.state !== state(plot)) await show(plot); // not while it is hidden
      }
    });
  };
  draw().then(() => {
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    const watch = new ResizeObserver(redraw); // calls once for each at the start: the reader may have switched already
    for (const plot of figures.keys()) watch.observe(plot);
  });
})();
