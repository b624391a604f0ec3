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

// `series`: {name, kind, values}; `labels`: one for each value; `write`: how a value is written.
// As lines, or as bars that stand on each other. `about` says in a sentence what there is to see.
export function chart(title, {series, labels, write = number, bars = false, height = 170, about = "", ticks = 6}) {
  const legend = el("ul", {class: "legend", "aria-hidden": "true"});
  const place = el("div", {class: "plot"});
  const picture = svg("svg", {role: "img", "aria-label": `${title}. ${about}`, height});
  place.append(picture);
  const count = labels.length;
  const sums = labels.map((_, n) => series.reduce((sum, one) => sum + (one.values[n] ?? 0), 0));
  const most = Math.max(...(bars ? sums : series.flatMap((one) => one.values.map((value) => value ?? 0))), 0) || 1;
  const size = step(most), top = Math.ceil(most / size) * size;

  const show = (n) => {
    legend.replaceChildren(
      ...series.map((one) => el("li", {class: one.kind}, `${one.name} `, el("b", {}, write(one.values[n] ?? null)))),
      el("li", {class: "when"}, labels[n] ?? ""));
  };

  function draw() {
    const width = Math.max(place.clientWidth, 200), inner = width - LEFT - 4, tall = height - TOP - BOTTOM;
    const y = (value) => TOP + tall - (value / top) * tall;
    const slot = inner / Math.max(count, 1);
    const x = (n) => LEFT + (bars ? n * slot : (n / Math.max(count - 1, 1)) * inner);
    picture.setAttribute("width", width);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.replaceChildren();
    for (let value = 0; value <= top + size / 2; value += size) {
      picture.append(svg("line", {class: "grid", x1: LEFT, x2: width - 4, y1: y(value), y2: y(value)}),
        svg("text", {x: LEFT - 6, y: y(value) + 4, "text-anchor": "end"}, write(value)));
    }
    const every = Math.max(1, Math.ceil(count / Math.max(2, Math.min(ticks, Math.floor(inner / 74)))));
    for (let n = count - 1; n >= 0; n -= every) {
      const middle = bars ? x(n) + slot / 2 : x(n);
      const anchor = middle + 24 > width ? "end" : middle - 24 < LEFT ? "start" : "middle";
      picture.append(svg("text", {x: anchor === "end" ? width - 2 : middle, y: height - 4, "text-anchor": anchor}, labels[n]));
    }
    (bars ? drawBars : drawLines)(x, y, slot);
    const cross = svg("line", {class: "cross", y1: TOP, y2: TOP + tall, x1: -9, x2: -9});
    picture.append(cross);
    picture.onpointermove = (event) => {
      const at = event.clientX - picture.getBoundingClientRect().left - LEFT;
      const n = Math.min(count - 1, Math.max(0, bars ? Math.floor(at / slot) : Math.round((at / inner) * (count - 1))));
      const middle = bars ? x(n) + slot / 2 : x(n);
      cross.setAttribute("x1", middle);
      cross.setAttribute("x2", middle);
      show(n);
    };
    picture.onpointerleave = () => { cross.setAttribute("x1", -9); cross.setAttribute("x2", -9); show(count - 1); };
  }

  function drawBars(x, y, slot) {
    const gap = slot > 6 ? 2 : slot > 3 ? 1 : 0;
    labels.forEach((_, n) => {
      let below = 0;
      for (const one of series) {
        const value = one.values[n] ?? 0;
        if (!value) continue;
        const height = Math.max(1, y(below) - y(below + value));
        picture.append(svg("rect", {class: one.kind, x: x(n) + gap / 2, width: Math.max(1, slot - gap), y: y(below) - height, height, rx: gap ? 1.5 : 0}));
        below += value;
      }
    });
  }

  function drawLines(x, y) {
    for (const one of series) {
      let path = "", open = false;
      one.values.forEach((value, n) => {
        if (value !== null && value !== undefined) path += `${open ? "L" : "M"}${x(n).toFixed(1)} ${y(value).toFixed(1)}`;
        open = value !== null && value !== undefined;
      });
      if (path) picture.append(svg("path", {class: `line ${one.kind}`, d: path}));
    }
  }

  new ResizeObserver(() => { if (place.isConnected) draw(); }).observe(place);
  show(count - 1);
  const behind = el("details", {class: "behind"}, el("summary", {}, "As a table"));
  behind.addEventListener("toggle", () => {
    if (!behind.open || behind.children.length > 1) return;
    const rows = labels.map((label, n) => [label, ...series.map((one) => write(one.values[n] ?? null))]).reverse();
    behind.append(table(title, [["When", ""], ...series.map((one) => [one.name, "number"])], rows));
  });
  return el("figure", {}, el("figcaption", {}, title), legend, place, behind);
}
