/**
 * Runs the real tests' scripts in Node.js, as `pages.mjs` does in Chromium: `node node.mjs <sdk/js/src/index.js>`. Orders
 * come in as JSON lines on stdin, `{id, do: "evaluate", body}`; each is answered by `{id, value}` or `{id, error}`.
 */

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import WebSocket from "ws";

globalThis.sdk = await import(pathToFileURL(process.argv[2]).href);
// Node has it from 22 on.
globalThis.WebSocket ??= WebSocket;

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

for await (const line of createInterface({ input: process.stdin })) {
  const { id, body } = JSON.parse(line);
  // Not awaited: a script that waits must not hold up another.
  Promise.resolve()
    .then(() => new Function(`return (async () => { ${body}\n })();`)())
    .then(
      (value) => say({ id, value: value ?? null }),
      (error) => say({ id, error: String(error?.stack ?? error) }),
    );
}
process.exit(0);
