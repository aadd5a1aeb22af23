// What everything on the page is made of. Whatever a model, a tool or a user has said becomes text,
// never HTML: all of it goes through `element`, which knows only textContent.

import { Failure } from "./api.js";

export const $ = (id) => document.getElementById(id);

export function element(tag, { text, on = {}, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, handler] of Object.entries(on)) made.addEventListener(event, handler);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

export const button = (text, handler, attributes = {}) =>
  element("button", { type: "button", text, on: { click: handler }, ...attributes });

export function iconButton(symbol, label, handler) {
  const namespace = "http://www.w3.org/2000/svg";
  const icon = document.createElementNS(namespace, "svg");
  icon.setAttribute("aria-hidden", "true");
  icon.append(document.createElementNS(namespace, "use"));
  icon.firstChild.setAttribute("href", `#${symbol}`);
  const made = button("", handler, { class: "icon", "aria-label": label });
  made.append(icon);
  return made;
}

// What does not show, or makes other words show elsewhere, is written out: of a tool's call somebody
// has to know what they say yes to.
export const visible = (text) =>
  String(text).replace(
    /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

export function pretty(value) {
  let known = value;
  if (typeof value === "string") {
    try {
      known = JSON.parse(value);
    } catch {
      return visible(value);
    }
  }
  return visible(typeof known === "string" ? known : JSON.stringify(known, null, 2));
}

export function notice(message) {
  $("notice").textContent = message ?? "";
  $("notice").hidden = !message;
}

// Every failure is shown; nothing is left half done on the page, which shows what is stored. What
// nobody has asked for leaves a failure that is shown, whatever works again by now.
export async function attempt(action, { unasked = false } = {}) {
  if (!unasked) notice();
  try {
    return await action();
  } catch (error) {
    if (unasked && !$("notice").hidden) return undefined;
    notice(error instanceof Failure ? error.message : "The server cannot be reached. Try again.");
    return undefined;
  }
}

// A question in a dialog: null for no, else the value.
export async function ask(text, { name = "", value, yes }) {
  $("ask-text").textContent = text;
  $("ask-name").textContent = name;
  $("ask-yes").textContent = yes;
  $("ask-value").hidden = value === undefined;
  $("ask-value").value = value ?? "";
  $("ask").returnValue = "";
  $("ask").showModal();
  if (value !== undefined) $("ask-value").select();
  await new Promise((closed) => $("ask").addEventListener("close", closed, { once: true }));
  return $("ask").returnValue === "yes" ? $("ask-value").value : null;
}

export const narrow = window.matchMedia("(max-width: 46rem)");
