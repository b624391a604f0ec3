// What goes on: the last minutes, who is refused and written most, and what it costs. Asked for again every few seconds.

import {ask, brief, button, calm, card, el, meter, number, pill, rate, seg, span, table, trouble, utc} from "./page.js";
import {chart, spark} from "./charts.js";

const OUTCOMES = [["allowed", "allowed"], ["denied", "refused"], ["shadow_denied", "would be refused"], ["unavailable", "unavailable"]];
const MAX_KEYS = 25;
const KINDS = {allowed: "allowed", denied: "denied", shadow_denied: "shadow", unavailable: "unavailable"};

// Ask until the view ends. What cannot be had for now leaves what is there, and is said.
async function follow(main, title, draw) {
  const when = el("span", {class: "hint"});
  let paused = false, timer = null, failed = false;
  const pause = button("Pause", () => { paused = !paused; pause.textContent = paused ? "Go on" : "Pause"; if (!paused) return tick(); }, {operator: false});
  const head = el("div", {class: "head"}, el("h1", {tabindex: "-1"}, title), when, pause);
  main.prepend(head);

  async function tick() {
    clearTimeout(timer);
    let next = 5;
    if (!paused && !document.hidden) {
      try {
        const live = await ask("GET", "live");
        next = live.interval_s;
        when.textContent = `as of ${utc(live.at).slice(11)} UTC`;
        if (failed) calm();
        failed = false;
        if (main.contains(head)) draw(live);
      } catch (error) { failed = true; trouble(error); }
    }
    if (main.contains(head)) timer = setTimeout(tick, next * 1000);
  }

  const back = () => { if (!document.hidden) tick(); };
  document.addEventListener("visibilitychange", back);
  await tick();
  return () => { clearTimeout(timer); document.removeEventListener("visibilitychange", back); };
}

// Not while somebody is in it: what has the focus would be gone.
function put(place, ...parts) { if (!place.contains(document.activeElement)) place.replaceChildren(...parts); }

const tile = (title, value, note = "") => el("li", {}, el("span", {}, title), el("b", {}, value), el("small", {}, note));
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;
const last = (values) => values.at(-1) ?? null;
const sum = (totals) => OUTCOMES.reduce((all, [key]) => all + totals[key], 0);
const share = (part, all) => (all ? `${Math.round((part / all) * 1000) / 10} %` : "–");

// Now.

export function now(main) {
  const checks = chart("Checks a second", {write: brief, height: 210, ticks: 10}), times = chart("Latency of a check, ms", {write: brief});
  const units = chart("Asked of DynamoDB, a second", {write: brief});
  const state = el("div", {class: "pills"}), tiles = el("ul", {class: "tiles"}), policies = el("div"), covers = el("div");
  const asked = el("section", {class: "card"}, units.figure);
  main.append(state, tiles, el("section", {class: "card"}, checks.figure),
    el("div", {class: "pair"}, el("section", {class: "card"}, times.figure), asked),
    card("Policies", policies), card("What this covers", covers));

  return follow(main, "Now", (live) => {
    const {series} = live, labels = labelsOf(live);
    const rates = OUTCOMES.map(([key]) => last(series[key]));
    const all = rates.reduce((a, b) => a + (b ?? 0), 0);
    const workers = Object.values(live.health.workers).filter((each) => each.status !== "silent");
    state.replaceChildren(
      pill(live.health.status, live.health.status === "ok" ? "good" : "bad"),
      ...[...new Set(workers.map((each) => each.store_state))].map((each) => pill(`store ${each}`, each === "ok" ? "good" : "bad")),
      ...[...new Set(workers.map((each) => each.breaker))].map((each) => pill(`breaker ${each.replace("_", " ")}`, each === "closed" ? "good" : "bad")),
      ...(live.covers.silent.length ? [pill(`${live.covers.silent.length} of ${live.covers.silent.length + live.covers.workers} workers do not answer`, "bad")] : []),
      ...(live.configuration.state === "as read" ? [] : [pill("the last reload was refused: the last good configuration holds", "bad")]));
    put(tiles,
      tile("Checks", rate(all), `${brief(sum(live.totals))} since ${utc(live.covers.since).slice(5, 16)}`),
      tile("Refused", rate(rates[1]), `${share(rates[1] ?? 0, all)} of them`),
      tile("Unavailable", rate(rates[3]), "answered by on_unavailable"),
      tile("p50", ms(last(series.p50_ms)), "of a check"), tile("p99", ms(last(series.p99_ms)), "of a check"),
      tile(live.units === "calls" ? "Write requests" : "Write units", live.units ? rate(last(series.writes)) : "–", live.units ? `reads ${rate(last(series.reads))}` : "nothing is asked of DynamoDB"),
      tile("Throttled", rate(last(series.throttles)), "requests"));
    checks.set({labels, about: `${rate(all)} now, of which ${rate(rates[1])} are refused.`,
      series: OUTCOMES.map(([key, name]) => ({name, kind: KINDS[key], values: series[key]}))});
    times.set({labels, about: `Half within ${ms(last(series.p50_ms))}, 99 of 100 within ${ms(last(series.p99_ms))}.`,
      series: [{name: "p50", kind: "c2", values: series.p50_ms}, {name: "p99", kind: "c4", values: series.p99_ms}]});
    asked.hidden = live.units === null;
    const what = live.units === "measured" ? "units" : "requests";
    units.set({labels, about: `${rate(last(series.writes))} writes.`, series: [
      {name: `write ${what}`, kind: "writes", values: series.writes}, {name: `read ${what}`, kind: "reads", values: series.reads},
      {name: "throttled", kind: "denied", values: series.throttles}]});
    drawPolicies(policies, live);
    drawCovers(covers, live);
  });
}

const ms = (value) => (value === null ? "–" : `${brief(value)} ms`);

function labelsOf({at, interval_s: every, series}) {
  const end = Math.floor(Date.parse(at) / 1000 / every) * every;
  return series.allowed.map((_, n, {length}) => new Date((end - (length - 1 - n) * every) * 1000).toISOString().slice(11, 19));
}

function drawPolicies(place, live) {
  const rows = live.policies.map((one) => {
    const rates = OUTCOMES.map(([key]) => last(one.series[key]) ?? 0), all = rates.reduce((a, b) => a + b, 0);
    const went = OUTCOMES.filter(([key]) => one.totals[key]).map(([key]) => ({kind: KINDS[key], values: one.series[key]}));
    return [
      el("span", {}, el("b", {}, one.name), " ", one.mode === "shadow" ? pill("shadow", "warn") : "", one.source === "envoy" ? pill("Envoy") : ""),
      one.quotas?.join("; ") ?? (one.source ? "as each call says" : "no policy any more"), rate(all), rate(rates[1]), rate(rates[2]), rate(rates[3]),
      went.length ? spark(`${one.name}: ${rate(all)} now`, went) : "–", number(sum(one.totals)),
    ];
  });
  put(place, table("Policies, the busiest first",
    [["Policy", ""], ["Quotas", ""], ["Checks", "number"], ["Refused", "number"], ["Would be refused", "number"], ["Unavailable", "number"], ["Last minutes", ""], ["Checks so far", "number"]],
    rows, "There is no policy."),
  live.policies_left_out ? el("p", {class: "hint"}, `${number(live.policies_left_out)} more, with fewer checks, are under Plans & policies.`) : "");
}

function drawCovers(place, live) {
  const rows = Object.entries(live.health.workers).map(([name, each]) => each.status === "silent"
    ? [name, pill("silent", "bad"), "–", "–", "–", "–", "–", "–"]
    : [name, pill(each.status, each.status === "ok" ? "good" : "bad"), span(each.uptime), `${each.store}: ${each.store_state}`, each.breaker,
      number(each.requests), each.usage === null ? "off" : `${number(each.usage.depth)} wait, ${number(each.usage.dropped)} lost`, each.configuration ?? "–"]);
  put(place,
    el("p", {}, `${sentence(live.covers.what)} Counted since ${utc(live.covers.since)} UTC, in `, el("code", {}, live.store), "."),
    table("Workers", [["Worker", ""], ["State", ""], ["Up", ""], ["Store", ""], ["Breaker", ""], ["Requests", "number"], ["Usage log", ""], ["Configuration", ""]], rows));
}

// Who is refused, and what is hot.

export function refused(main) {
  const note = el("p", {class: "hint"}), denied = el("div"), hot = el("div");
  main.append(note, el("div", {class: "pair"}, card("Refused most", denied), card("Written most", hot)));
  return follow(main, "Refused and hot keys", (live) => {
    note.textContent = `Of the last ${span(Math.max(live.keys_window_s, live.interval_s))}, counted in bounded memory: where two numbers stand, the truth is between them. It covers ${live.covers.what}.`;
    put(denied, keys("Users and actions refused most", "Refusals", live.refused, "count", "Nobody was refused."));
    put(hot, keys("Users and actions written most", live.hot_by === "checks" ? "Checks" : "Writes", live.hot, "writes", "Nothing was written."));
  });
}

function keys(caption, what, found, key, empty) {
  const most = Math.max(...found.map((one) => one[key]), 1);
  return table(caption, [["User", ""], ["Action", ""], [what, ""]], found.slice(0, MAX_KEYS).map((one) => [
    // What stands hashed in the table cannot be looked up by the hash.
    /^h:[\w-]{20,}$/.test(one.user) ? el("code", {}, one.user) : el("a", {href: `#/users/${seg(one.user)}`}, one.user), one.action,
    el("div", {class: "used"}, meter(one[key], most, number(one[key]), true), between(one[key] - one.error, one[key])),
  ]), empty);
}
const between = (least, most) => (least === most ? number(most) : `${number(least)} – ${number(most)}`);

// Cost.

export function cost(main) {
  const body = el("div");
  main.append(body);
  return follow(main, "Cost", ({cost: found, covers, units}) => {
    if (found === null) {
      const why = units === null ? "memory:// costs nothing." : "Nothing has been counted yet: look again in a minute.";
      return put(body, card("This month", el("p", {class: "empty"}, why)));
    }
    const most = Math.max(...found.month.map((line) => Number(line.dollars)), 0.01);
    const money = (text) => Number(text).toLocaleString("en", {style: "currency", currency: found.currency});
    put(body,
      el("ul", {class: "tiles"},
        tile("A month at this rate", money(found.total), `${found.region}, prices of ${found.as_of}`),
        tile("So far", money(found.so_far.dollars), `in ${span(found.seconds)}`),
        tile("Write units so far", number(found.so_far.writes)), tile("Read units so far", number(found.so_far.reads))),
      found.seconds < 600 ? el("p", {class: "notice"}, "Only minutes have been counted: the month may look quite different.") : "",
      card("A month by cause", table("Projected month", [["Cause", ""], ["Units", "number"], ["Share", ""], ["Dollars", "number"]], found.month.map((line) => [
        line.cause, number(line.units), meter(Number(line.dollars), most, `${line.dollars} dollars`, true), money(line.dollars)]))),
      el("p", {class: "hint"}, `${sentence(found.basis)} It covers ${covers.what}. ${found.measured ? "Units are DynamoDB’s own count." : "A call is taken for one unit; with consumed=true in the store’s URL DynamoDB counts them."} `,
        "Billed on demand, without taxes and free tier."));
  });
}
