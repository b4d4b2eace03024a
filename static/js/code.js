// A request as a program would make it: curl, Python, JavaScript. Pure.

const KNOWN = new Set(["model", "messages", "prompt", "temperature", "top_p", "max_tokens", "presence_penalty",
  "frequency_penalty", "stop", "seed", "stream", "stream_options"]); // what OpenAI's Python client has by name
const NARROW = 88;

function pythonName(value) {
  return { true: "True", false: "False", null: "None" }[String(value)] ?? String(value);
}

/** A JSON value as a Python literal; on one line where it fits. */
function literal(value, indent, leaf, key) {
  if (typeof value === "string") return JSON.stringify(value);
  if (value === null || typeof value !== "object") return leaf(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((one) => literal(one, `${indent}    `, leaf, key))
    : Object.entries(value).map(([name, one]) => `${key(name)}: ${literal(one, `${indent}    `, leaf, key)}`);
  const line = `${open}${items.join(", ")}${close}`;
  if (indent.length + line.length <= NARROW && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${indent}    ${item},\n`).join("")}${indent}${close}`;
}

const isChat = (request) => "messages" in request.body;
const asPython = (value, indent) => literal(value, indent, pythonName, JSON.stringify);
const asScript = (value, indent) => literal(value, indent, String, (name) => name);

function curl(base, request) {
  const path = request.path.replace(/^\/v1/, "");
  const json = JSON.stringify(request.body, null, 2).replaceAll("'", "'\\''");
  return `curl -N ${base}${path} \\
  -H "Authorization: Bearer $QUARTERDECK_KEY" \\
  -H "Content-Type: application/json" \\
  -d '${json}'`;
}

function python(base, request) {
  const names = Object.keys(request.body);
  const more = Object.fromEntries(names.filter((name) => !KNOWN.has(name)).map((name) => [name, request.body[name]]));
  const given = names.filter((name) => KNOWN.has(name)).map((name) => [name, request.body[name]]);
  if (Object.keys(more).length) given.push(["extra_body", more]);
  const lines = given.map(([name, value]) => `    ${name}=${asPython(value, "    ")},`);
  const chat = isChat(request);
  return `import os
from openai import OpenAI

client = OpenAI(base_url="${base}", api_key=os.environ["QUARTERDECK_KEY"])
stream = client.${chat ? "chat.completions" : "completions"}.create(
${lines.join("\n")}
)
for event in stream:
    if event.choices:
        print(event.choices[0].${chat ? 'delta.content or ""' : "text"}, end="", flush=True)
`;
}

function javascript(base, request) {
  const chat = isChat(request);
  return `import OpenAI from "openai";

const client = new OpenAI({ baseURL: "${base}", apiKey: process.env.QUARTERDECK_KEY });
const stream = await client.${chat ? "chat.completions" : "completions"}.create(${asScript(request.body, "")});
for await (const event of stream) {
  process.stdout.write(event.choices[0]?.${chat ? "delta?.content" : "text"} ?? "");
}
`;
}

/** The request with every picture shortened, and whether there was one. */
function short(request) {
  const pattern = /"(data:image\/\w+;base64,)[A-Za-z0-9+/=]{40,}"/g;
  const whole = JSON.stringify(request);
  const cut = whole.replace(pattern, '"$1…"');
  return { request: JSON.parse(cut), shortened: cut !== whole };
}

const LANGUAGES = { curl, python, javascript };

/** `{text, shortened}` for a request in a language, calling the gateway at `base` (…/v1). */
export function codeOf(language, base, request) {
  const { request: shown, shortened } = short(request);
  return { text: LANGUAGES[language](base, shown), shortened };
}
