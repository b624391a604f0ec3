// What every view is made of: elements, requests, dialogs, and how things are written.
// Nothing that comes from the store is ever read as markup: elements are made one by one, and texts stay texts.

export const session = {csrf: "", role: "reader", name: "", has: {}, login: false, skew: 0};

// Elements.

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function card(title, ...children) {
  const id = `t${++ids}`;
  return el("section", {class: "card", "aria-labelledby": id}, el("h2", {id}, title), ...children);
}
let ids = 0;

// `columns`: [title, "number" | ""]; `rows`: arrays of texts or elements. Rows turn into blocks where there is no room.
export function table(caption, columns, rows, empty = "Nothing here.") {
  if (!rows.length) return el("p", {class: "empty"}, empty);
  const head = columns.map(([title, kind]) => el("th", {scope: "col", class: kind || null}, title || el("span", {class: "hidden"}, "Actions")));
  const body = rows.map((row) => el("tr", {}, row.map((cell, n) => {
    const [title, kind] = columns[n];
    return el("td", {class: [kind, cell === "–" && "none"].filter(Boolean).join(" ") || null, "data-title": title || null}, cell);
  })));
  return el("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": caption},
    el("table", {}, el("caption", {class: "hidden"}, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

export function field(label, control, hint = "") {
  control.id ||= `f${++ids}`;
  const note = hint && el("small", {id: `${control.id}h`}, hint);
  if (note) control.setAttribute("aria-describedby", note.id);
  return el("div", {class: "field"}, el("label", {for: control.id}, label), control, note || null);
}

export function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => el("option", {value, selected: value === chosen}, text)));
  return select;
}

// A list of `names` in `place`, AT_ONCE of them at a time, and those that are searched for: `draw` shows some of them.
// Returns what shows it, and shows it anew.
export function searched(place, names, label, draw) {
  const search = el("input", {type: "search"}), body = el("div"), more = el("div", {class: "buttons"});
  let shown = AT_ONCE;
  async function show() {
    const wanted = names.filter((name) => name.includes(search.value));
    body.replaceChildren(await draw(wanted.slice(0, shown)));
    more.replaceChildren(wanted.length <= shown ? "" : button(`${number(wanted.length - shown)} more`, () => { shown += AT_ONCE; return show(); }, {operator: false}));
  }
  search.addEventListener("input", () => { shown = AT_ONCE; show().catch(trouble); });
  place.replaceChildren(names.length > AT_ONCE ? field(label, search) : "", body, more);
  return show;
}
const AT_ONCE = 25;  // of quotas each is a read

export function button(text, act, {kind = "", label = null, operator = true} = {}) {
  const denied = operator && session.role !== "operator";
  let busy = false;  // and not disabled meanwhile, which would take the focus away
  return el("button", {
    type: "button", class: kind || null, "aria-label": label, disabled: denied,
    title: denied ? "You may look, and change nothing" : null,
    onclick: async () => {
      if (busy) return;
      busy = true;
      try { await act(); } catch (error) { trouble(error); } finally { busy = false; }
    },
  }, text);
}

export const pill = (text, kind = "") => el("span", {class: `pill ${kind}`}, text);

// How much of a quota is used, or, as a `bar`, how much something is beside the most.
export function meter(part, whole, label, bar = false) {
  const share = whole ? Math.min(1, part / whole) : 0;
  const kind = bar ? "" : share >= 1 ? "full" : share >= 0.8 ? "near" : "";
  const made = el("div", {class: `meter ${kind}`, role: "img", "aria-label": label}, el("div", {}));
  made.firstChild.style.width = `${share * 100}%`;
  return made;
}

// What is said.

export function say(text) { document.getElementById("said").replaceChildren(el("p", {}, text)); }

export function trouble(error) {
  const place = document.getElementById("trouble");
  const text = error instanceof Problem ? error.message : String(error?.message ?? error);
  if (place.textContent !== text) place.replaceChildren(text ? el("p", {}, text) : "");
}
export const calm = () => document.getElementById("trouble").replaceChildren();

// Requests.

export class Problem extends Error {
  constructor(status, title, detail) {
    super(status === 503 ? `${title}: ${detail.replace(/\.$/, "")}. What is shown may be old.` : detail || title);
    this.status = status;
  }
}

export async function ask(method, path, body, again = true) {
  const headers = method === "GET" ? {} : {"X-CSRF-Token": session.csrf};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {method, headers, body: body === undefined ? undefined : JSON.stringify(body)});
  } catch {
    throw new Problem(0, "No answer", "The service does not answer. What is shown may be old.");
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401 && path !== "session") window.dispatchEvent(new Event("left"));
  if (answer.status === 403 && again && method !== "GET" && /CSRF/.test(said.detail ?? "")) {
    await resume();  // another tab has begun another session
    return ask(method, path, body, false);
  }
  throw new Problem(answer.status, said.title ?? `Status ${answer.status}`, said.detail ?? "");
}

export async function resume() {
  const found = await ask("GET", "session");
  Object.assign(session, found, {skew: found.role === null ? 0 : found.now - Date.now() / 1000});
}

export const seg = encodeURIComponent;
export function query(values) {
  const said = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return said.length ? `?${new URLSearchParams(said)}` : "";
}

// A dialog that is answered with what `read` makes of it, or null. `typed`: what has to be typed first.
export function dialog(title, content, {action = "Save", danger = false, typed = null, read = () => true} = {}) {
  return new Promise((done) => {
    const confirm = el("input", {type: "text", autocomplete: "off", spellcheck: "false"});
    const go = el("button", {type: "submit", class: danger ? "danger" : "primary", disabled: typed !== null}, action);
    confirm.addEventListener("input", () => { go.disabled = confirm.value !== typed; });
    const id = `d${++ids}`;
    const box = el("dialog", {"aria-labelledby": id},
      el("form", {method: "dialog", onsubmit: () => { box.returnValue = "yes"; }},
        el("h2", {id}, title), content,
        typed === null ? null : field(`Type ${typed} to go on`, confirm),
        el("div", {class: "buttons"},
          el("button", {type: "button", onclick: () => box.close("")}, "Cancel"), go)));
    box.addEventListener("close", () => { const yes = box.returnValue === "yes"; box.remove(); done(yes ? read() : null); });
    document.body.append(box);
    box.showModal();
  });
}

// How things are written: English, UTC.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: 3});
const unknown = (value) => value === null || value === undefined;
export const number = (value) => (unknown(value) ? "–" : whole.format(value));
export const brief = (value) => (unknown(value) ? "–" : Math.abs(value) < 1000 ? String(Math.round(value * 100) / 100) : short.format(value));
export const rate = (value) => (unknown(value) ? "–" : `${brief(value)}/s`);
export const utc = (text) => text.replace("T", " ").replace(/(\.\d+)?(Z|\+00:00)$/, "");

export function span(seconds) {
  if (unknown(seconds)) return "never";
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return seconds > 0 ? "under 1 s" : "now";
  const [name, size] = units[first];
  const rest = units[first + 1];
  const more = rest && Math.floor((seconds % size) / rest[1]);
  return `${Math.floor(seconds / size)} ${name}${more ? ` ${more} ${rest[0]}` : ""}`;
}
