// What all users did, newest first: of the actions that have a timeline.

import {ask, card, el, field, options, seg, trouble} from "./page.js";
import {eventList} from "./events.js";

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
