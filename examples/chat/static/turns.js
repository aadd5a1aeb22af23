// Turns: how what was said looks.

import { button, element, pretty, visible } from "./page.js";

export const wordsOf = (item) =>
  (item.content ?? [])
    .map((part) => part.text ?? part.refusal ?? `[${part.type}]`)
    .filter(Boolean)
    .join("\n");

const isOutput = (item) => String(item.type).endsWith("_output");

// Who spoke, for those who do not see it.
const speaker = (name) => element("h2", { class: "hidden", text: name });

export function said(item, { busy = false } = {}) {
  const text = element("div", { dir: "auto", text: wordsOf(item) });
  if (item.role === "user") text.className = "said mine";
  else text.className = busy ? "said answer busy" : "said answer";
  return [speaker(item.role === "user" ? "You" : "The agent"), text];
}

export function tool(call) {
  return element(
    "details",
    { class: "tool", "data-call": call.call_id },
    element("summary", { text: `${visible(call.name ?? call.type)} …` }),
    element("pre", { tabindex: "0", "aria-label": "What it was given", text: pretty(call.arguments ?? call.action ?? "") }),
  );
}

export function finish(details, output) {
  const summary = details.firstChild;
  summary.textContent = summary.textContent.replace(/ …$/, "");
  details.append(element("pre", { tabindex: "0", "aria-label": "What it gave back", text: pretty(output.output) }));
}

const reasoning = (item) =>
  element("details", { class: "tool" }, element("summary", { text: "Reasoning" }),
    element("div", { class: "said", dir: "auto", text: item.summary.map((part) => part.text).join("\n\n") }));

// One item more of a turn. An output belongs into its call.
export function show(part, item) {
  if (item.role === "user" || item.role === "assistant") part.append(...said(item));
  else if (isOutput(item)) {
    const call = [...part.querySelectorAll("details.tool")].find((each) => each.dataset.call === item.call_id);
    if (call) finish(call, item);
  } else if (item.call_id) part.append(tool(item));
  else if (item.type === "reasoning" && item.summary?.length) part.append(reasoning(item));
}

// Versions of a turn are the branches that stood behind the same item, in the order in which they
// were made: the id of its first item stays with each.
function versionsOf(items, before, branches) {
  const number = (id) => Number(String(id).replace("item_", ""));
  return [
    ...branches.filter((branch) => branch.after === before).map(({ id, first }) => ({ id, first })),
    { id: null, first: items[0]?.id },
  ].sort((one, other) => number(one.first) - number(other.first));
}

// A turn as it is stored. `before` is the id of the item that it follows. One that is `shown` stays
// as it is, unless something waits in it: that is asked anew.
export function drawTurn(turn, items, { before, branches = [], shown, handlers }) {
  const versions = versionsOf(items, before, branches);
  const stored = JSON.stringify([turn, items.map((item) => item.id), versions]);
  if (shown.has(stored) && turn?.status !== "waiting") return shown.get(stored);
  const part = element("section", { class: "turn", "data-turn": turn?.number });
  part.stored = stored;
  for (const item of items) show(part, item);
  if (!turn) return part;
  const mine = items.filter((item) => item.role === "user");
  const bubbles = part.querySelectorAll(".mine");
  if (mine.length > 0) {
    const edit = button("Edit", () => handlers.edit(turn, mine, part), { class: "small" });
    [...bubbles].at(-1).after(element("div", { class: "tools of-mine" }, edit));
  }
  const tools = element("div", { class: "tools of-answer" });
  if (versions.length > 1) tools.append(...leaves(turn, versions, handlers));
  if (mine.length > 0) tools.append(button("Regenerate", () => handlers.regenerate(turn, mine), { class: "small" }));
  const facts = [];
  if (turn.usage.total_tokens) facts.push(`${turn.usage.total_tokens.toLocaleString()} tokens`);
  if (turn.status && turn.status !== "completed") facts.push(turn.status.replace("_", " "));
  if (facts.length > 0) tools.append(element("span", { class: "quiet", text: facts.join(" · ") }));
  part.append(tools);
  return part;
}

function leaves(turn, versions, handlers) {
  const at = versions.findIndex((version) => version.id === null);
  const leaf = (text, to, label) =>
    button(text, () => handlers.restore(versions[to].id, turn, label), {
      class: "small", "aria-label": label, disabled: !versions[to],
    });
  return [
    leaf("‹", at - 1, "Version before"),
    element("span", { class: "quiet", text: `${at + 1} / ${versions.length}` }),
    leaf("›", at + 1, "Version after"),
  ];
}

// The question of a tool that waits for somebody's yes.
export function approval({ name, arguments: given }, decide) {
  return element("div", { class: "approval", role: "group", "aria-label": `Approval of ${visible(name)}` },
    element("strong", { text: `${visible(name)} waits for your approval` }),
    element("pre", { tabindex: "0", "aria-label": "What it will be given", text: pretty(given) }),
    element("div", { class: "tools" },
      button("Approve", () => decide(true), { class: "primary" }), button("Decline", () => decide(false))),
  );
}
