// The table of records: headings sort it, a box filters it, and #id,id in the address shows those records only.
(() => {
  "use strict";
  const table = document.querySelector("table.records");
  const rows = [...table.tBodies[0].rows];
  const texts = rows.map((row) => row.textContent.toLowerCase());

  const bar = document.createElement("div");
  bar.className = "records-bar";
  bar.innerHTML =
    '<label>Show rows with <input type="search" placeholder="all of these words"></label> ' +
    '<output></output> <button type="button">Show all</button>';
  table.before(bar);
  const [input, count, all] = ["input", "output", "button"].map((name) => bar.querySelector(name));

  const filter = () => {
    const asked = location.hash.slice(1).split(",").filter(Boolean);
    const chosen = new Set(asked.filter((id) => /^[0-9a-f]{12}$/.test(id)));
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = (chosen.size > 0 && !chosen.has(row.id)) || !words.every((word) => texts[i].includes(word));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length} records`;
    all.hidden = shown === rows.length;
  };
  input.addEventListener("input", filter);
  addEventListener("hashchange", filter);
  all.addEventListener("click", () => {
    input.value = "";
    history.replaceState(null, "", location.pathname + location.search);
    filter();
  });
  filter();

  const key = (row, column) => {
    const text = row.cells[column].textContent;
    return text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  [...table.tHead.rows[0].cells].forEach((head, column, heads) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
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
