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
  String(text).replace(/(?![\t\n])[\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}\u2028\u2029\u2800]/gu, (character) => {
    const code = character.codePointAt(0).toString(16).padStart(4, "0");
    return code.length > 4 ? `\\u{${code}}` : `\\u${code}`;
  });

// JSON in lines, token by token: what is parsed loses repeated keys and the digits of great numbers.
function inLines(json) {
  let depth = 0;
  const line = () => `\n${"  ".repeat(Math.min(depth, 20))}`;
  return json.replace(/"(?:[^"\\]|\\.)*"|\{\s*\}|\[\s*\]|[{}[\],:]|\s+/g, (token) => {
    if (token.startsWith('"')) return JSON.stringify(JSON.parse(token));
    if (token === ",") return `,${line()}`;
    if (token === ":") return ": ";
    if (token === "{" || token === "[") {
      depth += 1;
      return token + line();
    }
    if (token === "}" || token === "]") {
      depth -= 1;
      return line() + token;
    }
    return token.replace(/\s+/g, ""); // between tokens, or in what is empty
  });
}

export function pretty(value) {
  if (typeof value !== "string") return visible(JSON.stringify(value, null, 2));
  try {
    JSON.parse(value);
    return visible(inLines(value));
  } catch {
    return visible(value);
  }
}

// Children that stay are not touched: they keep the focus, and the click that is being made.
export function arrange(parent, children) {
  const kept = new Set(children);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  children.forEach((child, at) => {
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
  });
}

export function notice(message, ...buttons) {
  $("notice").replaceChildren(message ?? "", ...buttons);
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
