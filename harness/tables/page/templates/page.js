"use strict";
// Sorting and filtering of tables, and links that open what they lead to.
(() => {
  // -------------------------------------------------------------------------------------- sorting
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
  const number = (text) => text === undefined || text === "nan" ? null : text.endsWith("inf") ? Number(text.replace("inf", "Infinity")) : Number(text);
  const compare = (column, numeric, sign) => (first, second) => {
    const [one, other] = [first.cells[column], second.cells[column]];
    if (!numeric) return sign * one.textContent.localeCompare(other.textContent, "en", { numeric: true });
    const [a, b] = [number(one.dataset.value), number(other.dataset.value)];
    // Missing values and NaN come last in either direction.
    return a === null || b === null ? (a === null) - (b === null) : sign * (a < b ? -1 : a > b ? 1 : 0);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const suite = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.setAttribute("aria-sort", "none");
      head.firstElementChild.addEventListener("click", () => {
        const order = NEXT[head.getAttribute("aria-sort")];
        heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
        const sign = order === "ascending" ? 1 : -1;
        const numeric = head.classList.contains("number");
        body.append(...(order === "none" ? suite : [...suite].sort(compare(column, numeric, sign))));
      });
    });
  }

  // ------------------------------------------------------------------------------------ filtering
  const text = document.getElementById("filter-text");
  const ending = document.getElementById("filter-ending");
  const count = document.getElementById("filter-count");
  const tables = [...document.querySelectorAll("table.sortable")];
  const texts = new Map(); // the text of a row over all tables
  for (const row of document.querySelectorAll("tr[data-row]")) {
    texts.set(row.dataset.row, `${texts.get(row.dataset.row) ?? ""} ${row.textContent.toLowerCase()}`);
  }
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = new Set();
    for (const row of document.querySelectorAll("tr[data-row]")) {
      const fits = !ending.value || (ending.value === "all") === (row.dataset.ok === "all");
      row.hidden = !(fits && words.every((word) => texts.get(row.dataset.row).includes(word)));
      if (!row.hidden) shown.add(row.dataset.row);
    }
    count.textContent = tables.length ? `${shown.size} of ${texts.size} rows` : "";
  };
  text.addEventListener("input", filter);
  ending.addEventListener("change", filter);
  text.form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  // ---------------------------------------------------------------------------- published figures
  const wanted = document.getElementById("published-text");
  if (wanted) {
    const verdict = document.getElementById("published-verdict");
    const shownOf = document.getElementById("published-count");
    const papers = [...document.querySelectorAll("details.cells")].map((details) => {
      const cells = [...details.querySelectorAll("tr[data-verdict]")];
      return { details, open: details.open, cells: cells.map((row) => [row, row.textContent.toLowerCase()]) };
    });
    const all = papers.reduce((sum, { cells }) => sum + cells.length, 0);
    const choose = () => {
      const parts = wanted.value.toLowerCase().split(/\s+/).filter(Boolean);
      const asked = parts.length > 0 || verdict.value !== "";
      let left = 0;
      for (const { details, open, cells } of papers) {
        let here = 0;
        for (const [row, content] of cells) {
          row.hidden = !((!verdict.value || row.dataset.verdict === verdict.value) && parts.every((part) => content.includes(part)));
          here += !row.hidden;
        }
        details.hidden = here === 0;
        details.open = asked ? here > 0 : open;
        left += here;
      }
      shownOf.textContent = `${left} of ${all} numbers`;
    };
    wanted.addEventListener("input", choose);
    verdict.addEventListener("change", choose);
    wanted.form.addEventListener("submit", (event) => event.preventDefault());
    shownOf.textContent = `${all} of ${all} numbers`;
  }

  // A link to a row opens its details.
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  open();
})();
