// Charts as SVG, drawn at the width that there is, each with its numbers as a table behind it.

import {el, number, table} from "./page.js";

const SVG = "http://www.w3.org/2000/svg";
const LEFT = 44, BOTTOM = 20, TOP = 8;

function svg(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

// A step of 1, 2 or 5 times a power of ten, so that there are some three lines.
function step(most) {
  const power = 10 ** Math.floor(Math.log10(most / 3 || 1));
  return [1, 2, 5, 10].map((n) => n * power).find((size) => most / size <= 4);
}

// `set({series, labels, about})` draws: `series` are {name, kind, values}, `labels` one for each value, and `about` says in
// a sentence what there is to see. As lines, or as bars that stand on each other. `write`: how a value is written.
export function chart(title, {write = number, bars = false, height = 170, ticks = 6} = {}) {
  const legend = el("ul", {class: "legend", "aria-hidden": "true"});
  const picture = svg("svg", {role: "img", height});
  const place = el("div", {class: "plot"}, picture);
  const behind = el("details", {class: "behind"}, el("summary", {}, "As a table"));
  let series = [], labels = [], shown = null;

  const last = () => labels.length - 1;
  const show = (n) => {
    shown = n;
    const at = n ?? last();
    legend.replaceChildren(
      ...series.map((one) => el("li", {class: one.kind}, `${one.name} `, el("b", {}, write(one.values[at] ?? null)))),
      el("li", {class: "when"}, labels[at] ?? ""));
  };

  function draw() {
    const sums = labels.map((_, n) => series.reduce((sum, one) => sum + (one.values[n] ?? 0), 0));
    const most = Math.max(...(bars ? sums : series.flatMap((one) => one.values.map((value) => value ?? 0))), 0) || 1;
    const size = step(most), top = Math.ceil(most / size) * size;
    const width = Math.max(place.clientWidth, 200), inner = width - LEFT - 4, tall = height - TOP - BOTTOM;
    const slot = inner / Math.max(labels.length, 1);
    const y = (value) => TOP + tall - (value / top) * tall;
    const x = (n) => LEFT + (bars ? (n + 0.5) * slot : (n / Math.max(last(), 1)) * inner);
    picture.setAttribute("width", width);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren();
    for (let value = 0; value <= top + size / 2; value += size) {
      picture.append(svg("line", {class: "grid", x1: LEFT, x2: width - 4, y1: y(value), y2: y(value)}),
        svg("text", {x: LEFT - 6, y: y(value) + 4, "text-anchor": "end"}, write(Number(value.toPrecision(6)))));
    }
    const every = Math.max(1, Math.ceil(labels.length / Math.max(2, Math.min(ticks, Math.floor(inner / 74)))));
    for (let n = last(); n >= 0; n -= every) {
      const anchor = x(n) + 26 > width ? "end" : x(n) - 26 < LEFT ? "start" : "middle";
      picture.append(svg("text", {x: anchor === "end" ? width - 2 : x(n), y: height - 4, "text-anchor": anchor}, labels[n]));
    }
    for (const marks of bars ? barsOf(series, labels, x, y, slot) : series.map((one) => lineOf(one, x, y))) picture.append(marks);
    const cross = svg("line", {class: "cross", y1: TOP, y2: TOP + tall});
    const point = (n) => {
      for (const end of ["x1", "x2"]) cross.setAttribute(end, n === null ? -9 : x(n));
      show(n);
    };
    picture.append(cross);
    point(shown !== null && shown <= last() ? shown : null);
    picture.onpointermove = (event) => {
      const at = event.clientX - picture.getBoundingClientRect().left - LEFT;
      point(Math.min(last(), Math.max(0, bars ? Math.floor(at / slot) : Math.round((at / inner) * last()))));
    };
    picture.onpointerleave = () => point(null);
  }

  function drawTable() {
    if (!behind.open || behind.contains(document.activeElement) && behind.children.length > 1 && document.activeElement !== behind.firstChild) return;
    const rows = labels.map((label, n) => [label, ...series.map((one) => write(one.values[n] ?? null))]).reverse();
    behind.replaceChildren(behind.firstChild, table(title, [["When", ""], ...series.map((one) => [one.name, "number"])], rows));
  }

  new ResizeObserver(() => { if (place.isConnected && labels.length) draw(); }).observe(place);
  behind.addEventListener("toggle", drawTable);
  return {
    figure: el("figure", {}, el("figcaption", {}, title), legend, place, behind),
    set(data) {
      ({series, labels} = data);
      picture.setAttribute("aria-label", `${title}. ${data.about ?? ""}`);
      if (place.isConnected) draw();
      drawTable();
    },
  };
}

function barsOf(series, labels, x, y, slot) {
  const gap = slot > 6 ? 2 : slot > 3 ? 1 : 0, width = Math.max(1, slot - gap);
  return labels.flatMap((_, n) => {
    let below = 0;
    return series.filter((one) => one.values[n]).map((one) => {
      const tall = Math.max(1, y(below) - y(below + one.values[n])), top = y(below) - tall;
      below += one.values[n];
      return svg("rect", {class: one.kind, x: x(n) - width / 2, width, y: top, height: tall, rx: gap ? 1.5 : 0});
    });
  });
}

// With a gap where nothing is known.
function lineOf({values, kind}, x, y) {
  let open = false;
  const path = values.map((value, n) => {
    const known = value !== null && value !== undefined;
    const part = known ? `${open ? "L" : "M"}${x(n).toFixed(1)} ${y(value).toFixed(1)}${open ? "" : "h0.01"}` : "";
    open = known;
    return part;
  });
  return svg("path", {class: `line ${kind}`, d: path.join("")});
}

// A line as high as a letter or two: how it went, without numbers.
export function spark(label, series, width = 120, height = 26) {
  const most = Math.max(...series.flatMap((one) => one.values.map((value) => value ?? 0))) || 1;
  const count = Math.max(...series.map((one) => one.values.length), 2);
  const picture = svg("svg", {role: "img", "aria-label": label, width, height, class: "spark"});
  picture.append(...series.map((one) => lineOf(one, (n) => 1 + (n / (count - 1)) * (width - 2), (value) => height - 2 - (value / most) * (height - 4))));
  return picture;
}
