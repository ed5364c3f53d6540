// Typesets the formulas of a page, \( \) within a line and \[ \] or \begin{} by themselves, with KaTeX: those in
// view at once, the others as soon as the page has loaded. What KaTeX cannot read stays as it is written, in red.
(() => {
  "use strict";
  const FORMULA = /^\s*(?:\\\(([^]*)\\\)|\\\[([^]*)\\\]|(\\begin[^]*))\s*$/;
  const typeset = (place) => {
    for (const node of [...place.childNodes]) {
      const found = node.nodeType === Node.TEXT_NODE && FORMULA.exec(node.data);
      if (!found) continue; // such as the number of an equation
      const formula = document.createElement("span");
      const displayMode = found[1] === undefined;
      katex.render(found[1] ?? found[2] ?? found[3], formula, { displayMode, throwOnError: false, strict: "ignore" });
      node.replaceWith(...formula.childNodes);
      if (!displayMode) keepTogether(place);
    }
  };
  // A line may break on either side of a formula, even before a full stop: brackets and stops that touch it stay with
  // it. Not with a long one of several parts, which a narrow page breaks between them.
  const LONG = 15; // characters, about half the width of a phone
  const keepTogether = (place) => {
    const parts = [...place.querySelectorAll(".katex-base")].map((part) => part.textContent);
    if (parts.length > 1 && parts.join("").length > LONG) return;
    const [before, after] = [place.previousSibling, place.nextSibling];
    const [head] = /[^\s\p{L}\p{N}]*$/u.exec(before?.data ?? "");
    const [tail] = /^[^\s\p{L}\p{N}]*/u.exec(after?.data ?? "");
    if (!head && !tail) return;
    const whole = document.createElement("span");
    whole.className = "unbroken";
    place.replaceWith(whole);
    whole.append(head, place, tail);
    if (head) before.data = before.data.slice(0, -head.length);
    if (tail) after.data = after.data.slice(tail.length);
  };
  const places = [...document.querySelectorAll(".math")];
  const below = places.find((place) => place.getBoundingClientRect().top > innerHeight);
  // a link into the page must find its place: all come first then
  const first = below && !location.hash ? places.indexOf(below) : places.length;
  places.slice(0, first).forEach(typeset);
  const reachable = () => {
    for (const display of document.querySelectorAll(".katex-display")) {
      if (display.scrollWidth > display.clientWidth) display.tabIndex = 0; // else no key scrolls it
    }
  };
  const rest = () => {
    places.slice(first).forEach(typeset);
    requestAnimationFrame(() => document.fonts.ready.then(reachable)); // how wide they are depends on the fonts
  };
  addEventListener("load", () => setTimeout(rest));
})();
