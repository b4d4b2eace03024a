// One streamed chat completion: the request, the events of the answer, and its figures.

/** What the server says went wrong, in its own words. */
export class Refused extends Error {}

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
  return new Refused(body?.error?.message ?? `HTTP ${response.status} ${response.statusText}`);
}

/**
 * Send `request` with `token` and call `draw(text, figures)` as the answer arrives. Figures: `ttft` in ms, `tokens`,
 * `speed` in tokens a second, `counted` once the server has counted them, `finish`. Resolves with the last ones; raises
 * `Refused`, or what `fetch` raises.
 */
export async function complete(request, token, signal, draw) {
  const begun = performance.now();
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${token}` },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw await refusal(response);
  const figures = { ttft: null, tokens: 0, speed: null, counted: false, finish: null };
  let text = "";
  let first = 0;
  for await (const event of events(response.body)) {
    if (event.error) throw new Refused(event.error.message);
    const choice = event.choices?.[0];
    if (choice?.delta?.content) {
      text += choice.delta.content;
      first ||= performance.now();
      figures.ttft ??= first - begun;
      figures.tokens += 1; // a chunk is about a token; the usage at the end has the true count
    }
    figures.finish = choice?.finish_reason ?? figures.finish;
    if (event.usage) Object.assign(figures, { tokens: event.usage.completion_tokens, counted: true });
    const seconds = (performance.now() - first) / 1000;
    if (first && figures.tokens > 1 && seconds > 0) figures.speed = (figures.tokens - 1) / seconds;
    draw(text, figures);
  }
  return { text, figures };
}
