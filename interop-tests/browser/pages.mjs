/**
 * Drives Chromium for the real tests. Orders come in as JSON lines on stdin, `{id, do, page, ..}`; each is answered by
 * `{id, value}` or `{id, error}`. What pages receive goes out as `{page, event, ..}`.
 */

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { join, normalize } from "node:path";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

const INSIDE = [
  // As if the gateway's certificate were one that browsers trust. An exception made later would cost each connection
  // another handshake.
  "--ignore-certificate-errors",
  // Requests of the browser's own would travel over the link.
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
];

const pages = new Map();
let browser;
let context;

const orders = {
  /** `inside`: in the laboratory. */
  async launch({ inside = false }) {
    browser = await chromium.launch({
      executablePath: process.env.TIDEGATE_CHROMIUM,
      args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", ...(inside ? INSIDE : [])],
    });
    context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
    context.setDefaultTimeout(20_000);
  },

  /** Serves an empty page and `sdk/js` on this end's own loopback; the page's URL. */
  async serve({ sdk }) {
    const server = createServer(async (request, response) => {
      const path = new URL(request.url, "http://localhost").pathname;
      const file = path.startsWith("/sdk/") ? await readFile(join(sdk, normalize(path.slice("/sdk".length)))).catch(() => null) : "";
      if (file === null) response.statusCode = 404;
      response.setHeader("content-type", file ? "text/javascript" : "text/html");
      response.end(file || "<!doctype html><title>lab</title>");
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    return `http://localhost:${server.address().port}/`;
  },

  async open({ page: name, url, connectsAnywhere = false }) {
    // A page of the gateway's may connect to the gateway alone, by its Content Security Policy.
    const opener = connectsAnywhere ? await browser.newContext({ bypassCSP: true }) : context;
    const page = pages.get(name)?.page ?? (await opener.newPage());
    if (!pages.has(name)) {
      const problems = [];
      pages.set(name, { page, problems });
      page.on("console", (message) => {
        if (message.type() === "error" || message.type() === "warning") problems.push(message.text());
      });
      page.on("pageerror", (error) => problems.push(String(error)));
      await page.exposeFunction("tell", (event) => say({ page: name, ...event }));
    }
    await page.goto(url);
  },

  evaluate({ page, body }) {
    return pages.get(page).page.evaluate(`(async () => { ${body} })()`);
  },

  subscribe({ page, transport, subscribe }) {
    return pages.get(page).page.evaluate(connect, { transport, subscribe });
  },

  click: ({ page, selector }) => pages.get(page).page.click(selector),
  check: ({ page, selector }) => pages.get(page).page.check(selector, { force: true }),
  fill: ({ page, selector, value }) => pages.get(page).page.fill(selector, value),
  type: ({ page, selector, value }) => pages.get(page).page.locator(selector).pressSequentially(value),
  text: ({ page, selector }) => pages.get(page).page.textContent(selector),

  /** Until the first element that matches holds a text. */
  async wait({ page, selector, value }) {
    await pages.get(page).page.locator(selector).filter({ hasText: value }).first().waitFor({ state: "attached" });
  },

  async screenshot({ page, value }) {
    await pages.get(page).page.screenshot({ path: value, animations: "disabled" });
  },

  problems: ({ page }) => pages.get(page).problems,
};

/** Runs in the page. */
async function connect({ transport, subscribe }) {
  const { Client } = await import("/sdk/index.js");
  const facts = await (await fetch("/dev.json")).json();
  const client = new Client(
    { webtransport: facts.webtransport, websocket: facts.websocket, longpoll: facts.longpoll },
    { transports: [transport], certificateHashes: [facts.certificate_hash] },
  );
  const payload = (data) => {
    if (!(data instanceof Uint8Array)) return { data };
    return { data_base64: btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join("")) };
  };
  client.on("disconnected", ({ code, reason }) => tell({ event: "closed", code, reason }));
  for (const { channel, position } of subscribe) {
    client.subscribe(channel, {
      ...(position && { position }),
      onSubscribed: ({ how, position: { epoch, offset } }) =>
        tell({ event: "subscribed", channel, epoch, offset, recovered: how === "recovered" }),
      onPublication: ({ offset, data }) => tell({ event: "publication", channel, offset, ...payload(data) }),
      onEphemeral: ({ data }) => tell({ event: "ephemeral", channel, ...payload(data) }),
    });
  }
  globalThis.client = client;
  await client.connect();
  return client.transport;
}

function say(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  const { id } = order;
  // Not awaited: one page must not hold up another.
  Promise.resolve()
    .then(() => orders[order.do](order))
    .then(
      (value) => say({ id, value: value ?? null }),
      (error) => say({ id, error: String(error?.stack ?? error) }),
    );
}
await browser?.close();
process.exit(0);
