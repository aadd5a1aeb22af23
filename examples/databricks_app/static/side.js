// The side bar: one's conversations, as the server lists them.

import { call, path } from "./api.js";
import { $, arrange, ask, attempt, button, element, iconButton, narrow } from "./page.js";

const PAGE = 30;
const MOST = 100; // that the server gives at once

let current = null; // the id of the conversation that is shown
let wanted = PAGE; // so many are shown, if there are as many
let asked = 0; // how often: only the answer to the latest question is shown
let handlers = { open() {}, deleted() {} };
let rows = new Map(); // what is shown: by what the server said of it
const names = new Map(); // by id, also of those that are not shown any more

export async function list() {
  asked += 1;
  const mine = asked;
  const search = $("search").value.trim();
  const found = [];
  let next = null;
  do {
    const query = new URLSearchParams({ limit: String(Math.min(wanted - found.length, MOST)) });
    if (search) query.set("search", search);
    if (next) query.set("after", next);
    const page = await call("GET", `?${query}`);
    if (mine !== asked) return;
    found.push(...page.data);
    next = page.next;
  } while (next && found.length < wanted);
  const shown = new Map();
  for (const each of found) {
    const said = JSON.stringify([each.id, each.title, each.preview, each.updated_at]);
    shown.set(said, rows.get(said) ?? row(each));
    names.set(each.id, nameOf(each));
  }
  rows = shown;
  arrange($("conversations"), [...rows.values()]);
  $("more").hidden = !next;
  $("none").hidden = found.length > 0;
  mark(current);
}

// The name of one that the list may not show: it is older, or not what is searched for.
export async function learn(id) {
  if (!names.has(id)) {
    try {
      names.set(id, nameOf(await call("GET", path(id))));
    } catch (error) {
      if (error.status !== 404 && id === current) throw error; // else nothing was said yet
    }
  }
  if (id === current) mark(id);
}

async function more() {
  wanted += PAGE;
  $("more").disabled = true;
  await attempt(list);
  $("more").disabled = false;
}

const nameOf = ({ title, preview }) => title || preview || "Without words";

function row(conversation) {
  const name = nameOf(conversation);
  const when = new Date(conversation.updated_at * 1000).toLocaleString();
  return element(
    "li",
    { "data-id": conversation.id },
    button(name, () => handlers.open(conversation.id), { class: "open", dir: "auto", title: `${name}\n${when}` }),
    iconButton("pencil", `Rename ${name}`, () => rename(conversation.id, name)),
    iconButton("bin", `Delete ${name}`, () => remove(conversation.id, name)),
  );
}

// The conversation that is shown stands out, and its name is the page's.
export function mark(id) {
  current = id;
  for (const each of $("conversations").children) {
    const is = each.dataset.id === id;
    each.classList.toggle("current", is);
    if (is) each.firstChild.setAttribute("aria-current", "page");
    else each.firstChild.removeAttribute("aria-current");
  }
  const name = names.get(id) ?? "New chat";
  $("title").textContent = name;
  document.title = name;
}

async function rename(id, name) {
  const title = await ask("What is it called?", { value: name, yes: "Rename" });
  if (title === null) return;
  await attempt(async () => {
    names.set(id, nameOf(await call("POST", path(id), { title: title.trim() || null })));
    await list();
  });
  // The row is another one, and its pencil too.
  if (document.activeElement !== document.body) return;
  [...$("conversations").children].find((each) => each.dataset.id === id)?.querySelector(".icon").focus();
}

async function remove(id, name) {
  if ((await ask("Delete this conversation? It cannot be brought back.", { name, yes: "Delete" })) === null) return;
  await attempt(async () => {
    await call("DELETE", path(id));
    names.delete(id);
    handlers.deleted(id);
    await list();
  });
}

export function openSide(is) {
  document.body.classList.toggle("side-open", is);
  $("open-side").setAttribute("aria-expanded", String(is));
  $("main").inert = is;
  if (is) $("new").focus();
}

export function begin(given) {
  handlers = given;
  let typing;
  $("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      wanted = PAGE;
      attempt(list);
    }, 250);
  });
  $("more").addEventListener("click", more);
  $("open-side").addEventListener("click", () => openSide(true));
  const close = () => {
    openSide(false);
    $("open-side").focus();
  };
  $("close-side").addEventListener("click", close);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && $("main").inert && !$("ask").open) close();
  });
  document.addEventListener("click", (event) => {
    if ($("main").inert && [document.body, document.documentElement].includes(event.target)) close();
  });
  narrow.addEventListener("change", () => openSide(false));
}
