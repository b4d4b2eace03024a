// From the settings and what was said to the request that is sent. Pure: what the code panel shows is what is sent.

const NEUTRAL = { top_p: 1, repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0 };
const MOST_STOPS = 4;

/** Texts to stop at: comma separated, `\n` and `\t` for what cannot be typed, `\,` for a comma. */
export function stops(text) {
  const parts = text.split(/(?<!\\),/).map((part) => part.trim().replace(/\\([nt,])/g, unescape));
  return parts.filter(Boolean).slice(0, MOST_STOPS);
}

function unescape(whole, letter) {
  return { n: "\n", t: "\t", ",": "," }[letter];
}

/** What differs from doing nothing, so that a request holds only what was asked for. */
function sampling(settings) {
  const values = { temperature: Number(settings.temperature), max_tokens: Number(settings.max_tokens) };
  for (const [name, neutral] of Object.entries(NEUTRAL)) {
    if (Number(settings[name]) !== neutral) values[name] = Number(settings[name]);
  }
  const stop = stops(settings.stop);
  if (stop.length) values.stop = stop;
  if (settings.seed !== "") values.seed = Number(settings.seed);
  return values;
}

/** A prompt as a message: with pictures it has parts. */
function message({ text, images = [] }) {
  if (!images.length) return { role: "user", content: text };
  const pictures = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: [...pictures, ...(text ? [{ type: "text", text }] : [])] };
}

/**
 * The request for `prompt` ({text, images}) after `history`, a list of {prompt, answer (text)}. A completion has neither
 * history, system prompt nor pictures: it goes on with the text.
 */
export function requestFor(model, mode, settings, history, prompt) {
  const streamed = { stream: true, stream_options: { include_usage: true } };
  if (mode === "completion") {
    return { path: "/v1/completions", body: { model, prompt: prompt.text, ...sampling(settings), ...streamed } };
  }
  const system = settings.system.trim();
  const before = history.flatMap((turn) => [message(turn.prompt), { role: "assistant", content: turn.answer }]);
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...before, message(prompt)];
  return { path: "/v1/chat/completions", body: { model, messages, ...sampling(settings), ...streamed } };
}
