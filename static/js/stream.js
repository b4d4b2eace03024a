// One streamed chat or completion: the events of the answer, and its figures.

const AT_ONCE = 20; // ms; tokens that came all together have no speed

/** What the server says went wrong, in its own words, and with which status. */
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Nothing yet. Times in ms, `speed` in tokens a second; `thought` counts the tokens of the reasoning. */
export function nothing() {
  const figures = { ttft: null, took: null, speed: null, tokens: 0, prompt: null, thought: 0, thinking: 0, finish: null };
  return { text: "", reasoning: "", figures };
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    const parts = (text + value).split(/\r?\n\r?\n/);
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      if (data.length && data[0] !== "[DONE]") yield JSON.parse(data.join("\n"));
    }
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  return new Refused(body?.error?.message ?? `HTTP ${response.status} ${response.statusText}`, response.status);
}

class Reply {
  constructor() {
    Object.assign(this, nothing(), { begun: performance.now(), first: 0 });
  }

  /** Take an event: a chunk is about a token; the usage at the end has the true counts. */
  take(event) {
    if (event.error) throw new Refused(event.error.message, 502);
    const choice = event.choices?.[0];
    const { figures } = this;
    const thought = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning ?? "";
    const said = choice?.delta?.content ?? choice?.text ?? "";
    if (thought || said) this.count(thought);
    this.reasoning += thought;
    this.text += said;
    figures.finish = choice?.finish_reason ?? figures.finish;
    if (event.usage) Object.assign(figures, { tokens: event.usage.completion_tokens, prompt: event.usage.prompt_tokens });
    if (this.first) this.measure();
  }

  count(thought) {
    const { figures } = this;
    this.first ||= performance.now();
    figures.ttft ??= this.first - this.begun;
    figures.tokens += 1;
    if (!thought) return;
    figures.thought += 1;
    figures.thinking = performance.now() - this.first;
  }

  measure() {
    const now = performance.now();
    this.figures.took = now - this.begun;
    if (this.figures.tokens > 1 && now - this.first > AT_ONCE) {
      this.figures.speed = ((this.figures.tokens - 1) * 1000) / (now - this.first);
    }
  }
}

/**
 * Send a request (`{path, body}`, see request.js) with `token` and call `draw({text, reasoning, figures})` as the answer
 * arrives. Raises `Refused`, or what `fetch` raises.
 */
export async function complete({ path, body }, token, signal, draw) {
  const reply = new Reply();
  const response = await fetch(path, {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw await refusal(response);
  for await (const event of events(response.body)) {
    reply.take(event);
    draw(reply);
  }
}
