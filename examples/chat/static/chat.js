// The conversation that is shown, and what is said in it.

import { Failure, allItems, answer, call, path } from "./api.js";
import { $, arrange, attempt, button, element, narrow, notice } from "./page.js";
import * as side from "./side.js";
import { approval, drawTurn, said, show as showItem, wordsOf } from "./turns.js";

const state = {
  id: null, // of the conversation that is shown
  loaded: false, // whether what is shown is that conversation's
  turns: [],
  branches: [],
  drawn: "", // what tells whether there is something new
};
const runs = new Map(); // by conversation: the answers that are coming
const failures = new Map(); // by conversation: the runs of which nobody was told yet
let asked = 0; // how often something was to be shown: only what was asked for last is

// --- what is stored -----------------------------------------------------------------------------

function go(id) {
  side.openSide(false);
  history.pushState(null, "", id ? `#${encodeURIComponent(id)}` : location.pathname);
  open(id);
}

const idInAddress = () => {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null;
  }
};

// Nothing of the conversation before stays, so that nothing can be done with it under another id.
async function open(id) {
  asked += 1;
  Object.assign(state, { id, loaded: false, turns: [], branches: [], drawn: "" });
  notice();
  side.mark(id);
  $("used").textContent = "";
  $("log").replaceChildren(...(runs.get(id)?.shown ?? [])); // an answer has gone on meanwhile
  if (id === null) draw([]);
  busy();
  if (!narrow.matches) $("message").focus();
  if (id !== null && !runs.has(id)) await attempt(() => Promise.all([load(id), side.learn(id)]));
}

async function load(id, { ifNew = false } = {}) {
  asked += 1;
  const mine = asked;
  const late = () => mine !== asked || runs.has(id);
  let items = [], turns = [], branches = [], used = 0;
  try {
    const all = await Promise.all([
      allItems(id),
      call("GET", path(id, "/turns")),
      call("GET", path(id, "/branches")),
      call("GET", path(id, "/usage")),
    ]);
    [items, turns, branches, used] = [all[0], all[1].data, all[2].data, all[3].total_tokens];
  } catch (error) {
    if (late()) return;
    if (error.status !== 404) { // else nothing was said yet
      if (!state.loaded) offerAgain(id);
      throw error;
    }
  }
  if (late()) return;
  const drawn = JSON.stringify([items.map((item) => item.id), turns.map((turn) => turn.status), branches]);
  if (ifNew && drawn === state.drawn) return;
  state.drawn = drawn;
  Object.assign(state, { turns, branches });
  $("used").textContent = used ? `${used.toLocaleString()} tokens` : "";
  draw(items);
  busy();
  tell(id);
}

const offerAgain = (id) =>
  $("log").replaceChildren(element("p", { class: "turn empty quiet", text: "This conversation could not be loaded. " },
    button("Try again", () => open(id))));

function draw(items) {
  state.loaded = true;
  if (items.length === 0) {
    Object.assign(state, { turns: [], branches: [] });
  }
  const counted = state.turns.reduce((sum, turn) => sum + turn.items, 0);
  let at = Math.max(items.length - counted, 0);
  const shown = new Map([...$("log").children].map((part) => [part.stored, part]));
  const parts = at > 0 ? [drawTurn(null, items.slice(0, at), { shown })] : [];
  for (const turn of state.turns) {
    const before = items[at - 1]?.id ?? null;
    const own = items.slice(at, at + turn.items);
    parts.push(drawTurn(turn, own, { before, branches: state.branches, shown, handlers: { edit, regenerate, restore } }));
    at += turn.items;
  }
  if (parts.length === 0) {
    parts.push(element("p", { class: "turn empty quiet", text: "Say something. The agent remembers, on any worker, after any restart." }));
  }
  arrange($("log"), parts);
  drawApprovals();
  toEnd();
}

async function restore(branch, turn, arrow) {
  const id = state.id;
  if (runs.has(id)) return;
  await attempt(() => call("POST", path(id, `/branches/${branch}/restore`)));
  await reload(id);
  if (document.activeElement !== document.body) return;
  const arrows = [...$("log").querySelectorAll(`[data-turn="${turn.number}"] button[aria-label]:enabled`)];
  (arrows.find((each) => each.ariaLabel === arrow) ?? arrows[0])?.focus();
}

const reload = (id) => attempt(async () => {
  await Promise.all([load(id), side.list()]);
  await side.learn(id);
}, { unasked: true });

// --- what waits for somebody's yes: the server tells once, in the answer that asks ----------------

const approvalsKey = (id) => `approvals ${id}`;
const forgetApprovals = (id) => localStorage.removeItem(approvalsKey(id));
const approvalsOf = (id) => JSON.parse(localStorage.getItem(approvalsKey(id)) ?? "[]");

function keepApprovals(id, approvals) {
  if (approvals?.length) localStorage.setItem(approvalsKey(id), JSON.stringify(approvals));
  else forgetApprovals(id);
}

function drawApprovals() {
  if (state.turns.at(-1)?.status !== "waiting") return;
  const known = approvalsOf(state.id);
  const tools = $("log").lastElementChild.lastElementChild;
  for (const each of known) {
    tools.before(approval(each, (yes) => say([], { approvals: { [each.id]: yes } })));
  }
  if (known.length === 0) {
    tools.before(element("p", { class: "quiet", text: "A tool waits for an approval that was asked for elsewhere. Saying something else declines it." }));
  }
}

// --- saying something ---------------------------------------------------------------------------

// An id of the page's own: it is known before the answer begins, also if that never does.
const newId = () =>
  [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

async function say(input, { turn, approvals } = {}) {
  const id = state.id ?? newId();
  if (runs.has(id) || !state.loaded) return;
  notice();
  if (state.id === null) {
    state.id = id;
    history.replaceState(null, "", `#${id}`);
    side.mark(id);
  }
  const first = turn ?? (state.turns.at(-1)?.number ?? 0) + 1;
  const part = begun(input, turn, approvals);
  const run = { abort: new AbortController(), part, items: new Map(), shown: [...$("log").children] };
  runs.set(id, run);
  state.drawn = "";
  busy();
  let failed, completed;
  try {
    const customInputs = { session_id: id };
    if (turn !== undefined) customInputs.turn = turn;
    if (approvals !== undefined) customInputs.approvals = approvals;
    for await (const event of answer(input, customInputs, run.abort.signal)) {
      follow(run, event);
      if (event.type !== "response.completed") continue;
      completed = true;
      keepApprovals(id, event.custom_outputs?.approvals);
    }
    if (!completed) throw new Error("cut off");
  } catch (error) {
    failed = error;
    if (error.code === "approval_not_found") forgetApprovals(id);
  }
  runs.delete(id);
  if (failed) {
    const words = input.map((item) => (typeof item.content === "string" ? item.content : "")).join("\n");
    failures.set(id, { message: messageOf(failed), words, first, last: turn ?? Infinity });
  }
  if (state.id !== id) {
    await attempt(side.list, { unasked: true });
    const message = failures.get(id)?.message;
    if (message && state.id !== id) notice(`In another conversation: ${message} `, button("Show it", () => go(id)));
    return;
  }
  if (failed) {
    notice(messageOf(failed));
    failures.get(id).message = undefined; // told
  }
  await reload(id);
  busy(); // only now there is what one can build on
  if (!narrow.matches && !document.activeElement.closest("#side, #ask, .edit")) $("message").focus();
}

function messageOf(failed) {
  if (failed.name === "AbortError") return undefined;
  return failed instanceof Failure ? failed.message : "The answer broke off. What is shown is what was stored.";
}

// What became of a run that failed, as soon as it is known what was stored. What is not stored
// anywhere is not lost: it goes back to where one writes.
function tell(id) {
  if (!failures.has(id)) return;
  const { message, words, first, last } = failures.get(id);
  failures.delete(id);
  if (message) notice(message);
  const stored = [...$("log").querySelectorAll(".mine")].some((each) => {
    const { turn } = each.closest(".turn").dataset;
    return turn >= first && turn <= last && each.textContent === words;
  });
  if (!words || stored) return;
  $("message").value = [words, $("message").value].filter(Boolean).join("\n");
  fit();
}

function busy() {
  const is = runs.has(state.id);
  $("send").hidden = is;
  $("send").disabled = !state.loaded;
  $("stop").hidden = !is;
  $("log").setAttribute("aria-busy", String(is || !state.loaded));
}

// The turn as it will be. What it replaces is not shown any more.
function begun(input, turn, approvals) {
  $("log").querySelector(".empty")?.remove();
  if (turn !== undefined) {
    const gone = state.turns.filter((each) => each.number >= turn).length;
    for (const part of [...$("log").children].slice($("log").children.length - gone)) part.remove();
  }
  for (const card of $("log").querySelectorAll(".approval")) card.remove();
  const part = approvals ? $("log").lastElementChild : element("section", { class: "turn" });
  part.querySelector(".of-answer")?.remove();
  for (const { content } of input) {
    part.append(...said({ role: "user", content: typeof content === "string" ? [{ text: content }] : content }));
  }
  $("log").append(part);
  toEnd();
  return part;
}

function follow({ part, items }, event) {
  const atEnd = part.isConnected && isAtEnd();
  if (event.type === "response.output_text.delta") {
    if (!items.has(event.item_id)) {
      const made = said({ role: "assistant" }, { busy: true });
      items.set(event.item_id, made[1]);
      part.append(...made);
    }
    items.get(event.item_id).append(event.delta);
  } else if (event.type === "response.output_item.done") {
    const streamed = items.get(event.item.id);
    if (streamed) {
      streamed.textContent = wordsOf(event.item);
      streamed.classList.remove("busy");
    } else {
      showItem(part, event.item);
    }
  }
  if (atEnd) toEnd();
}

const regenerate = (turn, mine) =>
  say(mine.map(({ content }) => ({ role: "user", content })), { turn: turn.number });

function edit(turn, mine, part) {
  const shown = [...part.querySelectorAll(".mine, .of-mine")];
  const text = element("textarea", { "aria-label": "Edit the message", dir: "auto" });
  text.value = mine.map(wordsOf).join("\n");
  const cancel = () => {
    form.replaceWith(...shown);
    shown.at(-1).querySelector("button").focus();
  };
  const form = element("form", { class: "edit mine" }, text,
    element("div", { class: "tools of-mine" },
      button("Cancel", cancel), element("button", { class: "primary", text: "Send" })));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const words = text.value.trim();
    if (words) say([{ role: "user", content: words }], { turn: turn.number });
  });
  text.addEventListener("keydown", sendOnEnter(form));
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    event.stopPropagation(); // it ends the edit, and no answer
    cancel();
  });
  shown[0].replaceWith(form);
  for (const other of shown.slice(1)) other.remove();
  text.focus();
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
  if (!words || runs.has(state.id) || !state.loaded) return;
  $("message").value = "";
  fit();
  say([{ role: "user", content: words }]);
});
$("message").addEventListener("keydown", sendOnEnter($("composer")));
$("message").addEventListener("input", fit);
$("stop").addEventListener("click", () => runs.get(state.id)?.abort.abort());
$("new").addEventListener("click", () => go(null));
$("ask-no").addEventListener("click", () => $("ask").close());
document.addEventListener("keydown", (event) => {
  const here = event.target === document.body ? !$("main").inert : event.target.closest("#log, #composer");
  if (event.key === "Escape" && !event.isComposing && here) runs.get(state.id)?.abort.abort();
});
// Not by its address: what stands behind # is the conversation.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  side.openSide(false);
  $("message").focus();
});
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const { theme = window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light" } = root.dataset;
  root.dataset.theme = theme === "dark" ? "light" : "dark";
  localStorage.setItem("theme", root.dataset.theme);
});
const theme = localStorage.getItem("theme");
if (theme) document.documentElement.dataset.theme = theme;

side.begin({
  open: go,
  deleted(id) {
    forgetApprovals(id);
    runs.get(id)?.abort.abort();
    if (id === state.id) go(null);
  },
});
window.addEventListener("popstate", () => open(idInAddress()));
// Somebody may have gone on in another tab.
window.addEventListener("focus", () => {
  if (runs.has(state.id) || document.querySelector(".edit")) return;
  attempt(() => Promise.all([side.list(), state.id && load(state.id, { ifNew: true })]), { unasked: true });
});
await Promise.all([open(idInAddress()), attempt(side.list, { unasked: true })]);
