// Lets MathJax typeset the formulas in view first and the others in small portions, so that a page with
// hundreds of them answers from the start. MathJax.startup.promise is fulfilled when all are done.
(() => {
  "use strict";
  const PORTION = 5; // formulas between two chances to answer the reader
  const pause = () => new Promise((resolve) => setTimeout(resolve));
  const inView = (element) => {
    const { top, bottom } = element.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  };
  const pageReady = async () => {
    const formulas = [...document.querySelectorAll(".math")];
    const seen = new Set(formulas.filter(inView));
    const order = [...seen, ...formulas.filter((element) => !seen.has(element))];
    for (let i = 0; i < order.length; i += PORTION) {
      await MathJax.typesetPromise(order.slice(i, i + PORTION));
      await pause();
    }
    await MathJax.typesetPromise(); // whatever stands elsewhere
  };
  window.MathJax = { ...window.MathJax, startup: { pageReady } };
})();
