// Plans and policies: what holds, from which file, what a reload would change, and what a shadow would have refused.

import {ask, button, card, dialog, el, field, number, pill, query, say, searched, seg, session, table, trouble} from "./page.js";

export async function plans(main) {
  const config = el("div"), changes = el("div", {"aria-live": "polite"}), list = el("div"), more = el("div", {class: "buttons"}), policies = el("div");
  main.append(el("h1", {tabindex: "-1"}, "Plans and policies"));
  if (session.has.admin) main.append(card("Configuration", config, changes));
  main.append(card("Plans", list, more), card("Policies", policies));
  const drawn = [drawPlans(list, more), drawPolicies(policies)];
  if (session.has.admin) drawn.push(drawConfig(config, changes, () => drawPolicies(policies)));
  for (const {reason} of await Promise.allSettled(drawn)) if (reason) trouble(reason);
}

// The file, and what a reload would do.

async function drawConfig(place, changes, reloaded) {
  const {configuration, store} = await ask("GET", "live");
  const preview = async () => { changes.replaceChildren(shown(await ask("GET", "admin/reload"), "A reload would change nothing.")); };
  const reload = async () => {
    const would = await ask("GET", "admin/reload");
    if (!await dialog("Reload the configuration?", shown(would, "Nothing would change."), {action: "Reload"})) return;
    const {changed} = await ask("POST", "admin/reload");
    changes.replaceChildren();
    say(changed.length ? `Reloaded: ${changed.join(", ")}.` : "Nothing has changed.");
    await Promise.all([drawConfig(place, changes, reloaded), reloaded()]);
  };
  place.replaceChildren(
    el("p", {}, configuration.file === null ? "No file: from the command line and the environment" : ["From ", el("code", {}, configuration.file)],
      ", counting in ", el("code", {}, store), ". ",
      configuration.state === "as read" ? "" : pill("the last reload was refused: the last good one holds", "bad")),
    el("div", {class: "buttons"}, button("What would a reload change?", preview, {operator: false}), button("Reload…", reload)));
}

function shown({changed, restart, settings}, nothing) {
  if (!changed.length && !restart.length) return el("p", {}, nothing);
  const text = (value) => (value === null ? el("i", {}, "not there") : el("pre", {}, typeof value === "string" ? value : JSON.stringify(value, null, 1)));
  return table("What would change", [["Setting", ""], ["Now", ""], ["Then", ""]], [...changed, ...restart].map((name) => [
    el("span", {}, el("b", {}, name), " ", restart.includes(name) ? pill("takes a restart", "warn") : ""),
    ...differing(settings[name] ?? {now: null, then: null}).map(text)]));
}

// Of two policies, only the settings in which they differ.
function differing({now, then}) {
  if (!isTable(now) || !isTable(then)) return [now, then];
  const names = Object.keys({...now, ...then}).filter((name) => JSON.stringify(now[name]) !== JSON.stringify(then[name]));
  return [now, then].map((side) => Object.fromEntries(names.map((name) => [name, side[name] ?? null])));
}
const isTable = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

// Plans.

async function drawPlans(place, more, found = [], cursor = null) {
  const page = await ask("GET", `v1/plans${query({limit: 100, cursor})}`);
  const all = [...found, ...page.plans];
  const again = () => drawPlans(place, more);
  place.replaceChildren(
    session.has.directory ? "" : el("p", {class: "notice"}, "directory is off in the configuration: plans are stored, and take no effect."),
    table("Plans", [["Plan", ""], ["Quotas", ""], ["", "acts"]], all.map((plan) => [
      el("b", {}, plan.name), lines(plan.quotas).join("\n") || "as the policies say",
      el("div", {class: "buttons"}, button("Change…", () => edit(plan, again), {label: `Change ${plan.name}`}), button("Delete…", () => remove(plan, again), {label: `Delete ${plan.name}`})),
    ]), "There is no plan."));
  more.replaceChildren(button("New plan…", () => edit(null, again)), page.cursor === null ? "" : button("More plans", () => drawPlans(place, more, all, page.cursor), {operator: false}));
}

const lines = (quotas) => Object.entries(quotas).map(([action, quota]) => `${action}: ${quota}`);

async function edit(plan, done) {
  const name = el("input", {type: "text", maxlength: "64", required: true, value: plan?.name ?? "", disabled: plan !== null});
  const text = el("textarea", {rows: "5", spellcheck: "false", placeholder: "hint: 50/day\nrun: 100/hour; 1000/day"});
  text.value = lines(plan?.quotas ?? {}).join("\n");
  const said = await dialog(plan ? `Change ${plan.name}` : "A new plan",
    el("div", {}, field("Name", name), field("Quotas, an action a line", text, "What it does not name is left to the policies.")), {read: () => ({name: name.value.trim(), text: text.value})});
  if (said === null) return;
  const quotas = Object.fromEntries(said.text.split("\n").filter((line) => line.trim()).map((line) => {
    const at = line.lastIndexOf(":");
    if (at < 1) throw new Error(`“${line}” has no quota: write “action: 50/day”.`);
    return [line.slice(0, at).trim(), line.slice(at + 1).trim()];
  }));
  await ask("PUT", `v1/plans/${seg(said.name)}`, {quotas});
  say(`The plan ${said.name} was saved; it holds everywhere within 30 s.`);
  await done();
}

async function remove(plan, done) {
  const {users} = await ask("GET", `v1/users${query({plan: plan.name, limit: 10})}`);
  const who = users.length ? `${users.length > 9 ? "Ten users or more have" : `${users.map(({id}) => id).join(", ")} ${users.length > 1 ? "have" : "has"}`} it: the policies’ own quotas hold for them then.` : "Nobody has it.";
  if (!await dialog(`Delete the plan ${plan.name}?`, el("p", {}, who), {action: "Delete", danger: true})) return;
  await ask("DELETE", `v1/plans/${seg(plan.name)}`);
  say(`The plan ${plan.name} is gone.`);
  await done();
}

// Policies.

async function drawPolicies(place) {
  const [{policies}, live] = await Promise.all([ask("GET", "v1/policies"), ask("GET", "live")]);
  const names = Object.keys(policies), counted = new Map(live.policies.map((one) => [one.name, one.totals]));
  await searched(place, names, `Find one of ${number(names.length)}`, (wanted) => table("Policies", [["Policy", ""], ["Quotas", ""], ["Matches", ""], ["Algorithm", ""], ["In the shadow", ""], ["More", ""]], wanted.map((name) => {
    const one = policies[name];
    return [
      el("span", {}, el("b", {}, name), " ", one.mode === "shadow" ? pill("shadow", "warn") : ""),
      [one.quotas].flat().join("; "), [one.match].flat().filter(Boolean).join(", ") || "asked by name", one.algorithm, shadow(one, counted.get(name)),
      el("details", {}, el("summary", {}, "All settings"), el("pre", {}, JSON.stringify(one, null, 1))),
    ];
  }), "No policy is named like that."))();
}

// How many it would have refused, of those that it saw.
function shadow(policy, totals) {
  if (policy.mode !== "shadow") return "–";
  if (!totals) return "not counted lately";
  const all = totals.allowed + totals.denied + totals.shadow_denied + totals.unavailable;
  if (!all) return "no checks yet";
  return `would have refused ${number(totals.shadow_denied)} of ${number(all)} (${Math.round((totals.shadow_denied / all) * 1000) / 10} %)`;
}
