"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const number = (x) => (x >= 1e6 ? x.toExponential(1) : x >= 100 ? x.toFixed(1) : x.toPrecision(3));
const duration = (s) =>
  s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${(s / 60).toFixed(1)} min` : `${(s / 3600).toFixed(1)} h`;

function element(name, attributes, parent, text) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "clipPath", "rect"].includes(name);
  const made = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// Round values between two bounds: of a linear axis, or 1, 2, 5 ... of a logarithmic one.
function ticks(low, high, log) {
  if (log) {
    for (const digits of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]]) {
      const found = [];
      for (let k = Math.floor(Math.log10(low)); k <= Math.log10(high); k++)
        for (const d of digits) if (d * 10 ** k >= low && d * 10 ** k <= high) found.push(d * 10 ** k);
      if (found.length >= 4) return found;
    }
  }
  const rough = (high - low) / 5 || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((d) => d * unit >= rough) * unit;
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step / 1e6; x += step) found.push(x);
  return found;
}

// A time axis in the unit that suits its length.
function clock(high) {
  return high < 180 ? [1, "seconds"] : high < 10800 ? [60, "minutes"] : [3600, "hours"];
}

const stroke = (series) =>
  `var(--c${series.colour % 8})` + (series.colour >= 8 ? ";stroke-dasharray:7 4" : "");

// series: [{name, colour, kind, x, y}]; axis: {x, y, log, low, high}
function chart(parent, series, axis) {
  const width = Math.max(parent.clientWidth, 240), height = 270;
  const left = 50, right = 10, top = 26, bottom = 38;
  const all = (key) => series.flatMap((s) => s[key]);
  const last = Math.max(...all("x")), x0 = axis.left ?? 0, x1 = last > x0 ? last : x0 + 1;
  const y0 = axis.low, y1 = axis.high;
  const scale = axis.log ? Math.log : (v) => v;
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) =>
    top + ((scale(y1) - scale(y)) / (scale(y1) - scale(y0))) * (height - top - bottom);
  const svg = element("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${axis.y} by ${axis.x}`,
  }, parent);
  const clip = `clip${chart.count = (chart.count || 0) + 1}`;
  element("rect", { x: left, y: top - 4, width: width - left - right + 6, height: height - top - bottom + 8 },
    element("clipPath", { id: clip }, svg));
  for (const y of ticks(y0, y1, axis.log)) {
    element("line", { class: "grid", x1: left, x2: width - right, y1: py(y), y2: py(y) }, svg);
    element("text", { x: left - 7, y: py(y) + 4, "text-anchor": "end" }, svg, +y.toPrecision(6));
  }
  for (const x of ticks(x0, x1, false)) {
    element("text", { x: px(x), y: height - bottom + 16, "text-anchor": "middle" }, svg, +x.toPrecision(6));
  }
  element("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, svg, axis.x);
  element("text", { x: 0, y: 12 }, svg, axis.y);
  const inside = element("g", { "clip-path": `url(#${clip})` }, svg);
  for (const s of series) {
    const points = s.x.map((x, i) => `${px(x).toFixed(1)},${py(s.y[i]).toFixed(1)}`);
    const group = element("g", { "data-name": s.name }, inside);
    element("path", { class: `line ${s.kind}`, d: `M${points.join("L")}`, style: `stroke:${stroke(s)}` }, group);
    if (points.length === 1 || (s.kind === "valid" && points.length <= 40))
      for (let i = 0; i < s.x.length; i++)
        element("circle", { cx: px(s.x[i]), cy: py(s.y[i]), r: 2.4, fill: `var(--c${s.colour % 8})` }, group);
  }
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const mx = event.clientX - box.left, my = event.clientY - box.top;
    let best = null;
    for (const s of series)
      s.x.forEach((x, i) => {
        const d = Math.hypot(px(x) - mx, py(s.y[i]) - my);
        if (d < 40 && (!best || d < best.d)) best = { d, s, i };
      });
    highlight(best && best.s.name);
    tip.hidden = !best;
    if (!best) return;
    tip.textContent = best.s.tell(best.i);
    tip.style.left = `${Math.min(event.pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.pageY + 14}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; highlight(null); });
}

function highlight(name) {
  for (const each of document.querySelectorAll("svg [data-name], .legend [data-name]"))
    each.classList.toggle("dim", Boolean(name) && each.dataset.name !== name);
}

function legend(parent, entries) {
  const list = element("ul", { class: "legend" }, parent);
  for (const { name, label, colour, value } of entries) {
    const item = element("li", { "data-name": name, title: name }, list);
    const sign = element("svg", { width: 22, height: 8 }, item);
    element("line", { x1: 1, x2: 21, y1: 4, y2: 4, "stroke-width": 2.4, style: `stroke:${stroke({ colour })}` }, sign);
    element("span", {}, item, label);
    if (value !== undefined && value !== null) element("b", {}, item, number(value));
    item.addEventListener("pointerenter", () => highlight(name));
    item.addEventListener("pointerleave", () => highlight(null));
  }
}

// What tells the runs of a group apart, in as few settings as will do; so the same label has the
// same colour in every group.
function labels(runs, group) {
  let keys = data.differing.filter((key) => key !== group);
  const write = (keys) => runs.map((run) => keys.map((key) => run.short[key]).filter(Boolean).join(", "));
  const clear = (written) =>
    new Set(runs.map((run, i) => `${group ? run.settings[group] : ""}\n${written[i]}`)).size === runs.length;
  for (const key of [...keys].reverse()) {
    const fewer = keys.filter((each) => each !== key);
    if (clear(write(fewer))) keys = fewer;
  }
  const written = write(keys);
  const names = clear(written) && written.every(Boolean) ? written : runs.map((run) => run.name);
  const distinct = [...new Set(names)];
  return runs.map((run, i) => ({ run, label: names[i], colour: distinct.indexOf(names[i]) }));
}

function bounds(values, log) {
  const low = Math.min(...values), high = Math.max(...values);
  const margin = (high - low) * 0.05 || 0.5; // where all are equal
  if (!log) return [low - margin, high + margin];
  // The first epochs of a run, or one that diverged, would flatten all that matters.
  return [low * 0.97, Math.max(Math.min(high, low * 8) * 1.03, low * 1.05)];
}

function drawCurves() {
  const place = document.getElementById("charts");
  const group = document.getElementById("group").value;
  const show = document.querySelector("input[name=show]:checked").value;
  const kinds = show === "both" ? ["train", "valid"] : [show];
  const entries = labels(data.runs.filter((r) => kinds.some((k) => r[k].ppl.length)), group);
  place.replaceChildren();
  if (!entries.length) return element("p", { class: "note" }, place, "No run has got so far.");
  // Perplexities of one text are on one scale in all panels.
  const text = ({ run }) => [run.short.data, run.short.level].join();
  const keys = [...new Set(entries.map(({ run }) => (group ? run.settings[group] : "All runs")))];
  for (const key of keys) {
    const inside = entries.filter(({ run }) => !group || run.settings[group] === key);
    const panel = element("div", { class: "panel" }, place);
    element("h3", {}, panel, group ? `${group.replaceAll("_", " ")}: ${key}` : key);
    const texts = new Set(inside.map(text)), compared = entries.filter((e) => texts.has(text(e)));
    const found = compared.flatMap(({ run }) => kinds.flatMap((kind) => run[kind].ppl));
    const [low, high] = bounds(found, true);
    legend(panel, inside.map((e) => ({ ...e, name: e.run.name, value: e.run.best })));
    const pair = element("div", { class: "pair" }, panel);
    const longest = Math.max(...inside.flatMap(({ run }) => kinds.flatMap((k) => run[k].seconds)), 1);
    const [unit, unitName] = clock(longest);
    for (const [across, name, divisor] of [["epoch", "epoch", 1], ["seconds", unitName, unit]]) {
      const series = inside.flatMap(({ run, colour, label }) =>
        kinds.filter((kind) => run[kind].ppl.length).map((kind) => ({
          name: run.name, colour, kind, y: run[kind].ppl, x: run[kind][across].map((x) => x / divisor),
          tell: (i) =>
            `${run.name}\n${label === run.name ? "" : label + "\n"}${kind === "valid" ? "validation" : "training"} ` +
            `perplexity ${number(run[kind].ppl[i])}\nepoch ${+run[kind].epoch[i].toFixed(2)}, ${duration(run[kind].seconds[i])}`,
        })));
      chart(element("div", {}, pair), series, { x: name, y: "perplexity", log: true, low, high });
    }
  }
}

function drawSteps() {
  const place = document.getElementById("step-charts");
  place.replaceChildren();
  const splits = [...new Set(data.runs.flatMap((run) => Object.keys(run.steps)))];
  document.getElementById("steps").hidden = !splits.length;
  for (const split of splits) {
    const entries = labels(data.runs.filter((run) => run.steps[split]), "");
    const panel = element("div", { class: "panel" }, place);
    element("h3", {}, panel, `${split} text`);
    legend(panel, entries.map((e) => ({ ...e, name: e.run.name })));
    const pair = element("div", { class: "pair" }, panel);
    for (const [key, y] of [["loss", "loss"], ["gradient", "gradient norm"]]) {
      const series = entries.filter(({ run }) => run.steps[split][key].length).map(({ run, colour }) => {
        const values = run.steps[split][key];
        return {
          name: run.name, colour, kind: "step", y: values, x: values.map((_, i) => i + 1),
          tell: (i) => `${run.name}\n${y} ${number(values[i])} at time-step ${i + 1}`,
        };
      });
      if (!series.length) continue;
      const [low, high] = bounds(series.flatMap((s) => s.y), false);
      chart(element("div", {}, pair), series, { x: "time-step", y, left: 1, low, high });
    }
  }
}

function sortBy(head) {
  const body = head.closest("table").tBodies[0];
  const place = Number(head.dataset.column);
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const each of document.querySelectorAll("th[aria-sort]")) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[place].dataset.value ?? row.cells[place].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (!x || !y) return x ? -1 : y ? 1 : 0; // what is missing stays below
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -order : order;
  });
  body.append(...rows);
}

const choice = document.getElementById("group");
for (const [value, label] of data.groups) element("option", { value }, choice, label);
choice.value = data.group;
for (const head of document.querySelectorAll("th[data-column]"))
  head.querySelector("button").addEventListener("click", () => sortBy(head));
document.querySelector(".controls").addEventListener("change", drawCurves);
const draw = () => { drawCurves(); drawSteps(); };
let width = 0;
new ResizeObserver(([entry]) => {
  if (entry.contentRect.width !== width) { width = entry.contentRect.width; draw(); }
}).observe(document.querySelector("main"));
draw();
