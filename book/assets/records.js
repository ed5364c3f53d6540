// The table of records: headings sort it, a box filters it, and #id,id in the address shows those records only and
// scrolls to them.
// The box takes words, which may stand anywhere in a row, and column=value: seed=3 is a number, network=wrn a part.
(() => {
  "use strict";
  const table = document.querySelector("table.records");
  const rows = [...table.tBodies[0].rows];
  const cells = rows.map((row) => [...row.cells].map((cell) => cell.textContent.toLowerCase()));
  const texts = cells.map((row) => row.join(" "));
  const plain = (text) => text.toLowerCase().replace(/[\s%]/g, "");
  const names = [...table.tHead.rows[0].cells].map((head) => [plain(head.textContent), plain(head.dataset.name)]);

  const bar = document.createElement("div");
  bar.className = "records-bar";
  bar.innerHTML =
    '<label>Show rows with <input type="search" placeholder="words, or column=value: mish seed=3"></label> ' +
    '<output></output> <button type="button">Show all</button>';
  const frame = document.createElement("div"); // scrolls both ways under the bar, and its headings stay
  frame.className = "records-frame";
  frame.tabIndex = 0;
  const paper = document.createElement("p"); // instead of both
  paper.className = "onlyprint";
  paper.textContent = `The table of ${rows.length} records is not printed: see the file records/records.csv of this book.`;
  table.before(paper, bar, frame);
  frame.append(table);
  const [input, count, all] = ["input", "output", "button"].map((name) => bar.querySelector(name));

  // what a term asks of a row, whose place among the rows is i
  const test = (term) => {
    const [, name, value] = /^([^=]+)=(.+)$/.exec(term) ?? [];
    const column = [(n) => n === name, (n) => n.startsWith(name)]
      .map((fits) => names.findIndex((both) => both.some(fits)))
      .find((place) => place >= 0);
    if (name === undefined || column === undefined) return (i) => texts[i].includes(term);
    const number = Number(value);
    return (i) => (Number.isNaN(number) ? cells[i][column].includes(value) : Number(cells[i][column]) === number);
  };
  const filter = () => {
    const asked = location.hash.slice(1).split(",").filter(Boolean);
    const chosen = new Set(asked.filter((id) => /^[0-9a-f]{12}$/.test(id)));
    const tests = input.value.toLowerCase().split(/\s+/).filter(Boolean).map(test);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = (chosen.size > 0 && !chosen.has(row.id)) || !tests.every((passes) => passes(i));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length} records`;
    all.hidden = shown === rows.length;
    return chosen.size > 0;
  };
  const follow = () => filter() && bar.scrollIntoView();
  input.addEventListener("input", filter);
  addEventListener("hashchange", follow);
  all.addEventListener("click", () => {
    input.value = "";
    history.replaceState(null, "", location.pathname + location.search);
    filter();
  });
  filter();
  addEventListener("load", follow); // after the browser's own jump, to the row where one id is asked for

  const key = (row, column) => {
    const text = row.cells[column].textContent;
    return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };
  const compare = (a, b) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b);
  };
  [...table.tHead.rows[0].cells].forEach((head, column, heads) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = down ? "descending" : "ascending";
      const keyed = rows.map((row) => [key(row, column), row]);
      keyed.sort(([a], [b]) => {
        if (a === "–" || b === "–") return (a === "–") - (b === "–"); // what was not measured stands last
        return down ? compare(b, a) : compare(a, b);
      });
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    });
  });
})();
