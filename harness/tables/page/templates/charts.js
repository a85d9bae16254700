"use strict";
// The charts: each is drawn when it comes near, all of them at once for paper or when a reader asks for that.
(() => {
  const charts = JSON.parse(document.getElementById("charts-data").textContent);
  const root = document.documentElement;

  // ------------------------------------------------------------------------------------- charts
  const ENTRY = 52, LETTER = 6.5, LINE = 20, AXIS = 52, TICK = 12, FONT = 12; // CSS pixels
  // Colours of text and lines are those of the page, so that charts follow light, dark and print.
  const template = () => {
    const style = getComputedStyle(root);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: colour("--line"), linecolor: colour("--quiet"), zerolinecolor: colour("--line"),
      zerolinewidth: 1, ticks: "outside", tickcolor: colour("--line"), ticklabeloverflow: "allow" };
    return { layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), family: style.fontFamily, size: FONT },
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--quiet"), font: { color: colour("--ink") } },
      annotationdefaults: { bgcolor: colour("--ground") },
      xaxis: axis, yaxis: axis, margin: { l: 62, r: 14, t: 12, b: AXIS, pad: 2 },
    } };
  };
  const config = { responsive: true, displayModeBar: false };
  // A finger that moves over a chart scrolls the page.
  const dragmode = matchMedia("(pointer: coarse)").matches ? false : "zoom";
  // A legend stands below its plot; how many lines it takes depends on the width, and the plot keeps its height.
  const below = ({ data, layout }, width) => {
    const names = layout.showlegend === false ? [] : data.filter((trace) => trace.name && trace.showlegend !== false);
    if (names.length < 2) return {};
    const widest = Math.max(...names.map((trace) => ENTRY + LETTER * trace.name.length));
    const lines = Math.ceil(names.length / Math.max(1, Math.floor(width / widest)));
    return { b: AXIS + LINE * lines, height: layout.height + LINE * lines };
  };
  // Names of rows stand beside a plot. Where their room is known before, the library need not draw twice.
  const pen = document.createElement("canvas").getContext("2d");
  const beside = ({ yaxis }) => {
    if (!yaxis?.ticktext) return {};
    pen.font = `${FONT}px ${getComputedStyle(root).fontFamily}`;
    return { l: TICK + Math.ceil(Math.max(...yaxis.ticktext.map((text) => pen.measureText(text).width))) };
  };
  // The library stands in the page as text, since to run it takes longer than all the rest: tables come first.
  let loaded = false;
  const load = () => {
    if (loaded) return;
    loaded = true;
    const script = document.createElement("script");
    script.textContent = document.getElementById("library").textContent;
    document.head.append(script);
  };

  const places = [...document.querySelectorAll(".chart")];
  const drawn = new Set();
  const draw = (place) => {
    if (drawn.has(place)) return;
    drawn.add(place);
    near.unobserve(place);
    load();
    const { data, layout } = charts[place.id];
    const { height = layout.height, ...bottom } = below(charts[place.id], place.clientWidth);
    const margin = { ...layout.margin, ...beside(layout), ...bottom };
    place.style.height = `${height}px`;
    Plotly.newPlot(place, data, { ...layout, height, margin, dragmode, template: template() }, config);
  };
  // One chart at a time, what can be seen first, so that the page answers in between.
  const waiting = new Set();
  const distance = (place) => {
    const { top, bottom } = place.getBoundingClientRect();
    return Math.max(0, -bottom, top - innerHeight);
  };
  const nearest = () => {
    let [found, least] = [null, Infinity];
    for (const place of waiting) {
      const away = distance(place);
      if (away < least) [found, least] = [place, away];
    }
    return found;
  };
  const next = () => {
    const place = nearest();
    if (!place) return;
    waiting.delete(place);
    draw(place);
    say();
    if (waiting.size) later();
  };
  // What was drawn is shown before the next one is begun; a page in the background shows nothing.
  const later = () => document.hidden ? setTimeout(next) : requestAnimationFrame(() => setTimeout(next));
  const ask = (wanted) => {
    const resting = waiting.size === 0;
    for (const place of wanted) if (!drawn.has(place)) waiting.add(place);
    if (resting && waiting.size) later();
  };
  const near = new IntersectionObserver((entries) => {
    ask(entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target));
  }, { rootMargin: "300px" });
  places.forEach((place) => near.observe(place));

  const button = document.getElementById("draw-all");
  const say = () => {
    button.disabled = drawn.size === places.length;
    button.textContent = button.disabled ? `All ${places.length} charts are drawn` : `Draw all ${places.length} charts`;
  };
  if (places.length) {
    button.hidden = false;
    say();
    button.addEventListener("click", () => ask(places));
    // Load the library in the background, so that charts appear at once when scrolled to.
    addEventListener("load", () => setTimeout(() => requestIdleCallback(load), 1000));
  }

  const repaint = () => drawn.forEach((place) => Plotly.relayout(place, { template: template(), autosize: true }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

  // On paper the style of the page gives charts another width and light colours.
  let closed = [];
  addEventListener("beforeprint", () => {
    root.classList.add("printing");
    closed = [...document.querySelectorAll("details:not([open], .cells)")];
    closed.forEach((details) => { details.open = true; });
    repaint();
    places.forEach(draw);
    say();
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    closed.forEach((details) => { details.open = false; });
    repaint();
  });
})();
