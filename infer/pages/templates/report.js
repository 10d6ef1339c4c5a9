"use strict";
// Tables that sort, curves that zoom, and a confusion matrix too large for a table. No library, no network.

const sortKey = cell => {
  const text = cell.dataset.v ?? cell.textContent.trim();
  const number = Number(text.replace(/[%,]/g, ""));
  return text !== "" && !Number.isNaN(number) ? number : text;
};

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === "number") return -1;
  return typeof b === "number" ? 1 : a.localeCompare(b);
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      table.sortAgain();
    });
  });
  table.sortAgain = () => {
    const column = heads.findIndex(head => head.hasAttribute("aria-sort"));
    if (column < 0) return;
    const sign = heads[column].getAttribute("aria-sort") === "ascending" ? 1 : -1;
    const keyed = [...table.tBodies[0].rows].map(row => [sortKey(row.cells[column]), row]);
    keyed.sort(([a], [b]) => (a === "") - (b === "") || compare(a, b) * sign);
    table.tBodies[0].append(...keyed.map(pair => pair[1]));
  };
}

const SVG = "http:" + "//www.w3.org/2000/svg";
function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough);
  const found = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step) found.push(Number(v.toPrecision(12)));
  return found;
}

const short = v => v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(1) : String(Number(v.toPrecision(4)));

class Chart {
  constructor(place, panel, hidden) {
    Object.assign(this, { panel, hidden, view: null, from: null });
    this.box = document.createElement("div");
    this.box.className = "chart";
    const title = document.createElement("h4");
    title.append(panel.title);
    this.reset = document.createElement("button");
    Object.assign(this.reset, { type: "button", textContent: "Reset zoom", hidden: true });
    this.reset.addEventListener("click", () => this.zoom(null));
    title.append(this.reset);
    this.svg = shape("svg", { role: "img", "aria-label": panel.title + " by epoch" });
    this.say = document.createElement("div");
    this.say.className = "say";
    this.box.append(title, this.svg, this.say);
    place.append(this.box);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  listen() {
    this.svg.addEventListener("pointerdown", event => { this.from = this.at(event); });
    this.svg.addEventListener("pointermove", event => this.point(this.at(event)));
    this.svg.addEventListener("pointerleave", () => { this.from = null; this.pick?.remove(); this.say.textContent = ""; });
    this.svg.addEventListener("pointerup", event => {
      const to = this.at(event), from = this.from;
      this.from = null;
      if (from !== null && Math.abs(this.px(to) - this.px(from)) > 8) this.zoom([Math.min(from, to), Math.max(from, to)]);
    });
    this.svg.addEventListener("dblclick", () => this.zoom(null));
  }

  at(event) {
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const [low, high] = this.range;
    return low + Math.min(Math.max((x - this.left) / this.wide, 0), 1) * (high - low);
  }

  zoom(view) { this.view = view; this.reset.hidden = !view; this.draw(); }
  px(x) { return this.left + (x - this.range[0]) / (this.range[1] - this.range[0]) * this.wide; }
  py(y) { return 8 + (1 - (y - this.low) / (this.high - this.low)) * this.tall; }
  shown() { return this.panel.series.filter(one => !this.hidden.has(one.name)); }

  point(x) {
    const near = Math.round(x);
    const parts = this.shown().map(one => [one, one.y[one.x.indexOf(near)]]).filter(pair => pair[1] != null);
    this.say.textContent = parts.length ? "Epoch " + near + ": " + parts.map(([one, y]) => one.name + " " + short(y)).join(", ") : "";
    if (this.from === null) return;
    this.pick?.remove();
    const [a, b] = [this.px(this.from), this.px(x)];
    this.pick = shape("rect", { class: "pick", x: Math.min(a, b), y: 8, width: Math.abs(a - b), height: this.tall });
    this.svg.append(this.pick);
  }

  limits() {
    const xs = this.panel.series.flatMap(one => one.x);
    this.range = this.view ?? [Math.min(...xs), Math.max(...xs)];
    if (this.range[0] === this.range[1]) this.range = [this.range[0] - 0.5, this.range[1] + 0.5];
    const inside = one => one.y.filter((y, i) => y !== null && one.x[i] >= this.range[0] && one.x[i] <= this.range[1]);
    const ys = this.shown().flatMap(inside);
    [this.low, this.high] = ys.length ? [Math.min(...ys), Math.max(...ys)] : [0, 1];
    const room = (this.high - this.low || Math.abs(this.high) || 1) * 0.05;
    this.low -= room; this.high += room;
  }

  draw() {
    const width = this.box.clientWidth, height = 220;
    if (!width) return;
    Object.assign(this, { left: 46, wide: width - 56, tall: height - 48 });
    this.limits();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    for (const y of ticks(this.low, this.high, 5)) {
      this.svg.append(shape("line", { class: "grid", x1: this.left, x2: width - 10, y1: this.py(y), y2: this.py(y) }));
      this.svg.append(shape("text", { x: this.left - 5, y: this.py(y) + 4, "text-anchor": "end" }, short(y)));
    }
    for (const x of ticks(...this.range, Math.max(2, width / 90)).filter(Number.isInteger))
      this.svg.append(shape("text", { x: this.px(x), y: height - 23, "text-anchor": "middle" }, x));
    this.svg.append(shape("text", { x: this.left + this.wide / 2, y: height - 6, "text-anchor": "middle" }, "Epoch"));
    this.shown().forEach(one => this.line(one));
  }

  line(one) {
    let path = "", pen = "M";
    one.x.forEach((x, i) => {
      if (one.y[i] === null || x < this.range[0] || x > this.range[1]) { pen = "M"; return; }
      path += pen + this.px(x).toFixed(1) + " " + this.py(one.y[i]).toFixed(1);
      pen = "L";
    });
    const stroke = `var(--s${one.colour % 8})`;
    const drawn = shape("path", { d: path, style: `stroke:${stroke}` + (one.dashed ? ";stroke-dasharray:3 3;stroke-width:1.2" : "") });
    this.svg.append(drawn);
    if (one.x.length === 1 && one.y[0] !== null)
      this.svg.append(shape("circle", { cx: this.px(one.x[0]), cy: this.py(one.y[0]), r: 3, style: `fill:${stroke}` }));
    const best = one.y[one.x.indexOf(one.best)];
    if (best == null || one.best < this.range[0] || one.best > this.range[1]) return;
    const ring = shape("circle", { class: "best", cx: this.px(one.best), cy: this.py(best), r: 5, style: `stroke:${stroke}` });
    ring.append(shape("title", {}, `${one.name}: best epoch ${one.best}, ${short(best)}`));
    this.svg.append(ring);
  }
}

function legendButton(name, one, charts, hidden) {
  const button = document.createElement("button"), key = document.createElement("span");
  button.type = "button";
  button.setAttribute("aria-pressed", "true");
  key.className = "key";
  key.style.cssText = one.dashed
    ? `background:repeating-linear-gradient(90deg, var(--s${one.colour % 8}) 0 3px, transparent 3px 6px)`
    : `background:var(--s${one.colour % 8})`;
  button.append(key, name);
  button.addEventListener("click", () => {
    const off = !hidden.delete(name);
    if (off) hidden.add(name);
    button.setAttribute("aria-pressed", String(!off));
    charts.forEach(chart => chart.draw());
  });
  return button;
}

// `place.update(panels)` draws newer data and leaves what is zoomed or hidden as it is.
function curves(place) {
  const hidden = new Set(), charts = new Map(), names = new Set();
  const legend = document.createElement("div"), grid = document.createElement("div");
  legend.className = "legend";
  grid.className = "charts";
  const data = JSON.parse(place.querySelector("script").textContent);
  place.append(legend, grid);
  place.update = panels => {
    for (const one of panels.flatMap(panel => panel.series)) {
      if (names.has(one.name)) continue;
      names.add(one.name);
      legend.append(legendButton(one.name, one, charts, hidden));
    }
    for (const panel of panels) {
      const chart = charts.get(panel.title);
      if (chart) { chart.panel = panel; chart.draw(); } else charts.set(panel.title, new Chart(grid, panel, hidden));
    }
  };
  place.update(data);
}

function matrix(place) {
  const { names, cells } = JSON.parse(place.querySelector("script").textContent);
  const canvas = document.createElement("canvas"), say = document.createElement("div"), count = new Map();
  const total = new Array(names.length).fill(0);
  canvas.width = canvas.height = names.length;
  say.className = "soft";
  say.textContent = "Point at a cell to read it.";
  for (const [row, column, n] of cells) { count.set(row * names.length + column, n); total[row] += n; }
  const draw = () => {
    const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name);
    const pen = canvas.getContext("2d");
    pen.globalAlpha = 1;
    pen.fillStyle = colour("--page");
    pen.fillRect(0, 0, names.length, names.length);
    for (const [row, column, n] of cells) {
      pen.fillStyle = colour(row === column ? "--heat" : "--bad");
      pen.globalAlpha = 0.25 + 0.75 * n / total[row];
      pen.fillRect(column, row, 1, 1);
    }
  };
  canvas.addEventListener("pointermove", event => {
    const box = canvas.getBoundingClientRect();
    const place = value => Math.min(Math.max(Math.floor(value * names.length), 0), names.length - 1);
    const column = place((event.clientX - box.left) / box.width), row = place((event.clientY - box.top) / box.height);
    say.textContent = `true ${names[row]}, said ${names[column]}: ${count.get(row * names.length + column) ?? 0} of ${total[row]}`;
  });
  place.append(canvas, say);
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll(".curves").forEach(curves);
document.querySelectorAll(".large-matrix").forEach(matrix);
