// FAMILY, BASELINE, CURVATURE and BASELINES stand before this text: rctaf/explorer.py prints them from SymPy.

const REACH = 3; // the curves are drawn for x in [-REACH, REACH]
const BAND = [4, 10]; // the paper's best range of max|σ″|
const GAUGE = [0.01, 1000];
const KEYS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5 };
const KEY_STEP = 0.02; // in the exponent of α: an arrow key changes it by a twentieth
const PANELS = [
  { title: "σ(x)", always: [-1, 4] },
  { title: "σ′(x)", always: [0, 1] },
  { title: "σ″(x)", always: [0, 0] },
];

// Both hosts publish their theme as CSS variables, so that dark mode needs no script.
const STYLE = `
.rctaf-box {
  --ink: var(--pst-color-text-base, var(--jp-ui-font-color1, #1f2328));
  --quiet: color-mix(in srgb, var(--ink) 72%, transparent);
  --line: color-mix(in srgb, var(--ink) 20%, transparent);
  --family: #0072b2; --baseline: #b34700; --band: #009e7333;
  --jp-widgets-label-color: var(--ink); --jp-widgets-readout-color: var(--ink);
  --jp-widgets-color: var(--ink); --jp-widgets-slider-active-handle-color: var(--family);
  --jp-widgets-input-color: var(--ink); --jp-widgets-input-background-color: transparent;
  color: var(--ink); overflow: visible; width: 100%;
}
html[data-theme="dark"] .rctaf-box, body[data-jp-theme-light="false"] .rctaf-box {
  --family: #6cc0f5; --baseline: #ffa257; --band: #2fd3a540; color-scheme: dark;
}
.rctaf-box .widget-label { color: var(--ink); }
.rctaf-box .widget-readout { color: var(--ink); }
.rctaf-box select { appearance: auto; background-image: none; background-color: transparent; color: var(--ink); }
.rctaf-box select option { background-color: Canvas; }
.rctaf-box .noUi-handle { background: var(--family); border-color: var(--family); }
.rctaf-box .noUi-handle::before { /* for a finger; noUiSlider draws a grip there */
  content: ""; display: block; position: absolute; inset: -6px; width: auto; height: auto; background: none;
}
.rctaf-box :is(.noUi-handle, select, .widget-readout):focus-visible { outline: 2px solid var(--family); outline-offset: 2px; }
.rctaf-explorer { font: 13px/1.4 system-ui, sans-serif; color: var(--ink); width: 100%; }
.rctaf-explorer .head { display: flex; flex-wrap: wrap; gap: 0 1.2em; align-items: baseline; margin: .4em 0 .5em; }
.rctaf-explorer .number { font-size: 1.5em; font-weight: 650; font-variant-numeric: tabular-nums; }
.rctaf-explorer .key::before { content: ""; display: inline-block; width: 1.9em; border-top: 2.5px solid var(--family);
  vertical-align: middle; margin-right: .45em; }
.rctaf-explorer .key.other::before { border-top: 2px dashed var(--baseline); }
.rctaf-explorer .panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .5em; }
.rctaf-explorer svg { display: block; width: 100%; overflow: visible; }
.rctaf-explorer .panels svg { touch-action: pan-y; }
.rctaf-explorer text { fill: var(--quiet); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.rctaf-explorer .title { fill: var(--ink); font-size: 13.5px; font-weight: 600; }
.rctaf-explorer .reading { font-size: 12px; }
.rctaf-explorer .reading .family { fill: var(--family); stroke: none; }
.rctaf-explorer .reading .baseline { fill: var(--baseline); stroke: none; }
.rctaf-explorer .strong { fill: var(--ink); font-weight: 600; font-size: 12.5px; }
.rctaf-explorer .grid { stroke: var(--line); } .rctaf-explorer .zero { stroke: var(--quiet); }
.rctaf-explorer .band { fill: var(--band); }
.rctaf-explorer .family { stroke: var(--family); stroke-width: 2.3; fill: none; stroke-linejoin: round; }
.rctaf-explorer .baseline { stroke: var(--baseline); stroke-width: 2; stroke-dasharray: 6 4; fill: none; }
.rctaf-explorer .cross { stroke: var(--quiet); stroke-dasharray: 2 2; }
.rctaf-explorer .caption { color: var(--quiet); margin: .1em 0 .4em; }
`;

const show = (value) => String(+value.toPrecision(3));
const minus = (value) => String(value).replace("-", "−");

// Uniform in x for the slow parts, uniform in αx for the peak around 0, which may be a hundredth wide. 0 is always there.
function sampled(alpha) {
  const xs = [];
  for (let i = -160; i <= 160; i++) {
    xs.push((i * REACH) / 160);
    const near = i / 10 / alpha;
    if (Math.abs(near) < REACH) xs.push(near);
  }
  return xs.sort((a, b) => a - b);
}

function ticks(low, high) {
  const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => +((first + i) * step).toPrecision(6));
}

function panel(svg, j, xs, curves) {
  const width = svg.clientWidth || 230, height = 215, left = 38, right = 8, top = 26, bottom = 22;
  const all = curves.flatMap((curve) => curve.rows.map((row) => row[j]));
  const marks = ticks(Math.min(PANELS[j].always[0], ...all), Math.max(PANELS[j].always[1], ...all));
  const low = marks[0], high = marks.at(-1);
  const px = (x) => left + ((x + REACH) / (2 * REACH)) * (width - left - right);
  const py = (y) => height - bottom - ((y - low) / (high - low)) * (height - top - bottom);
  let out = `<text class="title" x="${left}" y="15">${PANELS[j].title}</text>`;
  if (j === 2 && high > BAND[0]) {
    const upper = py(Math.min(high, BAND[1]));
    out += `<rect class="band" x="${left}" width="${width - left - right}" y="${upper}" height="${py(BAND[0]) - upper}"/>`;
  }
  for (const y of marks) {
    out += `<line class="${y === 0 ? "zero" : "grid"}" x1="${left}" x2="${width - right}" y1="${py(y)}" y2="${py(y)}"/>`;
    out += `<text x="${left - 5}" y="${py(y) + 4}" text-anchor="end">${minus(y)}</text>`;
  }
  for (let x = -REACH; x <= REACH; x++) {
    out += `<line class="grid" x1="${px(x)}" x2="${px(x)}" y1="${top}" y2="${height - bottom}"/>`;
    out += `<text x="${px(x)}" y="${height - 6}" text-anchor="middle">${minus(x)}</text>`;
  }
  for (const { rows, kind } of curves) {
    const points = rows.map((row, i) => `${px(xs[i]).toFixed(1)},${py(row[j]).toFixed(1)}`);
    out += `<polyline class="${kind}" points="${points.join(" ")}"/>`;
  }
  svg.setAttribute("height", height);
  svg.innerHTML = out + `<g class="readout"></g>`;
  svg.place = (x) => ({ at: px(x), top, bottom: height - bottom });
  svg.locate = (pixel) => ((pixel - left) / (width - left - right)) * 2 * REACH - REACH;
}

function gauge(svg, value, other) {
  const width = svg.clientWidth || 700, height = 66, left = 14, right = 14, axis = 30;
  const px = (v) => {
    const part = Math.log(Math.min(Math.max(v, GAUGE[0]), GAUGE[1]) / GAUGE[0]) / Math.log(GAUGE[1] / GAUGE[0]);
    return left + part * (width - left - right);
  };
  const anchor = (x) => (x < 45 ? "start" : x > width - 60 ? "end" : "middle");
  let out = `<rect class="band" x="${px(BAND[0])}" width="${px(BAND[1]) - px(BAND[0])}" y="${axis - 11}" height="22" rx="3"/>`;
  out += `<line class="zero" x1="${left}" x2="${width - right}" y1="${axis}" y2="${axis}"/>`;
  for (const v of [0.01, 0.1, 1, 4, 10, 100, 1000]) {
    const x = px(v);
    out += `<line class="zero" x1="${x}" x2="${x}" y1="${axis - 4}" y2="${axis + 4}"/>`;
    out += `<text x="${x}" y="${axis + 24}" text-anchor="middle" class="${BAND.includes(v) ? "strong" : ""}">${v}</text>`;
  }
  if (other) {
    const x = px(other.value);
    // a kink has no place on the scale: an arrow leads beyond its end
    const mark = other.value === Infinity ? `M${x + 2} ${axis}h11m-5 -5l5 5l-5 5` : `M${x} ${axis - 7}l7 7l-7 7l-7 -7z`;
    out += `<path class="mark" d="${mark}" fill="none" stroke="var(--baseline)" stroke-width="2"/>`;
  }
  const x = px(value);
  out += `<circle cx="${x}" cy="${axis}" r="6.5" fill="var(--family)"/>`;
  out += `<text class="strong" x="${x}" y="${axis - 15}" text-anchor="${anchor(x)}">${show(value)}</text>`;
  svg.setAttribute("height", height);
  svg.innerHTML = out;
}

// The slider's own step is far smaller than a key should move it: it is what a typed number is rounded to.
function stepAlpha(event) {
  const slider = event.target.closest(".noUi-target")?.noUiSlider, steps = KEYS[event.key];
  if (!slider || !steps) return; // the number beside it, where one types, keeps its keys
  event.preventDefault();
  event.stopPropagation();
  slider.set(slider.get() + steps * KEY_STEP);
}

// The sliders are siblings of this widget, drawn at a time of their own; noUiSlider gives its handles no name, and the
// logarithmic one announces the exponent.
function nameControls(el, alpha, beta) {
  const values = [show(alpha), String(beta)];
  el.closest(".rctaf-box")?.querySelectorAll(".widget-slider").forEach((slider, i) => {
    const name = slider.querySelector(".widget-label")?.textContent ?? "";
    const handle = slider.querySelector("[role=slider]"), readout = slider.querySelector(".widget-readout");
    handle?.setAttribute("aria-label", name);
    handle?.setAttribute("aria-valuetext", values[i]);
    readout?.setAttribute("role", "textbox");
    readout?.setAttribute("aria-label", `${name}, type a value`);
    if (i === 0) slider.addEventListener("keydown", stepAlpha, true); // the same function again adds nothing
  });
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "rctaf-explorer";
  root.innerHTML = `<style>${STYLE}</style>
    <div class="head"><span aria-live="polite" aria-atomic="true" class="live"><span class="number"></span>
      <span class="verdict"></span></span></div>
    <div class="head"><span class="key"></span><span class="key other"></span></div>
    <div class="panels">${PANELS.map(() => `<svg role="img"></svg>`).join("")}</div>
    <svg class="gauge" role="img"></svg>
    <div class="caption">max|σ″| on a logarithmic scale. Shaded: the range 4 to 10 that the paper finds best.</div>`;
  el.append(root);
  const find = (selector) => root.querySelector(selector);
  const panels = [...root.querySelectorAll(".panels svg")];
  let formulas = []; // of the curves on show, for the read-out under the pointer

  function draw() {
    const alpha = +model.get("alpha").toPrecision(5), beta = model.get("beta"); // 14 where the slider makes 13.999999
    const [name, label] = BASELINES[model.get("baseline") ?? 0] ?? BASELINES[0];
    const value = alpha * CURVATURE.family[beta];
    const zone = value < BAND[0] ? "below" : value > BAND[1] ? "above" : "inside";
    const xs = sampled(alpha);
    formulas = [(x) => FAMILY[beta](x, alpha)];
    if (name) formulas.push(BASELINE[name]);
    const curves = formulas.map((f, i) => ({ rows: xs.map(f), kind: i ? "baseline" : "family" })).reverse();
    const drawn = `order ${beta}, α = ${show(alpha)}` + (name ? `, and ${label}` : "");
    panels.forEach((svg, j) => {
      panel(svg, j, xs, curves);
      svg.setAttribute("aria-label", `${PANELS[j].title} for ${drawn}`);
    });
    const other = name ? { value: CURVATURE.baseline[name], label } : null;
    gauge(find(".gauge"), value, other);
    find(".gauge").setAttribute("aria-label", `max|σ″| = ${show(value)} on a logarithmic scale, ${zone} the range 4 to 10`);
    find(".number").textContent = `max|σ″| = ${show(value)}`;
    find(".verdict").textContent = `${zone} the paper’s 4–10 band`;
    find(".key").textContent = `order ${beta}, α = ${show(alpha)}`;
    find(".other").hidden = !other;
    if (other) {
      const finite = other.value !== Infinity;
      find(".other").textContent = `${label}: ` + (finite ? `max|σ″| = ${show(other.value)}` : "a kink at 0, no finite max|σ″|");
    }
    Object.assign(root.dataset, { alpha, beta, baseline: name ?? "none", curvature: value, zone });
    requestAnimationFrame(() => nameControls(el, alpha, beta)); // after the slider has written its own attributes
  }

  function point(event) {
    if (event.type === "pointerleave" && event.pointerType === "touch") return; // a finger is lifted to see
    const svg = event.currentTarget;
    const x = svg.locate(event.clientX - svg.getBoundingClientRect().left);
    const inside = event.type !== "pointerleave" && Math.abs(x) <= REACH;
    const values = formulas.map((f) => f(x));
    panels.forEach((each, j) => {
      const { at, top, bottom } = each.place(x);
      const { title } = PANELS[j];
      const read = values.map((value, i) => {
        const number = minus(show(+value[j].toFixed(4)));
        return `<tspan class="${i ? "baseline" : "family"}">${number}</tspan>`;
      });
      const line = `<line class="cross" x1="${at}" x2="${at}" y1="${top}" y2="${bottom}"/>`;
      const head = each.querySelector(".title");
      head.classList.toggle("reading", inside);
      head.innerHTML = inside ? `${title.replace("x", minus(x.toFixed(2)))} = ${read.join(" · ")}` : title;
      each.querySelector(".readout").innerHTML = inside ? line : "";
    });
  }
  panels.forEach((svg) => ["pointermove", "pointerdown", "pointerleave"].forEach((t) => svg.addEventListener(t, point)));

  for (const trait of ["alpha", "beta", "baseline"]) model.on(`change:${trait}`, draw);
  const resized = new ResizeObserver(draw); // fires once when the widget gets its place on the page, too
  resized.observe(root);
  const siblings = new MutationObserver(() => nameControls(el, model.get("alpha"), model.get("beta")));
  siblings.observe(document.body, { childList: true, subtree: true });
  setTimeout(() => siblings.disconnect(), 20000); // by then every control is on the page
  draw();
  return () => { resized.disconnect(); siblings.disconnect(); };
}

export default { render };
