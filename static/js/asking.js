// Sending one prompt to one model, and what to do about what it refuses.

import { modeOf, rememberBase } from "./columns.js";
import { settings } from "./settings.js";
import { complete, Refused } from "./stream.js";
import { word } from "./words.js";

const token = () => document.getElementById("token").textContent; // renewed with the page's state
const BLIND = /multi-?modal|image|vision/i;
const NO_TEMPLATE = /chat.?template/i;

function hasPictures(request) {
  return (request.body.messages ?? []).some((message) => Array.isArray(message.content));
}

function isBase(error, mode) {
  return mode === "chat" && settings().mode === "auto" && error instanceof Refused && NO_TEMPLATE.test(error.message);
}

async function send(answer, column, mode, note, build, signal) {
  answer.as(mode, note);
  answer.request = build(mode);
  try {
    await complete(answer.request, token(), signal, (reply) => answer.grow(reply));
  } catch (error) {
    if (!isBase(error, mode)) throw error;
    rememberBase(column);
    await send(answer, column, "completion", word("base"), build, signal);
  }
}

function why(error, answer, told) {
  if (!(error instanceof Refused)) return told.offline;
  const blind = error.status === 400 && hasPictures(answer.request) && BLIND.test(error.message);
  return blind ? `${told.blind} (${error.message})` : error.message;
}

/**
 * Let `column` answer: `build(mode)` is the request. `told` has the sentences of failures. Never raises: however it
 * ends, the answer says so.
 */
export async function ask(answer, column, build, pictured, told, signal) {
  const mode = modeOf(column);
  const note = mode === "completion" && pictured ? told.inCompletion : "";
  try {
    await send(answer, column, mode, note, build, signal);
    answer.end("done");
  } catch (error) {
    if (error.name === "AbortError") answer.end("stopped");
    else answer.end("failed", why(error, answer, told));
  }
}
