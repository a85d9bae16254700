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

  // Names of points stand beside them, where they cover neither each other nor a mark, a bar or a line: of
  // the places around a point the cheapest is taken, several times over, since each name is in the way of others.
  const NEAR = [0, 12, 26, 42, 60], AROUND = 16, MARK = 9, HIGH = 15;
  const boxes = ({ data, _fullLayout: { xaxis, yaxis } }) => data.flatMap((trace) => {
    const across = trace.x.map((x) => xaxis.d2p(x)), up = trace.y.map((y) => yaxis.d2p(y));
    const thin = (x1, x2, y1, y2) => ({ l: Math.min(x1, x2) - 1, r: Math.max(x1, x2) + 1, t: Math.min(y1, y2) - 1, b: Math.max(y1, y2) + 1, cost: 3 });
    if (trace.mode === "lines") // a step: first across, then up
      return across.slice(1).flatMap((x, at) => [thin(across[at], x, up[at], up[at]), thin(x, x, up[at], up[at + 1])]);
    const [x, y] = [across[0], up[0]];
    const bar = (axis, values, errors) => errors?.array ? [-1, 1].map((side) => axis.d2p(values[0] + side * (errors.array[0] ?? 0))) : null;
    const [wide, tall] = [bar(xaxis, trace.x, trace.error_x), bar(yaxis, trace.y, trace.error_y)];
    return [
      { l: x - MARK, r: x + MARK, t: y - MARK, b: y + MARK, cost: 12 },
      ...(wide ? [thin(...wide, y, y)] : []), ...(tall ? [thin(x, x, ...tall)] : []),
    ];
  });
  const meet = (one, other) => one.l < other.r && other.l < one.r && one.t < other.b && other.t < one.b;
  const name = (place) => {
    const { xaxis, yaxis } = place._fullLayout;
    pen.font = `${FONT}px ${getComputedStyle(root).fontFamily}`;
    const plain = document.createElement("textarea");
    const points = place.data.filter((trace) => trace.mode === "markers").map((trace) => {
      plain.innerHTML = trace.name;
      return { trace, x: xaxis.d2p(trace.x[0]), y: yaxis.d2p(trace.y[0]), wide: pen.measureText(plain.value).width + 4 };
    });
    const fixed = boxes(place);
    const away = ({ l, r, t, b }, { x, y }) => Math.hypot(Math.max(l - x, 0, x - r), Math.max(t - y, 0, y - b));
    const spots = ({ x, y, wide }) => NEAR.flatMap((near) => Array.from({ length: AROUND }, (_, turn) => {
      const angle = 2 * Math.PI * turn / AROUND;
      const dx = Math.cos(angle) * (MARK + near + wide / 2), dy = Math.sin(angle) * (MARK + near + HIGH / 2);
      const box = { l: x + dx - wide / 2, r: x + dx + wide / 2, t: y + dy - HIGH / 2, b: y + dy + HIGH / 2 };
      const outside = box.l < 0 || box.r > xaxis._length || box.t < 0 || box.b > yaxis._length;
      const met = fixed.reduce((sum, other) => sum + (meet(box, other) ? other.cost : 0), outside ? 100 : 0);
      const own = away(box, { x, y }); // a name that is nearer to another mark would be taken for that one's
      const taken = points.filter((point) => away(box, point) < own + 5).length - 1;
      return { dx, dy, box, near, cost: met + near / 20 + 4 * taken };
    }));
    points.forEach((point) => { point.spots = spots(point); });
    const price = (spot, point) => spot.cost + points.reduce((sum, other) => sum + (other !== point && other.at && meet(spot.box, other.at.box) ? 20 : 0), 0);
    for (let turn = 0; turn < 4; turn++)
      for (const point of points)
        point.at = point.spots.reduce((best, spot) => price(spot, point) < price(best, point) ? spot : best);
    Plotly.relayout(place, { annotations: points.map(({ trace, at }) => ({
      x: trace.x[0], y: trace.y[0], ax: at.dx, ay: at.dy, text: trace.name, showarrow: true, arrowhead: 0, arrowwidth: 0.8, standoff: MARK,
      arrowcolor: at.near > NEAR[1] ? "#8a919b" : "rgba(0,0,0,0)", bgcolor: "rgba(0,0,0,0)", borderpad: 0,
    })) });
  };
  let asked;
  addEventListener("resize", () => {
    clearTimeout(asked);
    asked = setTimeout(() => drawn.forEach((place) => { if (charts[place.id].layout.meta?.named) name(place); }), 300);
  });

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
    if (layout.meta?.named) name(place);
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
