// A chat page. Whatever a model, a tool or a user has said becomes text, never HTML: all of it goes
// through `element`, which knows only textContent.

import { Failure, allItems, answer, call, path } from "./api.js";

const $ = (id) => document.getElementById(id);

const state = {
  id: null, // of the conversation that is shown
  turns: [], // each {number, items, ...}
  branches: [],
  running: null, // the AbortController of an answer that is coming
  next: null, // where the next page of the list begins
};

function element(tag, { text, on = {}, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, handler] of Object.entries(on)) made.addEventListener(event, handler);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

const button = (text, handler, attributes = {}) =>
  element("button", { type: "button", text, on: { click: handler }, ...attributes });

function notice(message) {
  $("notice").textContent = message ?? "";
  $("notice").hidden = !message;
}

// Every failure is shown; nothing is left half done on the page, which shows what is stored.
async function attempt(action) {
  notice();
  try {
    return await action();
  } catch (error) {
    if (error.name !== "AbortError") notice(error instanceof Failure ? error.message : String(error));
    return undefined;
  }
}

// --- the list of conversations ------------------------------------------------------------------

async function list({ further = false } = {}) {
  const search = $("search").value.trim();
  const query = new URLSearchParams({ limit: "30" });
  if (search) query.set("search", search);
  if (further && state.next) query.set("after", state.next);
  const page = await call("GET", `?${query}`);
  if (search !== $("search").value.trim()) return; // an answer to an older question
  const rows = page.data.map(row);
  if (further) $("conversations").append(...rows);
  else $("conversations").replaceChildren(...rows);
  state.next = page.next;
  $("more").hidden = !page.next;
  $("none").hidden = $("conversations").children.length > 0;
  mark();
}

const nameOf = (conversation) => conversation.title || conversation.preview || "Without words";

function row(conversation) {
  const name = nameOf(conversation);
  return element(
    "li",
    { "data-id": conversation.id },
    button(name, () => go(conversation.id), { class: "open", dir: "auto", title: name }),
    button("✎", () => rename(conversation.id, name), { class: "icon", "aria-label": `Rename ${name}` }),
    button("🗑", () => remove(conversation.id, name), { class: "icon", "aria-label": `Delete ${name}` }),
  );
}

function mark() {
  for (const each of $("conversations").children) {
    const current = each.dataset.id === state.id;
    each.classList.toggle("current", current);
    each.firstChild.toggleAttribute("aria-current", current);
    if (current) $("title").textContent = each.firstChild.textContent;
  }
}

async function ask(text, { value, yes }) {
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask-value").hidden = value === undefined;
  $("ask-value").value = value ?? "";
  $("ask").returnValue = "";
  $("ask").showModal();
  if (value !== undefined) $("ask-value").select();
  await new Promise((closed) => $("ask").addEventListener("close", closed, { once: true }));
  return $("ask").returnValue === "yes" ? $("ask-value").value : null;
}

async function rename(id, name) {
  const title = await ask("What is it called?", { value: name, yes: "Rename" });
  if (title === null) return;
  await attempt(async () => {
    await call("POST", path(id), { title: title.trim() || null });
    await list();
  });
}

async function remove(id, name) {
  if ((await ask(`Delete “${name}”? It cannot be brought back.`, { yes: "Delete" })) === null) return;
  await attempt(async () => {
    await call("DELETE", path(id));
    forgetApprovals(id);
    if (id === state.id) go(null);
    await list();
  });
}

// --- one conversation ---------------------------------------------------------------------------

function go(id) {
  document.body.classList.remove("side-open");
  $("open-side").setAttribute("aria-expanded", "false");
  const hash = id ? `#${encodeURIComponent(id)}` : "";
  if (location.hash === hash || (!id && !location.hash)) show(id);
  else location.hash = hash;
}

const idInAddress = () => decodeURIComponent(location.hash.slice(1)) || null;

async function show(id) {
  state.running?.abort();
  state.id = id;
  $("title").textContent = "New chat";
  if (id) await attempt(() => load(id));
  else draw([]);
  mark();
  $("message").focus();
}

async function load(id) {
  let items = [];
  try {
    let turns, branches, usage;
    [items, turns, branches, usage] = await Promise.all([
      allItems(id),
      call("GET", path(id, "/turns")),
      call("GET", path(id, "/branches")),
      call("GET", path(id, "/usage")),
    ]);
    if (state.id !== id) return;
    state.turns = turns.data;
    state.branches = branches.data;
    $("used").textContent = usage.total_tokens ? `${usage.total_tokens.toLocaleString()} tokens` : "";
  } catch (error) {
    if (error.status !== 404) throw error;
    state.turns = []; // nothing was said yet
    state.branches = [];
  }
  if (state.id === id) draw(items);
}

function draw(items) {
  if (items.length === 0) {
    state.turns = [];
    state.branches = [];
    $("used").textContent = "";
  }
  const counted = state.turns.reduce((sum, turn) => sum + turn.items, 0);
  let at = Math.max(items.length - counted, 0);
  const parts = [];
  if (at > 0) parts.push(drawTurn(null, items.slice(0, at), null));
  for (const turn of state.turns) {
    parts.push(drawTurn(turn, items.slice(at, at + turn.items), items[at - 1]?.id ?? null));
    at += turn.items;
  }
  if (parts.length === 0) {
    parts.push(element("p", { class: "turn quiet", text: "Say something. The agent remembers, on any worker, after any restart." }));
  }
  $("log").replaceChildren(...parts);
  drawApprovals();
  toEnd();
}

function drawTurn(turn, items, before) {
  const part = element("section", { class: "turn" });
  const outputs = new Map(
    items.filter((item) => item.type.endsWith("_output")).map((item) => [item.call_id, item]),
  );
  const mine = items.filter((item) => item.role === "user");
  for (const item of items) {
    if (item.type === "message") {
      part.append(message(item));
      if (turn && item === mine.at(-1)) part.append(ofMine(turn, mine, before));
    } else if (item.call_id && !item.type.endsWith("_output")) {
      part.append(tool(item, outputs.get(item.call_id)));
    }
  }
  if (turn) part.append(ofAnswer(turn, mine));
  return part;
}

const wordsOf = (item) =>
  (item.content ?? []).map((part) => part.text ?? part.refusal ?? "").filter(Boolean).join("\n");

function message(item) {
  const mine = item.role === "user";
  return element("div", { class: mine ? "said mine" : "said answer", dir: "auto", text: wordsOf(item) });
}

function pretty(value) {
  if (typeof value !== "string") return JSON.stringify(value, null, 1);
  try {
    return JSON.stringify(JSON.parse(value), null, 1);
  } catch {
    return value;
  }
}

function tool(call, output) {
  const details = element(
    "details",
    { class: "tool", "data-call": call.call_id },
    element("summary", { text: `${call.name ?? call.type}${output ? "" : " …"}` }),
    element("pre", { dir: "auto", text: pretty(call.arguments ?? "") }),
  );
  if (output) details.append(element("pre", { dir: "auto", text: pretty(output.output) }));
  return details;
}

function ofMine(turn, mine, before) {
  const tools = element("div", { class: "tools of-mine" });
  // Those that stood at this place: behind the same item.
  const others = state.branches.filter((branch) => branch.after === before);
  const now = mine[0]?.id;
  if (others.length > 0) {
    const versions = [...others.map((branch) => ({ first: branch.first, branch })), { first: now }];
    versions.sort((one, other) => numberOf(one.first) - numberOf(other.first));
    const at = versions.findIndex((version) => !version.branch);
    const leaf = (text, to, label) =>
      button(text, () => restore(versions[to].branch.id), {
        class: "small", "aria-label": label, disabled: !versions[to],
      });
    tools.append(
      leaf("‹", at - 1, "Version before"),
      element("span", { class: "quiet", text: `${at + 1} / ${versions.length}` }),
      leaf("›", at + 1, "Version after"),
    );
  }
  tools.append(button("Edit", (event) => edit(turn, mine, event.target), { class: "small" }));
  return tools;
}

const numberOf = (itemId) => Number(String(itemId).replace("item_", ""));

function ofAnswer(turn, mine) {
  const tools = element("div", { class: "tools" });
  if (mine.length > 0) {
    tools.append(
      button("Regenerate", () => say(mine.map(asInput), { turn: turn.number }), { class: "small" }),
    );
  }
  if (turn.usage.total_tokens) {
    tools.append(element("span", { class: "quiet", text: `${turn.usage.total_tokens.toLocaleString()} tokens` }));
  }
  if (turn.status && !["completed", "waiting"].includes(turn.status)) {
    tools.append(element("span", { class: "quiet", text: turn.status.replace("_", " ") }));
  }
  return tools;
}

const asInput = (item) => ({ role: "user", content: item.content });

function edit(turn, mine, opener) {
  const shown = opener.closest(".turn").querySelectorAll(".mine");
  const text = element("textarea", { "aria-label": "Edit the message", dir: "auto" });
  text.value = mine.map(wordsOf).join("\n");
  const form = element("form", { class: "edit mine" }, text, element("div", { class: "tools of-mine" },
    button("Cancel", () => { form.replaceWith(...shown); opener.focus(); }, { class: "small" }),
    element("button", { class: "primary", text: "Send" }),
  ));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const words = text.value.trim();
    if (words) say([{ role: "user", content: words }], { turn: turn.number });
  });
  text.addEventListener("keydown", sendOnEnter(form));
  shown[0].replaceWith(form);
  for (const other of [...shown].slice(1)) other.remove();
  text.focus();
}

async function restore(branch) {
  await attempt(() => call("POST", path(state.id, `/branches/${branch}/restore`)));
  await attempt(() => load(state.id));
}

// --- what waits for somebody's yes --------------------------------------------------------------

const approvalsKey = (id) => `approvals ${id}`;
const approvalsOf = (id) => JSON.parse(localStorage.getItem(approvalsKey(id)) ?? "[]");
const forgetApprovals = (id) => localStorage.removeItem(approvalsKey(id));

function keepApprovals(id, approvals) {
  if (approvals?.length) localStorage.setItem(approvalsKey(id), JSON.stringify(approvals));
  else forgetApprovals(id);
}

function drawApprovals() {
  if (!state.id || state.turns.at(-1)?.status !== "waiting") return;
  const last = $("log").lastElementChild;
  for (const { id, name, arguments: given } of approvalsOf(state.id)) {
    const decide = (yes) => () => say([], { approvals: { [id]: yes } });
    last.append(element("div", { class: "approval", role: "group", "aria-label": `Approve ${name}?` },
      element("strong", { text: `${name} waits for your approval` }),
      element("pre", { class: "said", dir: "auto", text: pretty(given) }),
      element("div", { class: "tools" },
        button("Approve", decide(true), { class: "primary" }), button("Decline", decide(false))),
    ));
  }
}

// --- saying something ---------------------------------------------------------------------------

async function say(input, { turn, approvals } = {}) {
  if (state.running) return;
  notice();
  const id = state.id ?? crypto.randomUUID();
  const begins = state.id === null;
  state.id = id;
  if (begins) history.replaceState(null, "", `#${encodeURIComponent(id)}`);
  const running = (state.running = new AbortController());
  busy(true);
  const part = pending(input, turn);
  let failed;
  try {
    const customInputs = { session_id: id };
    if (turn !== undefined) customInputs.turn = turn;
    if (approvals !== undefined) customInputs.approvals = approvals;
    for await (const event of answer(input, customInputs, running.signal)) {
      if (state.id === id) showEvent(part, event);
      if (event.type === "response.completed") keepApprovals(id, event.custom_outputs?.approvals);
    }
  } catch (error) {
    failed = error;
    if (error.code === "approval_not_found") forgetApprovals(id);
  } finally {
    if (state.running === running) state.running = null;
    busy(false);
  }
  if (state.id !== id) return;
  await attempt(() => load(id));
  await attempt(() => list());
  if (failed && failed.name !== "AbortError") {
    notice(failed instanceof Failure ? failed.message : "The answer broke off. What is shown is what was stored.");
    if (begins && state.turns.length === 0) $("message").value = input.map((item) => item.content).join("\n");
  }
  if (!window.matchMedia("(max-width: 46rem)").matches) $("message").focus();
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
  $("log").setAttribute("aria-busy", String(is));
  for (const each of document.querySelectorAll("#log button, #new")) each.disabled = is;
}

// The turn as it will be: what it replaces is not shown any more.
function pending(input, turn) {
  if (turn !== undefined || state.turns.length === 0) {
    const parts = [...$("log").children];
    const keep = parts.length - (state.turns.length - ((turn ?? 1) - 1));
    for (const part of parts.slice(state.turns.length ? keep : 0)) part.remove();
  }
  for (const card of document.querySelectorAll(".approval")) card.remove();
  const part = element("section", { class: "turn" });
  for (const item of input) {
    part.append(element("div", {
      class: "said mine", dir: "auto",
      text: typeof item.content === "string" ? item.content : wordsOf(item),
    }));
  }
  $("log").append(part);
  toEnd();
  return { part, items: new Map() };
}

function showEvent({ part, items }, event) {
  const atEnd = isAtEnd();
  if (event.type === "response.output_text.delta") {
    shown(part, items, event.item_id).append(event.delta);
  } else if (event.type === "response.output_item.done") {
    const { item } = event;
    if (item.type === "message") {
      const made = shown(part, items, item.id);
      made.textContent = wordsOf(item);
      made.classList.remove("busy");
    } else if (item.type.endsWith("_output")) {
      const call = [...part.querySelectorAll("details.tool")].find((each) => each.dataset.call === item.call_id);
      call?.append(element("pre", { dir: "auto", text: pretty(item.output) }));
    } else if (item.call_id) {
      part.append(tool(item));
    }
  }
  if (atEnd) toEnd();
}

function shown(part, items, id) {
  if (!items.has(id)) {
    const made = element("div", { class: "said answer busy", dir: "auto" });
    items.set(id, made);
    part.append(made);
  }
  return items.get(id);
}

const isAtEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80;
const toEnd = () => $("log").scrollTo({ top: $("log").scrollHeight });

const sendOnEnter = (form) => (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
};

function fit() {
  $("message").style.height = "auto";
  $("message").style.height = `${$("message").scrollHeight + 2}px`;
}

// --- the page -----------------------------------------------------------------------------------

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const words = $("message").value.trim();
  if (!words || state.running) return;
  $("message").value = "";
  fit();
  say([{ role: "user", content: words }]);
});
$("message").addEventListener("keydown", sendOnEnter($("composer")));
$("message").addEventListener("input", fit);
$("stop").addEventListener("click", () => state.running?.abort());
$("new").addEventListener("click", () => go(null));
$("more").addEventListener("click", () => attempt(() => list({ further: true })));
let typing;
$("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => attempt(list), 250);
});
$("open-side").addEventListener("click", () => {
  document.body.classList.add("side-open");
  $("open-side").setAttribute("aria-expanded", "true");
  $("new").focus();
});
$("close-side").addEventListener("click", () => {
  document.body.classList.remove("side-open");
  $("open-side").setAttribute("aria-expanded", "false");
  $("open-side").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !$("ask").open) state.running?.abort();
});
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : window.matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
window.addEventListener("hashchange", () => show(idInAddress()));
await attempt(list);
await show(idInAddress());
