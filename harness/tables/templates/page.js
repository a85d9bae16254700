"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts-data").textContent);
  const root = document.documentElement;

  // ------------------------------------------------------------------------------------- charts
  // Colours of text and lines are those of the page, so that charts follow light, dark and print.
  const template = () => {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), linecolor: colour("--quiet"), zerolinecolor: colour("--line"),
      zerolinewidth: 1, ticks: "outside", tickcolor: colour("--line") };
    return { layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), family: style.fontFamily, size: 12 },
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--quiet"), font: { color: colour("--ink") } },
      annotationdefaults: { bgcolor: colour("--ground") },
      xaxis: axis, yaxis: axis, margin: { l: 10, r: 14, t: 12, b: 10, pad: 2 },
    } };
  };
  const config = { responsive: true, displayModeBar: false };
  // A finger that moves over a chart scrolls the page.
  const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  // A legend stands below its plot; how many lines it takes depends on the width, and the plot keeps its height.
  const ENTRY = 52, LETTER = 6.5, LINE = 20, AXIS = 52; // CSS pixels
  const below = ({ data, layout }, width) => {
    const names = layout.showlegend === false ? [] : data.filter((trace) => trace.name && trace.showlegend !== false);
    if (names.length < 2) return {};
    const widest = Math.max(...names.map((trace) => ENTRY + LETTER * trace.name.length));
    const lines = Math.ceil(names.length / Math.max(1, Math.floor(width / widest)));
    return { "margin.b": AXIS + LINE * lines, height: layout.height + LINE * lines };
  };
  const drawn = new Set();
  const draw = (place) => {
    if (drawn.has(place)) return;
    drawn.add(place);
    const { data, layout } = charts[place.id];
    const { height = layout.height, "margin.b": bottom = 0 } = below(charts[place.id], place.clientWidth);
    const margin = bottom ? { ...(layout.margin ?? {}), b: bottom } : layout.margin;
    place.style.height = `${height}px`;
    Plotly.newPlot(place, data, { ...layout, height, margin, dragmode, template: template() }, config);
  };
  const places = [...document.querySelectorAll(".chart")];
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
  }, { rootMargin: "300px" });
  // The library comes after this script, so that tables can be sorted before it has been read.
  addEventListener("load", () => places.forEach((place) => near.observe(place)));

  const repaint = (more) => drawn.forEach((place) => Plotly.relayout(place, { template: template(), ...more }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => repaint({}));

  const PAPER_WIDTH = 680; // of A4 within its margins, in CSS pixels
  let closed = [];
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((details) => { details.open = true; });
    places.forEach(draw);
    repaint({ width: PAPER_WIDTH, autosize: false });
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    closed.forEach((details) => { details.open = false; });
    repaint({ width: null, autosize: true });
  });

  // -------------------------------------------------------------------------------------- sorting
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
  const number = (text) => text === undefined ? null : text.endsWith("inf") ? Number(text.replace("inf", "Infinity")) : Number(text);
  const compare = (column, numeric, sign) => (first, second) => {
    const [one, other] = [first.cells[column], second.cells[column]];
    if (!numeric) return sign * one.textContent.localeCompare(other.textContent, "en", { numeric: true });
    const [a, b] = [number(one.dataset.value), number(other.dataset.value)];
    // What was not measured comes last in either direction.
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
  const said = new Map(); // all that the tables say of a row
  for (const row of document.querySelectorAll("tr[data-row]")) {
    said.set(row.dataset.row, `${said.get(row.dataset.row) ?? ""} ${row.textContent.toLowerCase()}`);
  }
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const shown = new Set();
    for (const row of document.querySelectorAll("tr[data-row]")) {
      const fits = !ending.value || (ending.value === "all") === (row.dataset.ok === "all");
      row.hidden = !(fits && words.every((word) => said.get(row.dataset.row).includes(word)));
      if (!row.hidden) shown.add(row.dataset.row);
    }
    count.textContent = tables.length ? `${shown.size} of ${said.size} rows` : "";
  };
  text.addEventListener("input", filter);
  ending.addEventListener("change", filter);
  text.form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  // A link to a row opens what it leads to.
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  open();
})();
