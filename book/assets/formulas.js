// The formulas of a page, which _ext/formulas.py has typeset: keeps stops beside them, and wide ones within reach of keys.
(() => {
  "use strict";
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
  document.querySelectorAll("span.math").forEach(keepTogether);
  const reachable = () => {
    for (const display of document.querySelectorAll(".katex-display")) {
      if (display.scrollWidth > display.clientWidth) display.tabIndex = 0; // else no key scrolls it
    }
  };
  addEventListener("load", () => document.fonts.ready.then(reachable)); // how wide they are depends on the fonts
})();
