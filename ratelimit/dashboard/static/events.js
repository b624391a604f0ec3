// A list of events that can be filtered and goes on page by page: of a user, or of everybody.

import {ask, button, card, el, field, number, options, pill, query, say, seg, table, trouble, utc} from "./page.js";

const PAGE = 50, MAX_PAGES = 5;

// `path`: where they are asked for; `actions`: what to choose from; `fixed`: the one action that it is about.
export function eventList({path, actions = [], users = false}) {
  const action = options(el("select"), [["", "All actions"], ...actions.map((name) => [name, name])], "");
  const outcome = options(el("select"), [["", "All outcomes"], ["true", "Allowed"], ["false", "Refused"]], "");
  const status = el("input", {type: "text", inputmode: "numeric", pattern: "[1-5][0-9][0-9]", size: "5", placeholder: "429"});
  const resource = el("input", {type: "text", size: "16", maxlength: "200"});
  const since = el("input", {type: "datetime-local"}), until = el("input", {type: "datetime-local"});
  const place = el("div", {"aria-busy": "false"}), more = el("div", {class: "buttons"});
  let events = [], cursor = null, turn = 0;

  const filters = () => ({
    action: users ? "" : action.value, allowed: outcome.value, status: status.value.trim(), resource: resource.value,
    since: since.value && `${since.value}Z`, until: until.value && `${until.value}Z`,
  });

  function draw() {
    const columns = [["Time (UTC)", "time"], users ? ["User", ""] : ["Action", ""], ["Outcome", ""], ["Cost", "number"],
      ["Status", "number"], ["Took", "number"], ["Resource", ""], ["More", ""]];
    place.replaceChildren(table("Events, newest first", columns, events.map(row), "No event is like that."));
    more.replaceChildren(cursor === null ? "" : button("Older events", () => read(false), {operator: false}));
  }

  const row = (event) => [
    utc(event.time),
    users ? el("a", {href: `#/users/${encodeURIComponent(event.user)}`}, event.user) : event.action,
    event.allowed ? pill("allowed", "good") : pill("refused", "bad"),
    number(event.cost), event.status ?? "–", event.duration === null ? "–" : `${number(event.duration)} ms`,
    event.resource ?? "–", details(event),
  ];

  function details(event) {
    const metadata = Object.keys(event.metadata).length ? JSON.stringify(event.metadata, null, 2) : "";
    const said = [`id ${event.id}`, event.request_id && `request ${event.request_id}`, metadata].filter(Boolean).join("\n");
    return el("details", {}, el("summary", {}, metadata ? "Details" : "Id"), el("pre", {}, said));
  }

  async function read(anew, said = true) {
    const mine = ++turn;
    let found = anew ? [] : [...events], next = anew ? null : cursor;
    place.setAttribute("aria-busy", "true");
    try {
      // A page may be short, or empty, where many events had to be read to find it.
      const enough = found.length + PAGE;
      for (let n = 0; n < MAX_PAGES && found.length < enough && (n === 0 || next !== null); n++) {
        const page = await ask("GET", path() + query({...filters(), limit: PAGE, cursor: next}));
        if (mine !== turn) return;
        found.push(...page.events);
        next = page.cursor;
      }
      [events, cursor] = [found, next];
      if (said) say(`${events.length} events are shown${cursor === null ? "" : "; there are more"}.`);
    } finally { if (mine === turn) place.setAttribute("aria-busy", "false"); }
    draw();
  }

  const form = el("form", {class: "filters", onsubmit: (event) => { event.preventDefault(); read(true).catch(trouble); }},
    users ? null : field("Action", action), field("Outcome", outcome), field("Status", status), field("Resource", resource),
    field("From (UTC)", since), field("Before (UTC)", until),
    el("div", {class: "buttons"}, el("button", {type: "submit", class: "primary"}, "Filter"),
      el("button", {type: "reset", onclick: () => setTimeout(() => read(true).catch(trouble))}, "Clear")));
  return {form, place, more, read};
}

// What all users did, newest first: of the actions that have a timeline.
export async function activity(main, [chosen]) {
  main.append(el("h1", {tabindex: "-1"}, "Activity"));
  const {policies} = await ask("GET", "v1/policies");
  const actions = Object.keys(policies).filter((name) => policies[name].timeline);
  if (!actions.length) {
    main.append(card("Everybody’s events", el("p", {class: "empty"}, "No action has a timeline: say timeline = true in its policy, and its events of all users are listed here. A user’s own are under Users.")));
    return;
  }
  const action = options(el("select"), actions.map((name) => [name, name]), actions.includes(chosen) ? chosen : actions[0]);
  const events = eventList({path: () => `v1/actions/${seg(action.value)}/timeline`, users: true});
  main.append(card("Everybody’s events", el("div", {class: "filters"}, field("Action", action)), events.form, events.place, events.more));
  action.addEventListener("change", () => events.read(true).catch(trouble));
  await events.read(true, false);
}
