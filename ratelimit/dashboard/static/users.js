// A user: quotas as they stand, plan and overrides, what was used, every event, and the buttons.

import {ask, button, card, dialog, el, field, meter, number, options, pill, query, say, searched, seg, session, span, table, trouble} from "./page.js";
import {chart} from "./charts.js";
import {eventList} from "./events.js";

const SOON = "here from now on, elsewhere within 30 s";
const KINDS = ["c1", "c2", "c3", "c4", "c5"];

// Who is there.

export async function users(main, [user]) {
  if (user !== undefined) return one(main, user);
  const name = el("input", {type: "search", name: "user", autocomplete: "off", spellcheck: "false", required: true});
  const plan = el("select");
  const place = el("div"), more = el("div", {class: "buttons"});
  let found = [], cursor = null;

  async function search(event) {
    event.preventDefault();
    const text = name.value.trim();
    const identity = text.startsWith("email:") || text.startsWith("api_key:") ? text : text.includes("@") ? `email:${text}` : null;
    let id = text;
    if (identity) {
      const {users: [owner]} = await ask("GET", `v1/users${query({identity})}`);
      if (owner) id = owner.id;
      else if (identity === text) { say("Nobody has this identity."); return place.replaceChildren(el("p", {class: "empty"}, "Nobody has this identity.")); }
    }
    location.hash = `#/users/${seg(id)}`;
  }

  async function list(anew) {
    if (anew) found = [], cursor = null;
    const page = await ask("GET", `v1/users${query({plan: plan.value, limit: 100, cursor})}`);
    found.push(...page.users);
    cursor = page.cursor;
    place.replaceChildren(table("Users of the directory", [["User", ""], ["Plan", ""], ["Role", ""], ["Overrides", ""], ["State", ""]], found.map((each) => [
      el("a", {href: `#/users/${seg(each.id)}`}, each.id), each.plan ?? "–", each.role,
      Object.entries(each.quotas).map(([action, quota]) => `${action}: ${quota}`).join(", ") || "–",
      each.active ? "active" : pill("inactive", "bad"),
    ]), "No user has an entry. Who has none is still limited by the policies: look them up by their id."));
    more.replaceChildren(cursor === null ? "" : button("More users", () => list(false), {operator: false}));
  }

  main.append(
    el("h1", {tabindex: "-1"}, "Users"),
    card("Look somebody up",
      el("form", {class: "filters", onsubmit: (event) => search(event).catch(trouble)},
        field("User", name, "An id as it is limited by, an e-mail address, or api_key: and a digest."),
        el("div", {class: "buttons"}, el("button", {type: "submit", class: "primary"}, "Open")))),
    card("In the directory", el("div", {class: "filters"}, field("Plan", plan)), place, more));
  plan.addEventListener("change", () => list(true).catch(trouble));
  const plans = await ask("GET", "v1/plans?limit=1000");
  options(plan, [["", "Any"], ...plans.plans.map(({name: each}) => [each, each])], "");
  await list(true);
}

// One of them.

async function one(main, user) {
  const state = {user, entry: null, plans: [], policies: {}, missing: false, days: {}};
  const about = el("div", {class: "pills"}), quotas = el("div"), entry = el("div"), totals = el("div", {class: "pair"});
  const events = eventList({path: () => `v1/users/${seg(user)}/usage/events`, actions: []});
  main.append(
    el("p", {class: "path"}, el("a", {href: "#/users"}, "Users"), " / "),
    el("h1", {tabindex: "-1", class: "name"}, user), about,
    card("Quotas", quotas), card("Plan and overrides", entry), card("Used", totals),
    card("Events", events.form, events.place, events.more), danger(user));
  const again = async () => { await read(state); drawAbout(about, state); drawEntry(entry, state, again); await drawQuotas(quotas, state, again); };
  const actions = events.form.querySelector("select");
  await Promise.allSettled([
    again().catch(trouble),
    drawTotals(totals, state).catch(trouble),
    events.read(true, false).catch(trouble),
  ]);
  const known = [...new Set([...Object.keys(state.policies), ...Object.keys(state.days), "ratelimit.admin"])];
  options(actions, [["", "All actions"], ...known.map((name) => [name, name])], actions.value);
}

async function read(state) {
  const [{users: [found = null]}, plans, policies] = await Promise.all([
    ask("GET", `v1/users${query({id: state.user})}`), ask("GET", "v1/plans?limit=1000"), ask("GET", "v1/policies")]);
  Object.assign(state, {entry: found, plans: plans.plans, policies: policies.policies});
  state.missing = Boolean(found?.plan) && !plans.plans.some(({name}) => name === found.plan);
}

function drawAbout(place, {entry, missing}) {
  place.replaceChildren(...(entry === null
    ? [pill("no entry in the directory"), el("span", {class: "hint"}, "The policies’ own quotas hold.")]
    : [pill(entry.plan === null ? "no plan" : `plan ${entry.plan}`, missing ? "bad" : ""), pill(`role ${entry.role}`),
      pill(entry.active ? "active" : "inactive", entry.active ? "good" : "bad"), ...entry.identities.map((each) => pill(each)),
      missing && el("p", {class: "notice", role: "alert"}, `There is no plan ${entry.plan} any more: the policies’ own quotas hold.`)]
  ).filter(Boolean));
}

// Quotas.

async function drawQuotas(place, state, again) {
  const {policies, user} = state;
  const used = Object.keys(state.days);
  const names = [...new Set([...used.filter((name) => name in policies), ...Object.keys(state.entry?.quotas ?? {}), ...Object.keys(policies)])];
  const draw = searched(place, names, "Find an action", async (wanted) => {
    const rows = await Promise.all(wanted.map((name) => rowsOf(name).catch((error) => [failed(name, error)])));
    return table(`Quotas of ${user}`, [["Action", ""], ["Quota", ""], ["Used", ""], ["Remaining", "number"], ["Full again in", "number"], ["", "acts"]], rows.flat(), "No policy is named like that.");
  });

  async function rowsOf(action) {
    const decision = await ask("POST", "v1/peek", {user, action});
    const marks = [policies[action]?.mode === "shadow" && pill("shadow", "warn"), action in (state.entry?.quotas ?? {}) && pill("override")];
    const name = el("span", {}, el("b", {}, action), " ", ...marks.filter(Boolean));
    const acts = el("div", {class: "buttons"}, ...[
      button("Reset", () => reset(action), {label: `Reset ${action}`}),
      button("Refund…", () => refund(action), {label: `Refund ${action}`}),
      button("Override…", () => override(state, action, again), {label: `Override ${action}`}),
    ]);
    if (!decision.quotas.length) return [[name, decision.reason === "inactive" ? "inactive" : "unlimited", "–", "–", "–", acts]];
    return decision.quotas.map((each, n) => [
      n ? "" : name, each.quota,
      el("div", {class: "used"}, meter(each.used, each.limit, `${each.used} of ${each.limit} used`), `${number(each.used)} / ${number(each.limit)}`),
      number(each.remaining), each.used ? span(each.reset_after) : "–", n ? "" : acts,
    ]);
  }

  const failed = (name, error) => [name, error.message, "–", "–", "–", ""];

  async function reset(action) {
    if (!await dialog(`Reset ${action}?`, el("p", {}, `What ${user} has used of ${action} is forgotten; totals and events stay.`), {action: "Reset"})) return;
    await ask("POST", "v1/reset", {user, action});
    say(`${action} of ${user} was reset.`);
    await draw();
  }

  async function refund(action) {
    const units = el("input", {type: "number", min: "1", step: "1", value: "1", required: true});
    const cost = await dialog(`Give units of ${action} back`, field("Units", units, "At most what is used now is given back."), {action: "Refund", read: () => units.valueAsNumber});
    if (!cost) return;
    await ask("POST", "v1/refund", {user, action, cost});
    say(`${cost} of ${action} were given back to ${user}.`);
    await draw();
  }

  await draw();
}

async function override(state, action, done) {
  const before = state.entry?.quotas[action] ?? "";
  const text = el("input", {type: "text", value: before, placeholder: "100/hour; 1000/day", spellcheck: "false"});
  const quota = await dialog(`Quotas of ${action} for ${state.user}`,
    field("Quotas", text, "As in 5/day, or 100/hour; 1000/day, or unlimited. Empty: as the plan or the policy says."), {read: () => text.value.trim()});
  if (quota === null || quota === before) return;
  await change(state, {quotas: {[action]: quota || null}});
  say(`${action} of ${state.user} is ${quota || "as the plan or the policy says"}: ${SOON}.`);
  await done();
}

// Plan, role, overrides.

// Who has no entry yet gets one.
async function change(state, patch) {
  const path = `v1/users/${seg(state.user)}`;
  if (state.entry !== null) return ask("PATCH", path, patch);
  const quotas = Object.fromEntries(Object.entries(patch.quotas ?? {}).filter(([, quota]) => quota !== null));
  return ask("PUT", path, {...patch, ...(patch.quotas && {quotas})});
}

function drawEntry(place, state, again) {
  const {entry, plans, missing} = state;
  const denied = session.role !== "operator";
  const names = plans.map(({name}) => [name, name]);
  const plan = options(el("select", {disabled: denied}), [["", "None"], ...(missing ? [[entry.plan, `${entry.plan} (gone)`]] : []), ...names], entry?.plan ?? "");
  const role = options(el("select", {disabled: denied}), ["user", "admin"].map((each) => [each, each]), entry?.role ?? "user");
  const active = options(el("select", {disabled: denied}), [["yes", "Active"], ["no", "Inactive: everything is refused"]], entry?.active === false ? "no" : "yes");
  const save = async () => {
    const patch = {};
    if ((plan.value || null) !== (entry?.plan ?? null)) patch.plan = plan.value || null;
    if (role.value !== (entry?.role ?? "user")) patch.role = role.value;
    if ((active.value === "yes") !== (entry?.active ?? true)) patch.active = active.value === "yes";
    if (!Object.keys(patch).length) return say("Nothing has changed.");
    await change(state, patch);
    say(`${state.user} was changed: ${SOON}.`);
    await again();
  };
  const overrides = Object.entries(entry?.quotas ?? {}).map(([action, quota]) => [action, quota,
    el("div", {class: "buttons"},
      button("Change…", () => override(state, action, again), {label: `Change the override of ${action}`}),
      button("Remove", async () => { await change(state, {quotas: {[action]: null}}); say(`The override of ${action} is gone.`); await again(); }, {label: `Remove the override of ${action}`}))]);
  place.replaceChildren(
    session.has.directory ? "" : el("p", {class: "notice"}, "directory is off in the configuration: plans and overrides are stored, and take no effect."),
    el("div", {class: "filters"}, field("Plan", plan), field("Role", role), field("State", active), el("div", {class: "buttons"}, button("Save", save, {kind: "primary"}))),
    table("Overrides", [["Action", ""], ["Quotas", ""], ["", "acts"]], overrides, "No overrides: plan and policies hold."));
}

// Totals.

async function drawTotals(place, state) {
  const path = `v1/users/${seg(state.user)}/usage/totals`;
  const [days, months] = await Promise.all(["day", "month"].map((per) => ask("GET", `${path}?per=${per}`)));
  state.days = days.totals;
  const today = new Date(Date.now() + session.skew * 1000);
  const lastDays = Array.from({length: 35}, (_, n) => new Date(today - (34 - n) * 864e5).toISOString().slice(0, 10));
  const lastMonths = Array.from({length: 13}, (_, n) => new Date(Date.UTC(today.getUTCFullYear(), today.getUTCMonth() - 12 + n, 1)).toISOString().slice(0, 10));
  place.replaceChildren(
    stacked("Units a day, 35 days", days.totals, lastDays, (day) => day.slice(5)),
    stacked("Units a month, 13 months", months.totals, lastMonths, (day) => day.slice(0, 7)));
}

// The actions used most, the others together.
function stacked(title, totals, keys, label) {
  const sum = (action) => keys.reduce((all, key) => all + (totals[action][key] ?? 0), 0);
  const actions = Object.keys(totals).filter(sum).sort((a, b) => sum(b) - sum(a));
  const values = (names) => keys.map((key) => names.reduce((all, name) => all + (totals[name][key] ?? 0), 0));
  const most = actions.length > KINDS.length ? KINDS.length - 1 : actions.length;
  const series = actions.slice(0, most).map((name, n) => ({name, kind: KINDS[n], values: values([name])}));
  if (actions.length > most) series.push({name: `${actions.length - most} others`, kind: "c5", values: values(actions.slice(most))});
  const all = values(actions).reduce((a, b) => a + b, 0);
  if (!series.length) series.push({name: "units", kind: "c1", values: keys.map(() => 0)});
  const drawn = chart(title, {bars: true});
  drawn.set({series, labels: keys.map(label), about: `${number(all)} units in all.`});
  return drawn.figure;
}

function danger(user) {
  const erase = async () => {
    const yes = await dialog(`Erase ${user}?`, el("p", {}, "Every trace goes: events, counters, the entry, identities. The whole table is read for it. This cannot be undone."),
      {action: "Erase", danger: true, typed: user});
    if (!yes) return;
    const {erased} = await ask("POST", `v1/users/${seg(user)}/erase`, {});
    say(`${number(erased)} items of ${user} were erased.`);
    location.hash = "#/users";
  };
  return card("Erase", el("p", {}, "Delete every trace of this user, as privacy law may ask for."), el("div", {class: "buttons"}, button("Erase…", erase, {kind: "danger"})));
}
