// The page: who looks at it, which view is open, and where they are.

import {ask, button, calm, el, field, resume, say, session, trouble} from "./page.js";
import {activity} from "./events.js";
import {cost, now, refused} from "./live.js";
import {plans} from "./plans.js";
import {users} from "./users.js";

// By the first part of the address behind the #; each fills `main`, and may return what ends it.
const VIEWS = {
  now: {title: "Now", show: now},
  refused: {title: "Refused", show: refused},
  users: {title: "Users", show: users},
  plans: {title: "Plans & policies", show: plans},
  cost: {title: "Cost", show: cost},
  activity: {title: "Activity", show: activity},
};

let end = null, turn = 0;

async function show() {
  const [name, ...rest] = location.hash.replace(/^#\//, "").split("/").map(decoded);
  const key = Object.hasOwn(VIEWS, name) ? name : "now", view = VIEWS[key];
  const mine = ++turn, main = document.getElementById("main");
  end?.();
  end = null;
  calm();
  drawNav(key);
  main.replaceChildren();
  document.title = `${rest[0] ?? view.title} · ratelimit`;
  try {
    const started = view.show(main, rest);
    main.querySelector("h1")?.focus({preventScroll: true});
    const stop = await started;
    if (mine === turn) end = stop ?? null; else stop?.();
  } catch (error) { if (mine === turn) trouble(error); }
}

function decoded(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

function drawNav(current) {
  const nav = document.getElementById("nav");
  nav.hidden = false;
  nav.replaceChildren(...Object.entries(VIEWS).map(([key, view]) =>
    el("a", {href: `#/${key}`, "aria-current": key === current ? "page" : null}, view.title)));
}

function drawViewer() {
  const place = document.getElementById("viewer");
  place.hidden = false;
  const role = session.role === "operator" ? "operator" : "read only";
  place.replaceChildren(
    el("span", {title: `ratelimit ${session.version}`}, session.name === role || session.name === session.role ? role : `${session.name} · ${role}`),
    session.login ? button("Log out", leave, {operator: false}) : "");
  if (Math.abs(session.skew) > 30) {
    const way = session.skew > 0 ? "behind" : "ahead of";
    trouble(new Error(`This device’s clock is ${Math.round(Math.abs(session.skew))} s ${way} the service’s: times here are the service’s, in UTC.`));
  }
}

async function leave() {
  await ask("DELETE", "session");
  logIn();
  say("Logged out.");
}

function logIn() {
  end?.();
  end = null;
  turn++;
  document.getElementById("nav").hidden = document.getElementById("viewer").hidden = true;
  const token = el("input", {type: "password", autocomplete: "current-password", required: true, spellcheck: "false"});
  const submit = async (event) => {
    event.preventDefault();
    calm();
    try { await ask("POST", "session", {token: token.value}); await start(); } catch (error) { trouble(error); token.select(); }
  };
  document.getElementById("main").replaceChildren(
    el("section", {class: "card login"},
      el("h1", {tabindex: "-1"}, "Log in"),
      el("form", {onsubmit: submit}, field("Token", token, "admin_token of the configuration, or admin_read_token to look only."),
        el("div", {class: "buttons"}, el("button", {type: "submit", class: "primary"}, "Log in")))));
  document.title = "Log in · ratelimit";
  token.focus();
}

async function start() {
  try { await resume(); } catch (error) { return trouble(error); }
  if (session.role === null) return logIn();
  calm();
  const shown = show();
  drawViewer();
  await shown;
}

window.addEventListener("hashchange", show);
// What stands behind the # is the view.
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); document.getElementById("main").focus(); });
window.addEventListener("left", () => { logIn(); trouble(new Error("The session is over: log in again.")); });
start();
