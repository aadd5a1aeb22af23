// The routes of `conversations_router`, and the agent's answers as a stream of events.

export class Failure extends Error {
  constructor(message, code, status) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

async function failureOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Something in between answered, and not the server.
  }
  return new Failure(error.message ?? `The server answered ${response.status}.`, error.code, response.status);
}

export async function call(method, path, body) {
  const response = await fetch(`conversations${path}`, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) throw await failureOf(response);
  return response.json();
}

export const path = (id, rest = "") => `/${encodeURIComponent(id)}${rest}`;

export async function allItems(id) {
  const items = [];
  let after = "";
  for (;;) {
    const page = await call("GET", path(id, `/items?order=asc&limit=100${after}`));
    items.push(...page.data);
    if (!page.has_more) return items;
    after = `&after=${encodeURIComponent(page.last_id)}`;
  }
}

// Sends only what is new; what was said before, the agent remembers.
export async function* answer(input, customInputs, signal) {
  const response = await fetch("responses", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ input, stream: true, custom_inputs: customInputs }),
    signal,
  });
  if (!response.ok) throw await failureOf(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const lines = held.split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ") || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.type === "error" || event.error) {
        const error = event.error;
        const message = event.message ?? error?.message ?? error;
        throw new Failure(String(message), event.code ?? error?.code);
      }
      yield event;
    }
  }
}
