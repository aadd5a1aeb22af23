// The side bar: one's conversations, as the server lists them.

import { call, path } from "./api.js";
import { $, ask, attempt, button, element, iconButton, narrow } from "./page.js";

let current = null; // the id of the conversation that is shown
let next = null; // where the next page of the list begins
let handlers = { open() {}, deleted() {} };

export async function list({ further = false } = {}) {
  const search = $("search").value.trim();
  const query = new URLSearchParams({ limit: "30" });
  if (search) query.set("search", search);
  if (further && next) query.set("after", next);
  const page = await call("GET", `?${query}`);
  if (search !== $("search").value.trim()) return; // an answer to an older question
  const rows = page.data.map(row);
  if (further) $("conversations").append(...rows);
  else $("conversations").replaceChildren(...rows);
  next = page.next;
  $("more").hidden = !next;
  $("none").hidden = $("conversations").children.length > 0 || Boolean(next);
  mark(current);
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
  let name = "New chat";
  for (const each of $("conversations").children) {
    const is = each.dataset.id === id;
    each.classList.toggle("current", is);
    if (is) each.firstChild.setAttribute("aria-current", "page");
    else each.firstChild.removeAttribute("aria-current");
    if (is) name = each.firstChild.textContent;
  }
  $("title").textContent = name;
  document.title = name;
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
  if ((await ask("Delete this conversation? It cannot be brought back.", { name, yes: "Delete" })) === null) return;
  await attempt(async () => {
    await call("DELETE", path(id));
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
    typing = setTimeout(() => attempt(list), 250);
  });
  $("more").addEventListener("click", () => attempt(() => list({ further: true })));
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
